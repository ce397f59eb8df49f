"""Launches of the backward pass."""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call"

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from spcl_loss._similarity import launch
from spcl_loss._similarity.backward_kernels import (
    coefficients_of_rows,
    gradient_of_rows,
    gradient_of_slices,
    h_of_tiles,
)
from spcl_loss._similarity.formats import HALF_MAGNITUDE, PLAIN_SCALE, accumulate
from spcl_loss._similarity.operands import (
    FUSED,
    LOG2E,
    blocks_of,
    dense_labels,
    descriptors,
    is_half,
    label_ranges,
    operand_of,
    product_constants,
    tile_for,
    weights_pointer,
)


def upstream_of(negative: Tensor, positive: Tensor, grads: Tensor, product_dtype: torch.dtype) -> list[Tensor]:
    """What the backward pass is given, and the largest gradient, which brings H to a size that half precision holds."""
    largest = torch.linalg.vector_norm(grads, math.inf) if is_half(product_dtype) else grads
    return [negative.contiguous(), positive.contiguous(), grads.contiguous(), largest]


def small_gradient(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_grads: int,
    with_sum: bool,
    upstream: list[Tensor],
    product_dtype: torch.dtype,
) -> Tensor:
    num_rows, width = rows.shape
    tile = tile_for(rows, product_dtype, "small")
    result = rows.new_empty(num_grads, width)
    gradient_of_slices[(triton.cdiv(num_grads, tile.rows), triton.cdiv(width, tile.part))](
        rows.contiguous(),
        labels,
        *weights_pointer(rows, log_weights),
        *upstream,
        result,
        scale * LOG2E,
        scale,
        num_rows,
        upstream[0].shape[0],
        num_grads,
        width,
        width,
        int(with_sum),
        BD=tile.part,
        HALF=is_half(product_dtype),
        **product_constants(tile, product_dtype, scale),
    )
    return result


def large_gradient(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_grads: int,
    with_sum: bool,
    upstream: list[Tensor],
    product_dtype: torch.dtype,
) -> Tensor:
    num_anchors = upstream[0].shape[0]
    plain = scale <= PLAIN_SCALE
    table = rows.new_empty(6, rows.shape[0])
    coefficients_of_rows[(triton.cdiv(rows.shape[0], 256),)](
        labels,
        *weights_pointer(rows, log_weights),
        *upstream,
        table,
        rows.shape[0],
        num_anchors,
        HEIGHT=256,
        PLAIN=plain,
        HALF=is_half(product_dtype),
        **FUSED,
    )
    narrow = plain and is_half(product_dtype) and rows.shape[1] <= launch.NARROW
    compute = _narrow_gradient if narrow and rows.shape[0] >= launch.NARROW_ROWS else _wide_gradient
    labels = dense_labels(labels)
    return compute(rows, labels, table, upstream[3], scale, num_anchors, num_grads, with_sum, product_dtype)


def _narrow_gradient(
    rows: Tensor,
    labels: Tensor,
    table: Tensor,
    largest: Tensor,
    scale: float,
    num_anchors: int,
    num_grads: int,
    with_sum: bool,
    product_dtype: torch.dtype,
) -> Tensor:
    num_rows, width = rows.shape
    kernel, held = launch.narrow_kernel(width)
    tile = tile_for(rows, product_dtype, kernel)
    operand = operand_of(rows, product_dtype)
    result = rows.new_empty(num_grads, width)
    constants = product_constants(tile, product_dtype, scale)
    del constants["BK"]
    gradient_of_rows[(triton.cdiv(num_grads, tile.rows),)](
        *blocks_of(operand, (tile.rows, held), (tile.columns, held)),
        labels,
        table,
        largest,
        result,
        scale * LOG2E,
        scale,
        num_rows,
        num_anchors,
        num_grads,
        width,
        operand.stride(0),
        int(with_sum),
        BD=held,
        TMA=descriptors(rows),
        HALF=True,
        **constants,
    )
    return result


def _wide_gradient(
    rows: Tensor,
    labels: Tensor,
    table: Tensor,
    largest: Tensor,
    scale: float,
    num_anchors: int,
    num_grads: int,
    with_sum: bool,
    product_dtype: torch.dtype,
) -> Tensor:
    tile = tile_for(rows, product_dtype, "backward" if scale <= PLAIN_SCALE else "backward_steep")
    num_rows, width = rows.shape
    operand = operand_of(rows, product_dtype)
    blocks = blocks_of(operand, (tile.rows, tile.depth), (tile.columns, tile.depth))
    factor = operand[:, :width]
    ranges = label_ranges(labels, tile)
    result = rows.new_zeros(num_grads, width)
    # H is zero between rows that are no anchors, and of no use between rows whose gradient is not wanted.
    wanted_rows = min(num_anchors, num_grads)
    height, breadth = launch.workspace_shape(num_rows, wanted_rows, tile, product_dtype)
    workspace = rows.new_empty(height, breadth, dtype=product_dtype)
    for top in range(0, wanted_rows, height):
        i = slice(top, min(top + height, wanted_rows))
        for left in range(top, num_rows, breadth):
            j = slice(left, min(left + breadth, num_rows))
            num_i, num_j = triton.cdiv(i.stop - top, tile.rows), triton.cdiv(j.stop - left, tile.columns)
            h_of_tiles[(num_i * num_j,)](
                *blocks,
                labels,
                ranges,
                table,
                *blocks_of(workspace, (tile.rows, tile.part), (tile.rows, min(2 * tile.part, tile.columns))),
                scale * LOG2E,
                top,
                left,
                num_rows,
                width,
                operand.stride(0),
                num_i,
                breadth,
                int(with_sum),
                PART=tile.part,
                TMA=descriptors(rows),
                **product_constants(tile, product_dtype, scale),
            )
            h = workspace[: i.stop - top, : j.stop - left]
            accumulate(result[i], h, factor[j])
            new = slice(max(i.stop, left), min(j.stop, num_grads))  # columns that are not rows of this strip too
            if new.start < new.stop:
                accumulate(result[new], h[:, new.start - left : new.stop - left].T, factor[i])
    # Kept out of H, which half precision would round to zero.
    return result.mul_(largest.clamp_min(1e-30) * (scale / HALF_MAGNITUDE) if is_half(product_dtype) else scale)
