"""Same numbers in every run and in any order of the tests."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("reproducible", max_examples=100, deadline=None, derandomize=True)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
