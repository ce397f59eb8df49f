"""What the launchers compile, without a GPU: no spilled register, no offset that overflows, no order left to chance."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton but for Linux")
# KiB that a program may have. Compute capabilities 8.6, 8.9 and 12.x take the kernels of sm_80 and have the least.
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227}
KERNELS = {
    "statistics_of_few_rows",
    "statistics_of_tiles",
    "add_parts",
    "coefficients_of_rows",
    "gradient_of_slices",
    "h_of_tiles",
}


@pytest.fixture(scope="module", params=SHARED)
def compiled(request):
    """Architecture, and one entry for each kernel that half precision and float32 make; Triton caches them."""
    script = Path(__file__).parent / "launched_kernels.py"
    run = subprocess.run(
        [sys.executable, "-W", "error", script, request.param],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert run.returncode == 0, run.stderr
    return request.param, json.loads(run.stdout)


def test_all_kernels_fit(compiled):
    architecture, kernels = compiled
    assert {kernel["kernel"] for kernel in kernels} == KERNELS
    for kernel in kernels:
        assert kernel["spilled"] == 0 and kernel["shared"] <= SHARED[architecture] << 10, kernel


def test_offsets_do_not_overflow(compiled):
    """Sizes and indices fit 32 bits, a product of two of them may not: rows of 2^20 x 4096 have 2^32 entries."""
    architecture, kernels = compiled
    for kernel in kernels:
        assert kernel["products_in_32_bits"] == [], kernel
    with_offsets = {kernel["kernel"] for kernel in kernels if kernel["products_in_64_bits"]}
    # Tensor descriptors keep strides in 64 bits themselves.
    assert with_offsets >= KERNELS - {"coefficients_of_rows", "h_of_tiles"}
    assert "h_of_tiles" in with_offsets or architecture != "sm_80"


def test_nothing_is_added_in_an_order_left_to_chance(compiled):
    assert [kernel for kernel in compiled[1] if kernel["atomics"]] == []


def test_float32_products_obey_the_matmul_precision(compiled):
    """TF32 is of the tensor cores, full float32 is not."""
    for kernel in compiled[1]:
        if kernel["precision"]:
            assert bool(kernel["tensor_cores"]) == (kernel["precision"] == "tf32"), kernel


def test_large_products_use_the_widest_instructions_and_asynchronous_copies(compiled):
    """Whole vectors are copied beside the products where rows are multiples of 16 wide."""
    architecture, kernels = compiled
    product, copy = {
        "sm_80": ("mma.sync", "cp.async.cg.shared.global"),
        "sm_90": ("wgmma.mma_async", "cp.async.bulk.tensor"),
        "sm_100": ("tcgen05.mma", "cp.async.bulk.tensor"),
    }[architecture]
    large = [kernel for kernel in kernels if kernel["kernel"] in ("statistics_of_tiles", "h_of_tiles")]
    large = [kernel for kernel in large if kernel["width"] % 16 == 0 and kernel["precision"] != "ieee"]
    assert {kernel["kernel"] for kernel in large} == {"statistics_of_tiles", "h_of_tiles"}
    for kernel in large:
        assert product in kernel["tensor_cores"] and copy in kernel["copies"], kernel
