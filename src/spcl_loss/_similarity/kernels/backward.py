"""The backward pass: gradients of few rows in one launch, or tiles of H that the vendor's product multiplies."""

# Device code is untyped: Triton reads the source of these functions, and their values have no Python types.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_loss import _numerics
from spcl_loss._numerics import is_half
from spcl_loss._similarity.comparison import Comparison, Upstream
from spcl_loss._similarity.kernels.config import workspace_shape
from spcl_loss._similarity.kernels.tiles import (
    FUSED,
    LOG2E,
    LOG_ZERO,
    SIZES,
    block,
    blocks_of,
    candidate,
    descriptors,
    halves,
    inner_products,
    operand_of,
    product_constants,
    tile_for,
    weights_pointer,
)

HALF_MAGNITUDE: tl.constexpr = tl.constexpr(_numerics.HALF_MAGNITUDE)


@triton.jit
def _inverse_magnitude(largest, HALF: tl.constexpr):
    """The factor of all gradients before H is rounded to half precision; `largest` is their largest magnitude."""
    if HALF:
        return HALF_MAGNITUDE / tl.maximum(tl.load(largest), 1e-30)
    else:
        return 1.0


@triton.jit
def _coefficients(
    labels, log_weights, num_weights, negative, positive, grads, inverse, index, num_rows, num_anchors,
    OUTSIDE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Per row: label, weight v, the gradients a, b and c of its three statistics, and the first two statistics.

    PLAIN: a and b are divided by their sums of exponentials. Otherwise weights and statistics are base-2 logarithms.
    """
    label, weight = candidate(labels, log_weights, num_weights, index, num_rows, OUTSIDE, PLAIN)
    anchor = index < num_anchors
    log_negative = tl.load(negative + index, mask=anchor, other=0.0) * LOG2E
    log_positive = tl.load(positive + index, mask=anchor, other=0.0) * LOG2E
    a = tl.load(grads + index, mask=anchor, other=0.0) * inverse
    b = tl.load(grads + num_anchors + index, mask=anchor, other=0.0) * inverse
    c = tl.load(grads + 2 * num_anchors + index, mask=anchor, other=0.0) * inverse
    if PLAIN:
        # An empty sum is a constant: its gradient is zero.
        a *= tl.exp2(-tl.where(log_negative <= LOG_ZERO, float("inf"), log_negative))
        b *= tl.exp2(-tl.where(log_positive <= LOG_ZERO, float("inf"), log_positive))
    return label, weight, a, b, c, log_negative, log_positive


@triton.jit
def _weighted_probability(grad_negative, log_negative, grad_positive, log_positive, scores, weight, same):
    """Gradient times exp(score - logarithm of the sum that the score is part of), at any scale."""
    exponent = scores + tl.where(same, 0.0, weight) - tl.where(same, log_positive, log_negative)
    exponent = tl.where(exponent > 0.0, 0.0, exponent)
    return tl.where(same, grad_positive, grad_negative) * tl.exp2(exponent)


@triton.jit
def _h(scores, of_i, of_j, with_sum, PLAIN: tl.constexpr):
    """A tile of H from its scores, as base-2 logarithms, and the coefficients of its rows and columns."""
    label_i, weight_i, a_i, b_i, c_i, log_negative_i, log_positive_i = of_i
    label_j, weight_j, a_j, b_j, c_j, log_negative_j, log_positive_j = of_j
    same = label_i[:, None] == label_j[None, :]
    if PLAIN:
        to_negatives = a_i[:, None] * weight_j[None, :] + weight_i[:, None] * a_j[None, :]
        h = tl.exp2(scores) * tl.where(same, b_i[:, None] + b_j[None, :], to_negatives)
    else:
        h = _weighted_probability(
            a_i[:, None], log_negative_i[:, None], b_i[:, None], log_positive_i[:, None],
            scores, weight_j[None, :], same,
        )  # fmt: skip
        h += _weighted_probability(
            a_j[None, :], log_negative_j[None, :], b_j[None, :], log_positive_j[None, :],
            scores, weight_i[:, None], same,
        )  # fmt: skip
    if with_sum:
        h += tl.where(same, c_i[:, None] + c_j[None, :], 0.0)
    return h


@triton.jit(do_not_specialize=SIZES)
def gradient_of_slices(
    rows, labels, log_weights, num_weights, negative, positive, grads, largest, result, log2_scale, scale,
    num_rows, num_anchors, num_grads, width, result_width, with_sum,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, PLAIN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The whole backward pass of BD gradient columns of BM rows. Every slice of columns recomputes the scores."""
    d0 = tl.program_id(0) * BD  # only the first dimension of a grid may exceed 65535
    i0 = tl.program_id(1) * BM
    i = i0 + tl.arange(0, BM)
    inverse = _inverse_magnitude(largest, HALF)
    of_i = _coefficients(
        labels, log_weights, num_weights, negative, positive, grads, inverse, i, num_rows, num_anchors, -3, PLAIN
    )
    gradient = tl.zeros((BM, BD), tl.float32)
    for j0 in range(0, num_rows, BN):
        scores = inner_products(rows, rows, i0, j0, num_rows, width, BM, BN, BK, False, DTYPE, PRECISION)
        j = j0 + tl.arange(0, BN)
        of_j = _coefficients(
            labels, log_weights, num_weights, negative, positive, grads, inverse, j, num_rows, num_anchors, -2, PLAIN
        )
        h = _h(scores * log2_scale, of_i, of_j, with_sum, PLAIN)
        h = tl.where(i[:, None] == j[None, :], 0.0, h)
        rows_j = block(rows, j0, d0, num_rows, width, BN, BD, False).to(DTYPE)
        gradient = tl.dot(h.to(DTYPE), rows_j, gradient, input_precision=PRECISION)
    d = d0 + tl.arange(0, BD)
    inside = (i[:, None] < num_grads) & (d[None, :] < result_width)
    tl.store(result + i[:, None].to(tl.int64) * result_width + d[None, :], gradient * (scale / inverse), mask=inside)


def _largest_gradient(grads: Tensor, product_dtype: torch.dtype) -> Tensor:
    """The largest magnitude, by which H is scaled to what half precision holds. Not read in other precisions."""
    return torch.linalg.vector_norm(grads, math.inf) if is_half(product_dtype) else grads


def small(rows: Tensor, comparison: Comparison, upstream: Upstream) -> Tensor:
    """The gradient of at most `config.SMALL_ROWS` rows."""
    labels, log_weights, scale, _, num_grads, with_sum, product_dtype = comparison
    negative, positive, grads = (tensor.contiguous() for tensor in upstream)
    num_rows, width = rows.shape
    tile = tile_for(rows, comparison, "small")
    operand = operand_of(rows, rows.dtype)
    result = rows.new_empty(num_grads, width)
    gradient_of_slices[(triton.cdiv(width, tile.slice), triton.cdiv(num_grads, tile.rows))](
        operand,
        labels,
        *weights_pointer(rows, log_weights),
        negative,
        positive,
        grads,
        _largest_gradient(grads, product_dtype),
        result,
        scale * LOG2E.value,
        scale,
        num_rows,
        negative.shape[0],
        num_grads,
        operand.shape[1],
        width,
        int(with_sum),
        BD=tile.slice,
        HALF=is_half(product_dtype),
        **product_constants(tile, comparison),
    )
    return result


@triton.jit(do_not_specialize=SIZES)
def coefficients_of_rows(
    labels, log_weights, num_weights, negative, positive, grads, largest, table, num_rows, num_anchors,
    HEIGHT: tl.constexpr, PLAIN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Computes `_coefficients` once for all tiles. table: (6, R), in the same order, without the labels."""
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
def _store_h(
    scores, labels, table, workspace, workspace_stride, row, column, i0, j0, num_rows, with_sum,
    BM: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr, DTYPE: tl.constexpr,
    PLAIN: tl.constexpr,
):  # fmt: skip
    """Stores H for WIDTH columns, PART columns at a time: all coefficients at once would exhaust the registers."""
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
        if TMA:
            workspace.store([row, column], h.to(DTYPE))
        else:
            rows = (row + tl.arange(0, BM)).to(tl.int64)
            columns = column + tl.arange(0, WIDTH)
            tl.store(workspace + rows[:, None] * workspace_stride + columns[None, :], h.to(DTYPE))


@triton.jit(do_not_specialize=SIZES)
def h_of_tiles(
    left, right, labels, table, workspace, log2_scale, first_i, first_j, num_rows, width, num_i, workspace_stride,
    with_sum,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Writes a tile of H, rounded, to the workspace."""
    row = tl.program_id(0) % num_i * BM
    column = tl.program_id(0) // num_i * BN
    i0 = first_i + row
    j0 = first_j + column
    scores = inner_products(left, right, i0, j0, num_rows, width, BM, BN, BK, TMA, DTYPE, PRECISION)
    _store_h(
        scores * log2_scale, labels, table, workspace, workspace_stride, row, column, i0, j0, num_rows, with_sum,
        BM, BN, PART, TMA, DTYPE, PLAIN,
    )  # fmt: skip


def _coefficient_table(rows: Tensor, comparison: Comparison, upstream: Upstream, largest: Tensor) -> Tensor:
    """(6, R), see `coefficients_of_rows`."""
    table = rows.new_empty(6, rows.shape[0])
    coefficients_of_rows[(triton.cdiv(rows.shape[0], 256),)](
        comparison.labels,
        *weights_pointer(rows, comparison.log_weights),
        *(tensor.contiguous() for tensor in upstream),
        largest,
        table,
        rows.shape[0],
        upstream.negative.shape[0],
        HEIGHT=256,
        PLAIN=comparison.scale <= _numerics.PLAIN_SCALE,
        HALF=is_half(comparison.product_dtype),
        **FUSED,
    )
    return table


def tiled(rows: Tensor, comparison: Comparison, upstream: Upstream) -> Tensor:
    """The gradient of any number of rows, through a workspace of H."""
    labels, _, scale, _, num_grads, with_sum, product_dtype = comparison
    num_rows, width = rows.shape
    num_anchors = upstream.negative.shape[0]
    largest = _largest_gradient(upstream.grads, product_dtype)
    tile = tile_for(rows, comparison, "backward")
    constants = product_constants(tile, comparison)
    table = _coefficient_table(rows, comparison, upstream, largest)
    operand = operand_of(rows, product_dtype)
    blocks = blocks_of(operand, (tile.rows, tile.depth), (tile.columns, tile.depth))
    factor = operand[:, :width]
    # H is zero between rows that are no anchors, and of no use between rows whose gradient is not wanted.
    wanted_rows = min(num_anchors, num_grads)
    height, breadth = workspace_shape(num_rows, wanted_rows, tile, product_dtype)
    workspace = rows.new_empty(height, breadth, dtype=product_dtype)
    one_block = wanted_rows == num_grads <= height and num_rows <= breadth
    result = rows.new_empty(0) if one_block else rows.new_zeros(num_grads, width)
    for top in range(0, wanted_rows, height):
        i = slice(top, min(top + height, wanted_rows))
        for left in range(top, num_rows, breadth):
            j = slice(left, min(left + breadth, num_rows))
            num_i, num_j = triton.cdiv(i.stop - top, tile.rows), triton.cdiv(j.stop - left, tile.columns)
            h_of_tiles[(num_i * num_j,)](
                *blocks,
                labels,
                table,
                *blocks_of(workspace, (tile.rows, tile.part)),
                scale * LOG2E.value,
                top,
                left,
                num_rows,
                operand.shape[1],
                num_i,
                breadth,
                int(with_sum),
                PART=tile.part,
                TMA=descriptors(rows),
                **constants,
            )
            h = workspace[: i.stop - top, : j.stop - left]
            if one_block:
                result = _numerics.widening_product(h, factor)
                break
            _numerics.accumulate(result[i], h, factor[j])
            new = slice(max(i.stop, left), min(j.stop, num_grads))  # columns that are not rows of this band too
            if new.start < new.stop:
                _numerics.accumulate(result[new], h[:, new.start - left : new.stop - left].T, factor[i])
    # Kept out of H, which half precision would round to zero.
    return result.mul_(largest.clamp_min(1e-30) * (scale / HALF_MAGNITUDE.value) if is_half(product_dtype) else scale)
