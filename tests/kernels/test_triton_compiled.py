"""What the launchers compile, without a GPU: everything that can be read from compiled code, for every tile once."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")
# KiB of shared memory per program. Compute capabilities 8.6, 8.9 and 12.x take the kernels of sm_80 and have the least.
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227}
PRODUCTS = {"sm_80": ["mma.sync"], "sm_90": ["wgmma"], "sm_100": ["tcgen05.mma"]}
SMALL = {"statistics_of_few_rows", "gradient_of_slices"}
TILED = {"statistics_of_tiles", "h_of_tiles"}
OTHERS = {"add_parts", "coefficients_of_rows", "describe_rows"}


def compiled_kernels(architecture):
    """In a process of its own, without the interpreter. Triton caches what it compiled between runs."""
    run = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).parent / "launched_kernels.py", architecture],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("architecture", SHARED)
def test_compiled_code(architecture):
    kernels = compiled_kernels(architecture)
    assert {kernel["kernel"] for kernel in kernels} == SMALL | TILED | OTHERS
    with_offsets = {kernel["kernel"] for kernel in kernels if kernel["products_in_64_bits"]}
    # Tensor descriptors compute their offsets themselves, in 64 bits.
    assert with_offsets >= SMALL | {"statistics_of_tiles", "add_parts"}
    assert "h_of_tiles" in with_offsets or architecture != "sm_80"
    for kernel in kernels:
        assert kernel["stack"] == 0, f"spilled registers: {kernel}"
        assert kernel["shared"] <= SHARED[architecture] << 10, f"too much shared memory: {kernel}"
        assert kernel["scratch"] == 0, f"would need triton.set_allocator: {kernel}"
        # Rows of 2^20 x 4096 have 2^32 entries.
        assert kernel["products_in_32_bits"] == [], f"an offset may overflow: {kernel}"
        assert kernel["atomics"] == [], f"sums depend on the order of programs: {kernel}"
        assert kernel["products"] == expected_products(architecture, kernel), f"unexpected unit: {kernel}"
        assert kernel["copies"] == expected_copies(architecture, kernel), f"unexpected loads: {kernel}"


def expected_products(architecture, kernel):
    """Tensor cores, except for full float32. The small kernels have tiles of 16 rows, too few for the newer units."""
    if kernel["kernel"] in OTHERS or kernel["precision"] == "ieee":
        return []
    return PRODUCTS["sm_80" if kernel["kernel"] in SMALL else architecture]


def expected_copies(architecture, kernel):
    """Whatever the width, operands come by asynchronous copies of 16 bytes or by tensor descriptors."""
    if kernel["kernel"] in OTHERS:
        return []
    return ["0x10"] if kernel["kernel"] in SMALL or architecture == "sm_80" else ["cp.async.bulk.tensor"]
