"""Same numbers in every run and in any order of the tests; the backends that tests go through."""

import importlib.util

import pytest
import torch
from hypothesis import settings

settings.register_profile("reproducible", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("reproducible")

# Triton defines its own functions for its interpreter or for its compiler when it is first imported. It is imported
# here, so that it does not matter which test is the first to do so; those that compile start processes of their own.
if importlib.util.find_spec("triton") is not None:
    with pytest.MonkeyPatch.context() as _environment:
        _environment.setenv("TRITON_INTERPRET", "1")
        import triton.language  # noqa: F401


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
