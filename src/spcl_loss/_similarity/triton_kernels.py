"""The operator in Triton kernels, for CUDA devices, and for CPU tensors under Triton's interpreter.

The mathematics and the names are those of `strips`: s_ij the scores, H the symmetric matrix whose product with the
rows is the gradient, v_j = exp(log weight) of candidate j. What differs is where things are kept.

* Up to `launch.SMALL_ROWS` rows every program owns a few rows and meets all columns: one launch forward, one backward.
* Above, the forward pass visits each pair i < j once: a tile of scores yields sums of its rows and of its columns. They
  are written to partial results, and a second kernel adds those up in a fixed order: no atomics, so every run gives the
  same bits, and nothing has to be chosen for `torch.use_deterministic_algorithms`.
* From `launch.SORTED_ROWS` rows on they are sorted by class first: then nearly every tile holds pairs that all share
  their label or none that does, and needs no comparison of labels.
* The backward pass writes tiles of H in the products' precision to a bounded workspace, and the vendor's matrix product
  does the rest. Where rows are narrow and many the workspace's traffic would cost more than its symmetry saves: there
  each program owns rows, as in the small case, and keeps their gradient in registers.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor

from spcl_loss._similarity import launch
from spcl_loss._similarity.backward_launch import large_gradient, small_gradient, upstream_of
from spcl_loss._similarity.contrast import Contrast, Statistics, Upstream
from spcl_loss._similarity.forward_launch import large_statistics, small_statistics


def statistics(rows: Tensor, contrast: Contrast) -> Statistics:
    """The forward pass; see `spcl_loss._similarity.contrast_statistics`."""
    labels, log_weights, scale, num_anchors, _, with_sum, product_dtype = contrast
    if num_anchors == 0:
        return rows.new_empty(0), rows.new_empty(0), rows.new_empty(0)
    compute = small_statistics if rows.shape[0] <= launch.SMALL_ROWS else large_statistics
    with torch.cuda.device_of(rows):
        if rows.shape[0] < launch.SORTED_ROWS:
            return compute(rows, labels, log_weights, scale, num_anchors, with_sum, product_dtype)
        order, place = _class_order(labels, num_anchors)
        weights = None if log_weights is None else log_weights[order]
        found = compute(rows[order], labels[order], weights, scale, num_anchors, with_sum, product_dtype)
        place = place[:num_anchors]
        return found[0][place], found[1][place], found[2][place]


def gradient(rows: Tensor, contrast: Contrast, upstream: Upstream) -> Tensor:
    """The backward pass: d loss / d rows (num_grads, D), from the statistics and their gradients."""
    labels, log_weights, scale, _, num_grads, with_sum, product_dtype = contrast
    negative, positive, grads = upstream
    if negative.shape[0] == 0 or num_grads == 0:
        return rows.new_zeros(num_grads, rows.shape[1])
    compute = small_gradient if rows.shape[0] <= launch.SMALL_ROWS else large_gradient
    with torch.cuda.device_of(rows):
        if rows.shape[0] < launch.SORTED_ROWS:
            of_kernels = upstream_of(negative, positive, grads, product_dtype)
            return compute(rows, labels, log_weights, scale, num_grads, with_sum, of_kernels, product_dtype)
        order, place = _class_order(labels, *sorted({min(num_grads, negative.shape[0]), negative.shape[0]}))
        weights = None if log_weights is None else log_weights[order]
        anchors = order[: negative.shape[0]]
        of_kernels = upstream_of(negative[anchors], positive[anchors], grads[:, anchors], product_dtype)
        result = compute(rows[order], labels[order], weights, scale, num_grads, with_sum, of_kernels, product_dtype)
        return result[place[:num_grads]]


def _class_order(labels: Tensor, *ends: int) -> tuple[Tensor, Tensor]:
    """The rows' order in which those of a class are neighbours, so that few tiles hold several; and its inverse.

    Each stretch of rows up to one of the `ends` is sorted by itself: anchors stay in front. What is behind them stays
    as it is: prototypes come one of a class, in order.
    """
    starts = (0, *ends[:-1])
    pieces = [labels[start:end].argsort(stable=True) + start for start, end in zip(starts, ends, strict=True)]
    order = torch.cat([*pieces, torch.arange(ends[-1], labels.shape[0], device=labels.device)])
    return order, order.argsort()
