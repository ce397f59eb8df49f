"""The definition of the operator in a few eager lines: small batches, and the oracle of the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

# Stands for the logarithm of an empty sum. Finite, so that no gradient meets inf - inf; far below any score.
LOG_ZERO = -1e30


def statistics(
    rows: Tensor, labels: Tensor, log_weights: Tensor | None, scale: float, num_anchors: int, with_sum: bool
) -> tuple[Tensor, Tensor, Tensor]:
    anchors = rows[:num_anchors]
    scores = (anchors * scale) @ rows.T  # (A, R)
    same = labels[:num_anchors, None] == labels
    itself = torch.eye(num_anchors, rows.shape[0], dtype=torch.bool, device=rows.device)
    positive = same & ~itself

    candidates = scores if log_weights is None else scores + log_weights
    negative_lse = candidates.masked_fill(same | (labels < 0), LOG_ZERO).logsumexp(1)
    positive_lse = scores.masked_fill(~positive, LOG_ZERO).logsumexp(1)
    positive_sum = scores.masked_fill(~positive, 0).sum(1) if with_sum else scores.new_zeros(num_anchors)
    return negative_lse, positive_lse, positive_sum
