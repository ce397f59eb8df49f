"""Rows of unit length, whatever their scale."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Each row divided by its Euclidean norm; a zero row stays zero and gets a bounded gradient.

    Dividing by the largest entry first keeps the sum of squares from overflowing or vanishing. Normalisation does not
    see that factor, so it needs no gradient of its own. A row with a NaN or an infinity becomes NaN.
    """
    largest = rows.detach().abs().amax(-1, keepdim=True)
    scaled = rows / largest.masked_fill(largest == 0, 1)
    # The largest entry of a scaled row is 1, so its norm is at least 1, and 0 for a zero row only.
    unit: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(0.5)
    return unit
