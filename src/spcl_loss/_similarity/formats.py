"""What number formats ask of the blockwise backends: exponentials that fit, and products of half precision."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to here exp(score) neither overflows nor vanishes in float32, not even summed over 2^24 rows: no maximum is needed.
PLAIN_SCALE = 40.0
# float16 loses digits below 6e-5; entries of H, made at most about this large, mostly lie above.
HALF_MAGNITUDE = 256.0
# Since PyTorch 2.8, and on a GPU only.
_WIDENS = hasattr(torch.ops.aten.mm, "dtype")


def product(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right, summed and given in float32 unless the operands are float64."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda and _WIDENS:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def accumulate(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to the target, which has the dtype of such a product."""
    if left.dtype == target.dtype:
        target.addmm_(left, right)
    else:
        target += product(left, right)
