"""The operator in tiles of bounded size, for any device. It holds no N x N tensor.

The rows are compared with themselves, so the scores are symmetric: only the upper triangle is computed, and each tile
serves its rows and its columns. The gradient needs one symmetric matrix H. It is computed again, tile by tile, from the
statistics and their gradients::

    H_ij = exp(s_ij) (a_i v_j + a_j v_i)         other label    a_i = d loss / d negative_i  exp(-negative_i)
    H_ij = exp(s_ij) (b_i + b_j) + c_i + c_j     same label     b_i likewise of positive_i, c_i = d loss / d sum_i
    d loss / d rows = scale H rows

where v_j is the weight of candidate j, and H_ii = 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from spcl_loss._numerics import HALF_MAGNITUDE, PLAIN_SCALE, accumulate, is_half, widening_product
from spcl_loss._similarity.comparison import LOG_ZERO, Comparison, Statistics, Upstream

_CPU_TILE_BYTES = 4 << 20
_GPU_TILE_BYTES = 256 << 20


def statistics(rows: Tensor, comparison: Comparison) -> Statistics:
    """The forward pass; see `spcl_loss._similarity.compare`."""
    labels, log_weights, scale, num_anchors, _, with_sum, product_dtype = comparison
    plain = scale <= PLAIN_SCALE
    log_weights = _log_weights(labels, log_weights, rows.dtype)
    weights = log_weights.exp()
    # Sums of exponentials, or their logarithms where the exponentials do not fit.
    empty = 0.0 if plain else LOG_ZERO
    negative, positive = rows.new_full((rows.shape[0],), empty), rows.new_full((rows.shape[0],), empty)
    positive_sum = rows.new_zeros(rows.shape[0])
    operand = rows.to(product_dtype)
    for i, j in _tiles(num_anchors, rows):
        scores = widening_product(operand[i], operand[j].T).mul_(scale)
        same = labels[i, None] == labels[j]
        own = same.clone().fill_diagonal_(False) if j.start == i.start else same  # a row is no positive of itself
        new = slice(max(i.stop, j.start), j.stop)  # columns that are not rows of this tile too
        part = slice(new.start - j.start, None)
        if with_sum:
            of_positives = scores.masked_fill(~own, 0)
            positive_sum[i] += of_positives.sum(1)
            positive_sum[new] += of_positives[:, part].sum(0)
        if plain:
            exponentials = scores.exp_()
            of_positives = exponentials * own
            positive[i] += of_positives.sum(1)
            positive[new] += of_positives[:, part].sum(0)
            exponentials.masked_fill_(same, 0)
            negative[i] += exponentials @ weights[j]
            negative[new] += weights[i] @ exponentials[:, part]
        else:
            of_positives = scores.masked_fill(~own, LOG_ZERO)
            _add_logs(positive, i, of_positives.logsumexp(1))
            _add_logs(positive, new, of_positives[:, part].logsumexp(0))
            scores.masked_fill_(same, LOG_ZERO)
            _add_logs(negative, i, (scores + log_weights[j]).logsumexp(1))
            _add_logs(negative, new, (scores[:, part] + log_weights[i, None]).logsumexp(0))
    if plain:
        negative, positive = negative.log().clamp_min(LOG_ZERO), positive.log().clamp_min(LOG_ZERO)
    return negative[:num_anchors], positive[:num_anchors], positive_sum[:num_anchors]


def gradient(rows: Tensor, comparison: Comparison, upstream: Upstream) -> Tensor:
    """The backward pass: d loss / d rows (num_grads, D), from the statistics and their gradients."""
    labels, log_weights, scale, _, num_grads, with_sum, product_dtype = comparison
    negative, positive, grads = upstream
    num_anchors = negative.shape[0]
    if num_anchors == 0 or num_grads == 0:
        return rows.new_zeros(num_grads, rows.shape[1])
    log_weights = _log_weights(labels, log_weights, rows.dtype)
    half = is_half(product_dtype)
    magnitude = grads.abs().amax().clamp_min(torch.finfo(rows.dtype).tiny) / HALF_MAGNITUDE if half else 1.0
    # Rows that are no anchors have no statistics: their gradients are zero and any value will do.
    fill = (0, rows.shape[0] - num_anchors)
    of_negative, of_positive, of_sum = torch.nn.functional.pad(grads / magnitude, fill)
    negative, positive = torch.nn.functional.pad(negative, fill), torch.nn.functional.pad(positive, fill)
    if scale <= PLAIN_SCALE:
        of_negative = of_negative * (-negative).exp().masked_fill_(negative <= LOG_ZERO, 0)
        of_positive = of_positive * (-positive).exp().masked_fill_(positive <= LOG_ZERO, 0)

    result = rows.new_zeros(num_grads, rows.shape[1])
    weights = log_weights.exp()
    operand = rows.to(product_dtype)
    # H is zero between rows that are no anchors, and of no use between rows whose gradient is not wanted.
    for i, j in _tiles(min(num_anchors, num_grads), rows):
        scores = widening_product(operand[i], operand[j].T).mul_(scale)
        same = labels[i, None] == labels[j]
        if scale <= PLAIN_SCALE:
            to_negatives = torch.stack([of_negative[i], weights[i]], 1) @ torch.stack([weights[j], of_negative[j]])
            h = torch.where(same, of_positive[i, None] + of_positive[j], to_negatives).mul_(scores.exp_())
        else:
            to_negatives = of_negative[i, None] * _probability(scores + log_weights[j], negative[i, None])
            to_negatives += of_negative[j] * _probability(scores + log_weights[i, None], negative[j])
            to_positives = of_positive[i, None] * _probability(scores, positive[i, None])
            to_positives += of_positive[j] * _probability(scores, positive[j])
            h = torch.where(same, to_positives, to_negatives)
        if with_sum:
            h += (of_sum[i, None] + of_sum[j]).masked_fill_(~same, 0)
        if j.start == i.start:
            h.fill_diagonal_(0)
        h = h.to(product_dtype)
        accumulate(result[i], h, operand[j])
        new = slice(max(i.stop, j.start), min(j.stop, num_grads))
        if new.start < new.stop:
            accumulate(result[new], h[:, new.start - j.start : new.stop - j.start].T, operand[i])
    return result.mul_(magnitude * scale)


def tile_shape(device: torch.device, itemsize: int) -> tuple[int, int]:
    """Rows and columns of a tile of `SPCL_TILE_BYTES` of scores.

    By default 4 MiB on a CPU, which stays in cache, and 256 MiB on a GPU, which needs few launches.
    """
    default = _CPU_TILE_BYTES if device.type == "cpu" else _GPU_TILE_BYTES
    elements = int(os.environ.get("SPCL_TILE_BYTES", default)) // itemsize
    # Diagonal blocks are computed in full. Low, wide tiles keep that waste small.
    height = max(1, math.isqrt(elements // 16))
    return height, max(height, elements // height)


def _tiles(num_anchors: int, rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Row and column ranges that cover every pair of an anchor and a later row once, and the diagonal blocks whole."""
    num_rows, (height, width) = rows.shape[0], tile_shape(rows.device, rows.element_size())
    for top in range(0, num_anchors, height):
        i = slice(top, min(top + height, num_anchors))
        for left in range(top, num_rows, width):
            yield i, slice(left, min(left + width, num_rows))


def _log_weights(labels: Tensor, log_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(R,) what a candidate adds to its score where it is a negative; one with a negative label is none."""
    weights = torch.zeros_like(labels, dtype=dtype) if log_weights is None else log_weights
    return weights.masked_fill(labels < 0, LOG_ZERO)


def _add_logs(total: Tensor, where: slice, logs: Tensor) -> None:
    total[where] = torch.logaddexp(total[where], logs)


def _probability(scores: Tensor, log_sum: Tensor) -> Tensor:
    """exp(scores - log_sum): at most 1 where the scores are part of the sum, and limited to 1 where they are not."""
    return (scores - log_sum).clamp_max_(0).exp_()
