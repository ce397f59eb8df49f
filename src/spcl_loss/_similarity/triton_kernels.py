"""The operator in Triton kernels, for CUDA devices, and for CPU tensors under Triton's interpreter: the launches.

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

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from spcl_loss._similarity import launch
from spcl_loss._similarity.backward_kernels import (
    HALF_MAGNITUDE,
    coefficients_of_rows,
    gradient_of_rows,
    gradient_of_slices,
    h_of_tiles,
)
from spcl_loss._similarity.dense import LOG_ZERO
from spcl_loss._similarity.forward_kernels import add_parts, statistics_of_rows, statistics_of_tiles
from spcl_loss._similarity.launch import Tile
from spcl_loss._similarity.products import accumulate

# As in `strips`: up to here exponentials fit float32 as they are.
_PLAIN_SCALE = 40.0
_LOG2E = math.log2(math.e)

Statistics = tuple[Tensor, Tensor, Tensor]


def statistics(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_anchors: int,
    with_sum: bool,
    product_dtype: torch.dtype,
) -> Statistics:
    """The forward pass; see `spcl_loss._similarity.contrast_statistics`."""
    if num_anchors == 0:
        return rows.new_empty(0), rows.new_empty(0), rows.new_empty(0)
    compute = _small_statistics if rows.shape[0] <= launch.SMALL_ROWS else _large_statistics
    with torch.cuda.device_of(rows):
        if rows.shape[0] < launch.SORTED_ROWS:
            return compute(rows, labels, log_weights, scale, num_anchors, with_sum, product_dtype)
        order, place = _class_order(labels, num_anchors)
        weights = None if log_weights is None else log_weights[order]
        found = compute(rows[order], labels[order], weights, scale, num_anchors, with_sum, product_dtype)
        place = place[:num_anchors]
        return found[0][place], found[1][place], found[2][place]


def gradient(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_grads: int,
    with_sum: bool,
    negative: Tensor,
    positive: Tensor,
    grads: Tensor,
    product_dtype: torch.dtype,
) -> Tensor:
    """The backward pass: d loss / d rows (num_grads, D), from the statistics and their gradients (3, A)."""
    if negative.shape[0] == 0 or num_grads == 0:
        return rows.new_zeros(num_grads, rows.shape[1])
    with torch.cuda.device_of(rows):
        if rows.shape[0] <= launch.SMALL_ROWS:
            upstream = _upstream(negative, positive, grads, product_dtype)
            return _small_gradient(rows, labels, log_weights, scale, num_grads, with_sum, upstream, product_dtype)
        if rows.shape[0] < launch.SORTED_ROWS:
            upstream = _upstream(negative, positive, grads, product_dtype)
            return _large_gradient(rows, labels, log_weights, scale, num_grads, with_sum, upstream, product_dtype)
        order, place = _class_order(labels, *sorted({min(num_grads, negative.shape[0]), negative.shape[0]}))
        weights = None if log_weights is None else log_weights[order]
        anchors = order[: negative.shape[0]]
        upstream = _upstream(negative[anchors], positive[anchors], grads[:, anchors], product_dtype)
        result = _large_gradient(
            rows[order], labels[order], weights, scale, num_grads, with_sum, upstream, product_dtype
        )
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


def _label_ranges(labels: Tensor, tile: Tile) -> Tensor:
    """(2, groups) the least and the greatest label of each group of rows; see `agreement` in `tile_kernels`."""
    group = min(tile.rows, tile.columns)
    groups = torch.nn.functional.pad(labels, (0, -labels.shape[0] % group), value=-2).view(-1, group)
    return torch.stack([groups.amin(1), groups.amax(1)])


def _upstream(negative: Tensor, positive: Tensor, grads: Tensor, product_dtype: torch.dtype) -> list[Tensor]:
    """What the backward pass is given, and the largest gradient, which brings H to a size that half precision holds."""
    largest = torch.linalg.vector_norm(grads, math.inf) if _is_half(product_dtype) else grads
    return [negative.contiguous(), positive.contiguous(), grads.contiguous(), largest]


def _large_gradient(
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
    plain = scale <= _PLAIN_SCALE
    table = rows.new_empty(6, rows.shape[0])
    coefficients_of_rows[(triton.cdiv(rows.shape[0], 256),)](
        labels,
        *_weights(rows, log_weights),
        *upstream,
        table,
        rows.shape[0],
        num_anchors,
        HEIGHT=256,
        PLAIN=plain,
        HALF=_is_half(product_dtype),
    )
    narrow = plain and _is_half(product_dtype) and rows.shape[1] <= launch.NARROW
    compute = _narrow_gradient if narrow and rows.shape[0] >= launch.NARROW_ROWS else _wide_gradient
    labels = _dense_labels(labels)
    return compute(rows, labels, table, upstream[3], scale, num_anchors, num_grads, with_sum, product_dtype)


def _small_statistics(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_anchors: int,
    with_sum: bool,
    product_dtype: torch.dtype,
) -> Statistics:
    tile = _tile(rows, product_dtype, "small")
    outputs = rows.new_empty(num_anchors), rows.new_empty(num_anchors), rows.new_empty(num_anchors)
    statistics_of_rows[(triton.cdiv(num_anchors, tile.rows),)](
        rows.contiguous(),
        labels,
        *_weights(rows, log_weights),
        *outputs,
        scale * _LOG2E,
        rows.shape[0],
        num_anchors,
        rows.shape[1],
        rows.shape[1],
        int(with_sum),
        **product_constants(tile, product_dtype, scale),
    )
    return outputs


def _large_statistics(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_anchors: int,
    with_sum: bool,
    product_dtype: torch.dtype,
) -> Statistics:
    tile = _tile(rows, product_dtype, "forward" if scale <= _PLAIN_SCALE else "forward_steep")
    constants = product_constants(tile, product_dtype, scale)
    plain = constants["PLAIN"]
    totals = rows.new_zeros(3, num_anchors)
    if not plain:
        totals[:2] = -math.inf
    operand = _operand(rows, product_dtype)
    blocks = _blocks(operand, (tile.rows, tile.depth), (tile.columns, tile.depth))
    weights = _candidate_weights(rows, labels, log_weights, plain)
    labels = _dense_labels(labels)
    ranges = _label_ranges(labels, tile)
    num_rows, width = rows.shape
    for first, height in _strips(num_rows, num_anchors, tile):
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
            scale * _LOG2E,
            first,
            num_rows,
            num_anchors,
            width,
            operand.stride(0),
            num_i,
            num_j,
            int(with_sum),
            PART=tile.part,
            TMA=_descriptors(rows),
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
                )
    negative, positive = ((log.log() if plain else log / _LOG2E).clamp_min(LOG_ZERO) for log in totals[:2])
    return negative, positive, totals[2] / _LOG2E


def _small_gradient(
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
    tile = _tile(rows, product_dtype, "small")
    result = rows.new_empty(num_grads, width)
    gradient_of_slices[(triton.cdiv(num_grads, tile.rows), triton.cdiv(width, tile.part))](
        rows.contiguous(),
        labels,
        *_weights(rows, log_weights),
        *upstream,
        result,
        scale * _LOG2E,
        scale,
        num_rows,
        upstream[0].shape[0],
        num_grads,
        width,
        width,
        int(with_sum),
        BD=tile.part,
        HALF=_is_half(product_dtype),
        **product_constants(tile, product_dtype, scale),
    )
    return result


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
    tile = _tile(rows, product_dtype, kernel)
    operand = _operand(rows, product_dtype)
    result = rows.new_empty(num_grads, width)
    constants = product_constants(tile, product_dtype, scale)
    del constants["BK"]
    gradient_of_rows[(triton.cdiv(num_grads, tile.rows),)](
        *_blocks(operand, (tile.rows, held), (tile.columns, held)),
        labels,
        table,
        largest,
        result,
        scale * _LOG2E,
        scale,
        num_rows,
        num_anchors,
        num_grads,
        width,
        operand.stride(0),
        int(with_sum),
        BD=held,
        TMA=_descriptors(rows),
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
    tile = _tile(rows, product_dtype, "backward" if scale <= _PLAIN_SCALE else "backward_steep")
    num_rows, width = rows.shape
    operand = _operand(rows, product_dtype)
    blocks = _blocks(operand, (tile.rows, tile.depth), (tile.columns, tile.depth))
    factor = operand[:, :width]
    ranges = _label_ranges(labels, tile)
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
                *_blocks(workspace, (tile.rows, tile.part), (tile.rows, min(2 * tile.part, tile.columns))),
                scale * _LOG2E,
                top,
                left,
                num_rows,
                width,
                operand.stride(0),
                num_i,
                breadth,
                int(with_sum),
                PART=tile.part,
                TMA=_descriptors(rows),
                **product_constants(tile, product_dtype, scale),
            )
            h = workspace[: i.stop - top, : j.stop - left]
            accumulate(result[i], h, factor[j])
            new = slice(max(i.stop, left), min(j.stop, num_grads))  # columns that are not rows of this strip too
            if new.start < new.stop:
                accumulate(result[new], h[:, new.start - left : new.stop - left].T, factor[i])
    # Kept out of H, which half precision would round to zero.
    return result.mul_(largest.clamp_min(1e-30) * (scale / HALF_MAGNITUDE.value) if _is_half(product_dtype) else scale)


def product_constants(tile: Tile, product_dtype: torch.dtype, scale: float) -> dict[str, Any]:
    """What every kernel with a product is specialised on."""
    names = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    precision = launch.precision(product_dtype)
    return {
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth,
        "DTYPE": names[product_dtype],
        "PRECISION": "ieee" if precision == "ieee" else "tf32",
        "PLAIN": scale <= _PLAIN_SCALE,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _is_half(product_dtype: torch.dtype) -> bool:
    return product_dtype != torch.float32


def _tile(rows: Tensor, product_dtype: torch.dtype, kernel: str) -> Tile:
    return launch.TILES[launch.architecture(rows.device)][launch.precision(product_dtype)][kernel]


def _descriptors(rows: Tensor) -> bool:
    return launch.has_tensor_descriptors(launch.architecture(rows.device))


def _operand(rows: Tensor, product_dtype: torch.dtype) -> Tensor:
    """The rows in the products' dtype, each beginning at a multiple of 16 bytes, as the copy engine asks."""
    padding = -rows.shape[1] % (16 // product_dtype.itemsize)
    return torch.nn.functional.pad(rows.to(product_dtype), (0, padding)).contiguous()


def _blocks(matrix: Tensor, *shapes: tuple[int, int]) -> tuple[Any, ...]:
    """The matrix as each of a kernel's loads and stores wants it."""
    if not _descriptors(matrix):
        return (matrix,) * len(shapes)
    return tuple(TensorDescriptor.from_tensor(matrix, list(shape)) for shape in shapes)


def _dense_labels(labels: Tensor) -> Tensor:
    """The same classes in 32 bits, which compare in one instruction: each row's first place in sorted order."""
    return torch.searchsorted(labels.sort().values, labels, out_int32=True).masked_fill_(labels < 0, -1)


def _weights(rows: Tensor, log_weights: Tensor | None) -> tuple[Tensor, int]:
    """A pointer, and how many weights are to be read there."""
    return (rows, 0) if log_weights is None else (log_weights.contiguous(), rows.shape[0])


def _candidate_weights(rows: Tensor, labels: Tensor, log_weights: Tensor | None, plain: bool) -> Tensor:
    """(R,) what `candidate` computes, once for all tiles."""
    logs = rows.new_zeros(rows.shape[0]) if log_weights is None else log_weights
    logs = logs.masked_fill(labels < 0, -math.inf)
    return logs.exp() if plain else logs * _LOG2E


def _strips(num_rows: int, num_anchors: int, tile: Tile) -> list[tuple[int, int]]:
    """First row and height of the strips whose partial results are kept at a time."""
    budget = launch.WORKSPACE_BYTES // (12 * num_rows)  # blocks of rows
    step = max(tile.rows, tile.columns)
    height = max(step, min(launch.STRIP_ROWS, budget * tile.rows) // step * step)
    return [(first, min(height, num_anchors - first)) for first in range(0, num_anchors, height)]
