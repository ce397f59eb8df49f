"""The operator in Triton kernels, for CUDA devices, and for CPU tensors under Triton's interpreter.

docs/kernels.md describes the design. The mathematics and the names are those of `strips`: s_ij are the scores, H is the
symmetric matrix whose product with the rows is the gradient, v_j = exp(log weight) of candidate j. Nothing is added
atomically: every run gives the same bits, with or without `torch.use_deterministic_algorithms`.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from spcl_loss._similarity.comparison import Comparison, Statistics, Upstream
from spcl_loss._similarity.kernels import backward, config, forward


def statistics(rows: Tensor, comparison: Comparison) -> Statistics:
    """The forward pass; see `spcl_loss._similarity.compare`."""
    num_anchors = comparison.num_anchors
    if num_anchors == 0:
        return rows.new_empty(0), rows.new_empty(0), rows.new_empty(0)
    compute = forward.small if rows.shape[0] <= config.SMALL_ROWS else forward.tiled
    with torch.cuda.device_of(rows):
        if rows.shape[0] < config.SORTED_ROWS:
            return compute(rows, comparison)
        order = _class_order(comparison.labels, num_anchors)
        negative, positive, positive_sum = compute(rows[order], _reordered(comparison, order))
        return _restored(negative, order), _restored(positive, order), _restored(positive_sum, order)


def gradient(rows: Tensor, comparison: Comparison, upstream: Upstream) -> Tensor:
    """The backward pass: d loss / d rows (num_grads, D), from the statistics and their gradients."""
    num_anchors, num_grads = upstream.negative.shape[0], comparison.num_grads
    if num_anchors == 0 or num_grads == 0:
        return rows.new_zeros(num_grads, rows.shape[1])
    compute = backward.small if rows.shape[0] <= config.SMALL_ROWS else backward.tiled
    with torch.cuda.device_of(rows):
        if rows.shape[0] < config.SORTED_ROWS:
            return compute(rows, comparison, upstream)
        order = _class_order(comparison.labels, num_grads, num_anchors)
        anchors = order[:num_anchors]
        upstream = Upstream(upstream.negative[anchors], upstream.positive[anchors], upstream.grads[:, anchors])
        return _restored(compute(rows[order], _reordered(comparison, order), upstream), order)


def _class_order(labels: Tensor, *ends: int) -> Tensor:
    """A permutation of the rows that makes members of a class neighbours.

    Each range of rows up to one of the `ends`, and the rest, is sorted by itself: anchors and rows with a gradient stay
    in front.
    """
    bounds = sorted({0, *ends, labels.shape[0]})
    return torch.cat([labels[start:end].argsort(stable=True) + start for start, end in pairwise(bounds)])


def _restored(values: Tensor, order: Tensor) -> Tensor:
    """Values of the leading rows in `_class_order`, back at the places of the rows. Needs no inverse, no sort."""
    return torch.empty_like(values).index_copy_(0, order[: values.shape[0]], values)


def _reordered(comparison: Comparison, order: Tensor) -> Comparison:
    log_weights = None if comparison.log_weights is None else comparison.log_weights[order]
    return comparison._replace(labels=comparison.labels[order], log_weights=log_weights)
