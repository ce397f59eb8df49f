"""Random calls of `fuzz` by the kernels under Triton's interpreter, which is slow; `make fuzz` runs some 400."""

import pytest
import torch

import fuzz

pytest.importorskip("triton")


@pytest.mark.parametrize("number", [n for n in range(60) if fuzz.case(0, n).choice["dtype"] != torch.float64][:40])
def test_kernels_agree_with_the_oracle(number):
    """Of up to 33 rows, several tiles, by each of the kernels' paths."""
    problem, shares = fuzz.check(0, number, 33, ["kernels"])
    share, about = shares["kernels"]
    assert share <= 1, f"{about}; {fuzz.describe(problem)}"
