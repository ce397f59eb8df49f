"""The operator in Triton kernels, for CUDA devices, and for CPU tensors under Triton's interpreter.

docs/kernels.md describes the design. The mathematics and the names are those of `strips`: s_ij are the scores, H is the
symmetric matrix whose product with the rows is the gradient, v_j = exp(log weight) of candidate j. Nothing is added
atomically: every run gives the same bits, with or without `torch.use_deterministic_algorithms`.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor

from spcl_loss._similarity.comparison import Comparison, Statistics, Upstream
from spcl_loss._similarity.kernels import backward, config, forward


def statistics(rows: Tensor, comparison: Comparison) -> Statistics:
    """The forward pass; see `spcl_loss._similarity.compare`."""
    labels, log_weights, num_anchors = comparison.labels, comparison.log_weights, comparison.num_anchors
    if num_anchors == 0:
        return rows.new_empty(0), rows.new_empty(0), rows.new_empty(0)
    compute = forward.small if rows.shape[0] <= config.SMALL_ROWS else forward.tiled
    with torch.cuda.device_of(rows):
        if rows.shape[0] < config.SORTED_ROWS:
            return compute(rows, comparison)
        order = _class_order(labels, num_anchors)
        log_weights = None if log_weights is None else log_weights[order]
        found = compute(rows[order], comparison._replace(labels=labels[order], log_weights=log_weights))
        anchors = order[:num_anchors]
        negative, positive, positive_sum = (torch.empty_like(one).index_copy_(0, anchors, one) for one in found)
        return negative, positive, positive_sum


def gradient(rows: Tensor, comparison: Comparison, upstream: Upstream) -> Tensor:
    """The backward pass: d loss / d rows (num_grads, D), from the statistics and their gradients."""
    num_anchors, num_grads = upstream.negative.shape[0], comparison.num_grads
    if num_anchors == 0 or num_grads == 0:
        return rows.new_zeros(num_grads, rows.shape[1])
    compute = backward.small if rows.shape[0] <= config.SMALL_ROWS else backward.tiled
    with torch.cuda.device_of(rows):
        return compute(rows, comparison, upstream)


def _class_order(labels: Tensor, num_anchors: int) -> Tensor:
    """A permutation of the rows that makes members of a class neighbours. The anchors stay in front."""
    behind = labels[num_anchors:].argsort(stable=True) + num_anchors
    return torch.cat([labels[:num_anchors].argsort(stable=True), behind])
