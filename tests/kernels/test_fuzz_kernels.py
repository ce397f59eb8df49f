"""A few random calls of `fuzz` by the kernels under Triton's interpreter, which is slow; `make fuzz` runs some 400."""

import pytest
import torch

import fuzz

pytest.importorskip("triton")


@pytest.mark.parametrize("number", [n for n in range(14) if fuzz.case(0, n).choice["dtype"] != torch.float64][:9])
def test_kernels_agree_with_the_oracle(number):
    problem, shares = fuzz.check(0, number, 8, ["kernels"])
    share, about = shares["kernels"]
    assert share <= 1, f"{about}; {fuzz.describe(problem)}"
