"""Same numbers in every run and in any order of the tests; the backends that tests go through."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("reproducible", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["dense", "strips", "strips in small tiles"])
def impl(request):
    """A backend; tiles of 512 bytes make several of them out of the small batches of a test."""
    with pytest.MonkeyPatch.context() as environment:
        if "small" in request.param:
            environment.setenv("SPCL_TILE_BYTES", "512")
        yield request.param.split()[0]
