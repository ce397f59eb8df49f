"""The definition of the operator in a few eager lines: small batches, and the oracle of the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_loss._numerics import matmul
from spcl_loss._similarity.contrast import Contrast, Statistics

# Stands for the logarithm of an empty sum. Finite, so that no gradient meets inf - inf; far below any score.
LOG_ZERO = -1e30


def statistics(rows: Tensor, contrast: Contrast) -> Statistics:
    """See `spcl_loss._similarity.compare`; the rows are of unit length."""
    labels, log_weights, num_anchors = contrast.labels, contrast.log_weights, contrast.num_anchors
    scores = matmul(rows[:num_anchors] * contrast.scale, rows.T)  # (A, R)
    same = labels[:num_anchors, None] == labels
    not_negative = same | (labels < 0)
    not_positive = ~same
    not_positive.diagonal().fill_(True)

    as_negatives = scores if log_weights is None else scores + log_weights
    candidates = torch.stack([as_negatives, scores]).masked_fill(torch.stack([not_negative, not_positive]), LOG_ZERO)
    negative_lse, positive_lse = candidates.logsumexp(-1)
    positive_sum = scores.masked_fill(not_positive, 0).sum(1) if contrast.with_sum else scores.new_zeros(num_anchors)
    return negative_lse, positive_lse, positive_sum
