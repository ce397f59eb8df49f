"""Triton kernels of the backward pass: tiles of H, or gradients of rows."""

# mypy: ignore-errors
# Device code: Triton reads these functions' source, their values have no Python types.

from __future__ import annotations

import triton
import triton.language as tl

from spcl_loss._similarity import formats
from spcl_loss._similarity.tile_kernels import (
    LOG2E,
    LOG_ZERO,
    SIZES,
    agreement,
    block,
    candidate,
    halves,
    inner_products,
)

HALF_MAGNITUDE: tl.constexpr = tl.constexpr(formats.HALF_MAGNITUDE)


@triton.jit
def _inverse_magnitude(largest, HALF: tl.constexpr):
    """What gradients are multiplied by before H is rounded to half precision; `largest` is their largest size."""
    if HALF:
        return HALF_MAGNITUDE / tl.maximum(tl.load(largest), 1e-30)
    else:
        return 1.0


@triton.jit
def _coefficients(
    labels, log_weights, num_weights, negative, positive, grads, inverse, index, num_rows, num_anchors,
    OUTSIDE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """What H needs to know of a row: label, weight, and per statistic its gradient and the logarithm it belongs to.

    PLAIN: the weight v, the gradients divided by the sums, a and b, and zeros; else base-2 logarithms stay apart.
    """
    label, weight = candidate(labels, log_weights, num_weights, index, num_rows, OUTSIDE, PLAIN)
    anchor = index < num_anchors
    log_negative = tl.load(negative + index, mask=anchor, other=0.0) * LOG2E
    log_positive = tl.load(positive + index, mask=anchor, other=0.0) * LOG2E
    a = tl.load(grads + index, mask=anchor, other=0.0) * inverse
    b = tl.load(grads + num_anchors + index, mask=anchor, other=0.0) * inverse
    c = tl.load(grads + 2 * num_anchors + index, mask=anchor, other=0.0) * inverse
    if PLAIN:
        # Where a sum was empty its gradient is that of a constant, zero.
        a *= tl.exp2(-tl.where(log_negative <= LOG_ZERO, float("inf"), log_negative))
        b *= tl.exp2(-tl.where(log_positive <= LOG_ZERO, float("inf"), log_positive))
    return label, weight, a, b, c, log_negative, log_positive


@triton.jit(do_not_specialize=SIZES)
def coefficients_of_rows(
    labels, log_weights, num_weights, negative, positive, grads, largest, table, num_rows, num_anchors,
    HEIGHT: tl.constexpr, PLAIN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Makes `_coefficients` once for all tiles. table: (6, R), in their order, less the labels."""
    index = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    inverse = _inverse_magnitude(largest, HALF)
    _, weight, a, b, c, log_negative, log_positive = _coefficients(
        labels, log_weights, num_weights, negative, positive, grads, inverse, index, num_rows, num_anchors, -2, PLAIN
    )
    mine = index < num_rows
    tl.store(table + index, weight, mask=mine)
    tl.store(table + num_rows + index, a, mask=mine)
    tl.store(table + 2 * num_rows + index, b, mask=mine)
    tl.store(table + 3 * num_rows + index, c, mask=mine)
    tl.store(table + 4 * num_rows + index, log_negative, mask=mine)
    tl.store(table + 5 * num_rows + index, log_positive, mask=mine)


@triton.jit
def _from_table(labels, table, index, num_rows, with_sum, OUTSIDE: tl.constexpr, PLAIN: tl.constexpr):
    inside = index < num_rows
    label = tl.load(labels + index, mask=inside, other=OUTSIDE)
    weight = tl.load(table + index, mask=inside, other=0.0 if PLAIN else -float("inf"))
    a = tl.load(table + num_rows + index, mask=inside, other=0.0)
    b = tl.load(table + 2 * num_rows + index, mask=inside, other=0.0)
    c = tl.load(table + 3 * num_rows + index, mask=index < tl.where(with_sum != 0, num_rows, 0), other=0.0)
    if PLAIN:
        return label, weight, a, b, c, 0.0, 0.0
    else:
        log_negative = tl.load(table + 4 * num_rows + index, mask=inside, other=0.0)
        log_positive = tl.load(table + 5 * num_rows + index, mask=inside, other=0.0)
        return label, weight, a, b, c, log_negative, log_positive


@triton.jit
def _share(grad_negative, log_negative, grad_positive, log_positive, scores, weight, same):
    """Gradient times exp(score - logarithm of the sum it is part of), for any scale."""
    exponent = scores + tl.where(same, 0.0, weight) - tl.where(same, log_positive, log_negative)
    exponent = tl.where(exponent > 0.0, 0.0, exponent)
    return tl.where(same, grad_positive, grad_negative) * tl.exp2(exponent)


@triton.jit
def _h(scores, of_i, of_j, with_sum, PLAIN: tl.constexpr):
    """A tile of H from its scores, which are base-2 logarithms, and the coefficients of its rows and columns."""
    label_i, weight_i, a_i, b_i, c_i, log_negative_i, log_positive_i = of_i
    label_j, weight_j, a_j, b_j, c_j, log_negative_j, log_positive_j = of_j
    same = label_i[:, None] == label_j[None, :]
    if PLAIN:
        to_negatives = a_i[:, None] * weight_j[None, :] + weight_i[:, None] * a_j[None, :]
        h = tl.exp2(scores) * tl.where(same, b_i[:, None] + b_j[None, :], to_negatives)
    else:
        h = _share(
            a_i[:, None], log_negative_i[:, None], b_i[:, None], log_positive_i[:, None],
            scores, weight_j[None, :], same,
        )  # fmt: skip
        h += _share(
            a_j[None, :], log_negative_j[None, :], b_j[None, :], log_positive_j[None, :],
            scores, weight_i[:, None], same,
        )  # fmt: skip
    if with_sum:
        h += tl.where(same, c_i[:, None] + c_j[None, :], 0.0)
    return h


@triton.jit
def _uniform_h(scores, table, i, j, num_rows, agree, with_sum):
    """`_h`, PLAIN, where all pairs share their label (`agree`) or none does: then one statistic is asked for."""
    grads = table + tl.where(agree, 2 * num_rows, num_rows)
    weight_i = tl.where(agree, 1.0, tl.load(table + i, mask=i < num_rows, other=0.0))
    weight_j = tl.where(agree, 1.0, tl.load(table + j, mask=j < num_rows, other=0.0))
    grad_i = tl.load(grads + i, mask=i < num_rows, other=0.0)
    grad_j = tl.load(grads + j, mask=j < num_rows, other=0.0)
    h = tl.exp2(scores) * (grad_i[:, None] * weight_j[None, :] + weight_i[:, None] * grad_j[None, :])
    if with_sum & agree:
        c_i = tl.load(table + 3 * num_rows + i, mask=i < num_rows, other=0.0)
        c_j = tl.load(table + 3 * num_rows + j, mask=j < num_rows, other=0.0)
        h += c_i[:, None] + c_j[None, :]
    return h


@triton.jit
def _store_block(h, workspace, workspace_stride, row, column, TMA: tl.constexpr, DTYPE: tl.constexpr):
    if TMA:
        workspace.store([row, column], h.to(DTYPE))
    else:
        rows = (row + tl.arange(0, h.shape[0])).to(tl.int64)
        columns = column + tl.arange(0, h.shape[1])
        tl.store(workspace + rows[:, None] * workspace_stride + columns[None, :], h.to(DTYPE))


@triton.jit
def _store_h(
    scores, labels, table, workspace, workspace_stride, row, column, i0, j0, num_rows, with_sum,
    BM: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr, DTYPE: tl.constexpr,
    PLAIN: tl.constexpr,
):  # fmt: skip
    """H of WIDTH columns, PART columns at a time as in `_store_columns`."""
    if WIDTH > PART:
        half: tl.constexpr = WIDTH // 2
        left, right = halves(scores, BM, WIDTH)
        _store_h(
            left, labels, table, workspace, workspace_stride, row, column, i0, j0, num_rows, with_sum,
            BM, half, PART, TMA, DTYPE, PLAIN,
        )  # fmt: skip
        _store_h(
            right, labels, table, workspace, workspace_stride, row, column + half, i0, j0 + half, num_rows, with_sum,
            BM, half, PART, TMA, DTYPE, PLAIN,
        )  # fmt: skip
    else:
        i = i0 + tl.arange(0, BM)
        j = j0 + tl.arange(0, WIDTH)
        of_i = _from_table(labels, table, i, num_rows, with_sum, -3, PLAIN)
        of_j = _from_table(labels, table, j, num_rows, with_sum, -2, PLAIN)
        h = _h(scores, of_i, of_j, with_sum, PLAIN)
        if (j0 < i0 + BM) & (i0 < j0 + WIDTH):
            h = tl.where(i[:, None] == j[None, :], 0.0, h)
        _store_block(h, workspace, workspace_stride, row, column, TMA, DTYPE)


@triton.jit
def _store_uniform_h(
    scores, table, workspace, workspace_stride, row, column, i0, j0, num_rows, agree, with_sum,
    BM: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """`_store_h`, PLAIN, of pairs that all share their label (`agree`) or none does, and are not on the diagonal."""
    if WIDTH > PART:
        half: tl.constexpr = WIDTH // 2
        left, right = halves(scores, BM, WIDTH)
        _store_uniform_h(
            left, table, workspace, workspace_stride, row, column, i0, j0, num_rows, agree, with_sum,
            BM, half, PART, TMA, DTYPE,
        )  # fmt: skip
        _store_uniform_h(
            right, table, workspace, workspace_stride, row, column + half, i0, j0 + half, num_rows, agree, with_sum,
            BM, half, PART, TMA, DTYPE,
        )  # fmt: skip
    else:
        i = i0 + tl.arange(0, BM)
        j = j0 + tl.arange(0, WIDTH)
        h = _uniform_h(scores, table, i, j, num_rows, agree, with_sum)
        _store_block(h, workspace, workspace_stride, row, column, TMA, DTYPE)


@triton.jit(do_not_specialize=SIZES)
def h_of_tiles(
    left, right, labels, ranges, table, workspace, workspace_twice, log2_scale, first_i, first_j, num_rows, width,
    stride, num_i, workspace_stride, with_sum,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """A tile of H, rounded, into the workspace, which is given for blocks of PART columns and of twice as many."""
    row = tl.program_id(0) % num_i * BM
    column = tl.program_id(0) // num_i * BN
    i0 = first_i + row
    j0 = first_j + column
    scores = inner_products(left, right, i0, j0, num_rows, width, stride, BM, BN, BK, TMA, DTYPE, PRECISION)
    scores *= log2_scale
    all_agree, none_agree = agreement(ranges, i0, j0, num_rows, BM, BN)
    if PLAIN and (all_agree | none_agree) & ((j0 >= i0 + BM) | (i0 >= j0 + BN)):
        _store_uniform_h(
            scores, table, workspace_twice, workspace_stride, row, column, i0, j0, num_rows, all_agree, with_sum,
            BM, BN, 2 * PART, TMA, DTYPE,
        )  # fmt: skip
    else:
        _store_h(
            scores, labels, table, workspace, workspace_stride, row, column, i0, j0, num_rows, with_sum,
            BM, BN, PART, TMA, DTYPE, PLAIN,
        )  # fmt: skip


@triton.jit
def _store_gradient(gradient, result, i0, d0, num_grads, width, BM: tl.constexpr, BD: tl.constexpr):
    i = i0 + tl.arange(0, BM)
    d = d0 + tl.arange(0, BD)
    inside = (i[:, None] < num_grads) & (d[None, :] < width)
    tl.store(result + i[:, None].to(tl.int64) * width + d[None, :], gradient, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def gradient_of_slices(
    rows, labels, log_weights, num_weights, negative, positive, grads, largest, result, log2_scale, scale,
    num_rows, num_anchors, num_grads, width, stride, with_sum,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, PLAIN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The whole backward pass of BD columns of BM rows, for few rows: scores are made again for every slice."""
    i0 = tl.program_id(0) * BM
    d0 = tl.program_id(1) * BD
    i = i0 + tl.arange(0, BM)
    inverse = _inverse_magnitude(largest, HALF)
    of_i = _coefficients(
        labels, log_weights, num_weights, negative, positive, grads, inverse, i, num_rows, num_anchors, -3, PLAIN
    )
    gradient = tl.zeros((BM, BD), tl.float32)
    for j0 in range(0, num_rows, BN):
        scores = inner_products(rows, rows, i0, j0, num_rows, width, stride, BM, BN, BK, False, DTYPE, PRECISION)
        j = j0 + tl.arange(0, BN)
        of_j = _coefficients(
            labels, log_weights, num_weights, negative, positive, grads, inverse, j, num_rows, num_anchors, -2, PLAIN
        )
        h = _h(scores * log2_scale, of_i, of_j, with_sum, PLAIN)
        h = tl.where(i[:, None] == j[None, :], 0.0, h)
        rows_j = block(rows, j0, d0, num_rows, width, stride, BN, BD, False).to(DTYPE)
        gradient = tl.dot(h.to(DTYPE), rows_j, gradient, input_precision=PRECISION)
    _store_gradient(gradient * (scale / inverse), result, i0, d0, num_grads, width, BM, BD)


@triton.jit(do_not_specialize=SIZES)
def gradient_of_rows(
    left, right, labels, table, largest, result, log2_scale, scale, num_rows, num_anchors, num_grads, width, stride,
    with_sum,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, PLAIN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The gradient of BM narrow rows, kept in registers while all columns of H pass by.

    BD holds the whole width: one block of candidates serves the scores and the gradient.
    """
    i0 = tl.program_id(0) * BM
    i = i0 + tl.arange(0, BM)
    of_i = _from_table(labels, table, i, num_rows, with_sum, -3, PLAIN)
    rows_i = block(left, i0, 0, num_rows, width, stride, BM, BD, TMA)
    gradient = tl.zeros((BM, BD), tl.float32)
    # Between rows that are no anchors H is zero.
    num_columns = tl.where(i0 < num_anchors, num_rows, num_anchors)
    for j0 in range(0, num_columns, BN):
        rows_j = block(right, j0, 0, num_rows, width, stride, BN, BD, TMA)
        scores = tl.dot(rows_i, rows_j.T, input_precision=PRECISION) * log2_scale
        j = j0 + tl.arange(0, BN)
        h = _h(scores, of_i, _from_table(labels, table, j, num_rows, with_sum, -2, PLAIN), with_sum, PLAIN)
        h = tl.where(i[:, None] == j[None, :], 0.0, h)
        gradient = tl.dot(h.to(DTYPE), rows_j, gradient, input_precision=PRECISION)
    _store_gradient(gradient * (scale / _inverse_magnitude(largest, HALF)), result, i0, 0, num_grads, width, BM, BD)
