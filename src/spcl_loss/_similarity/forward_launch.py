"""Launches of the forward pass."""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call"

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from spcl_loss._similarity import launch
from spcl_loss._similarity.contrast import Statistics
from spcl_loss._similarity.dense import LOG_ZERO
from spcl_loss._similarity.formats import PLAIN_SCALE
from spcl_loss._similarity.forward_kernels import add_parts, statistics_of_rows, statistics_of_tiles
from spcl_loss._similarity.launch import Tile
from spcl_loss._similarity.operands import (
    FUSED,
    LOG2E,
    blocks_of,
    candidate_weights,
    dense_labels,
    descriptors,
    label_ranges,
    operand_of,
    product_constants,
    tile_for,
    weights_pointer,
)


def small_statistics(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_anchors: int,
    with_sum: bool,
    product_dtype: torch.dtype,
) -> Statistics:
    tile = tile_for(rows, product_dtype, "small")
    outputs = rows.new_empty(num_anchors), rows.new_empty(num_anchors), rows.new_empty(num_anchors)
    statistics_of_rows[(triton.cdiv(num_anchors, tile.rows),)](
        rows.contiguous(),
        labels,
        *weights_pointer(rows, log_weights),
        *outputs,
        scale * LOG2E,
        rows.shape[0],
        num_anchors,
        rows.shape[1],
        rows.shape[1],
        int(with_sum),
        **product_constants(tile, product_dtype, scale),
    )
    return outputs


def large_statistics(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_anchors: int,
    with_sum: bool,
    product_dtype: torch.dtype,
) -> Statistics:
    tile = tile_for(rows, product_dtype, "forward" if scale <= PLAIN_SCALE else "forward_steep")
    constants = product_constants(tile, product_dtype, scale)
    plain = constants["PLAIN"]
    totals = rows.new_zeros(3, num_anchors)
    if not plain:
        totals[:2] = -math.inf
    operand = operand_of(rows, product_dtype)
    blocks = blocks_of(operand, (tile.rows, tile.depth), (tile.columns, tile.depth))
    weights = candidate_weights(rows, labels, log_weights, plain)
    labels = dense_labels(labels)
    ranges = label_ranges(labels, tile)
    num_rows, width = rows.shape
    for first, height in strips(num_rows, num_anchors, tile):
        num_i, num_j = triton.cdiv(height, tile.rows), triton.cdiv(num_rows - first, tile.columns)
        row_parts = rows.new_empty(3, num_j, num_i * tile.rows)
        column_parts = rows.new_empty(3, num_i, num_j * tile.columns)
        statistics_of_tiles[(num_i * num_j,)](
            *blocks,
            labels,
            ranges,
            weights,
            row_parts,
            column_parts,
            scale * LOG2E,
            first,
            num_rows,
            num_anchors,
            width,
            operand.stride(0),
            num_i,
            num_j,
            int(with_sum),
            PART=tile.part,
            TMA=descriptors(rows),
            **constants,
        )
        # The sum of scores is added as a sum even where the other two are logarithms.
        for statistic, count, as_sums in ((0, 2, plain), (2, int(with_sum), True)):
            if count:
                add_parts[(triton.cdiv(num_anchors - first, 32), count)](
                    row_parts,
                    column_parts,
                    totals,
                    statistic,
                    first,
                    num_anchors,
                    num_i,
                    num_j,
                    BM=tile.rows,
                    BN=tile.columns,
                    WIDTH=32,
                    PARTS=64,
                    PLAIN=as_sums,
                    **FUSED,
                )
    negative, positive = ((log.log() if plain else log / LOG2E).clamp_min(LOG_ZERO) for log in totals[:2])
    return negative, positive, totals[2] / LOG2E


def strips(num_rows: int, num_anchors: int, tile: Tile) -> list[tuple[int, int]]:
    """First row and height of the strips whose partial results are kept at a time."""
    budget = launch.WORKSPACE_BYTES // (12 * num_rows)  # blocks of rows
    step = max(tile.rows, tile.columns)
    height = max(step, min(launch.STRIP_ROWS, budget * tile.rows) // step * step)
    return [(first, min(height, num_anchors - first)) for first in range(0, num_anchors, height)]
