"""What a comparison is about, as one value: the backends take it whole, the registered operators take it flat."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Statistics = tuple[Tensor, Tensor, Tensor]
# Stands for the logarithm of an empty sum. Finite, so that no gradient meets inf - inf; far below any score.
LOG_ZERO = -1e30


class Comparison(NamedTuple):
    """R rows are compared with one another. All are candidates, the first `num_anchors` are anchors too."""

    labels: Tensor  # (R,) integer, best int32; a row with a negative label is no candidate
    log_weights: Tensor | None  # (R,) added to the score of a candidate where it is a negative; None for zeros
    scale: float  # score = scale * inner product
    num_anchors: int
    num_grads: int  # number of leading rows to differentiate; the gradient of the others is zero
    with_sum: bool  # whether the sum of the positives' scores is wanted; if False, the third statistic is unspecified
    product_dtype: torch.dtype  # of the operands of matrix products on a GPU; all else has the dtype of the rows


class Upstream(NamedTuple):
    """What the backward pass starts from: the statistics of all anchors, and the gradients that reach them."""

    negative: Tensor  # (A,) first statistic; non-anchors may be among them, with finite values and zero gradients
    positive: Tensor  # (A,) second statistic
    grads: Tensor  # (3, A) gradients with respect to the three statistics
