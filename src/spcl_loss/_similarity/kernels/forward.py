"""The forward pass: statistics of few rows in one launch, or tile by tile with a second kernel that adds them up."""

# Device code is untyped: Triton reads the source of these functions, and their values have no Python types.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from spcl_loss._numerics import PLAIN_SCALE
from spcl_loss._similarity.comparison import Comparison, Statistics
from spcl_loss._similarity.kernels.config import Tile, forward_bands
from spcl_loss._similarity.kernels.tiles import (
    FUSED,
    LOG2E,
    LOG_ZERO,
    SIZES,
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


@triton.jit
def _reduce(terms, AXIS: tl.constexpr, PLAIN: tl.constexpr):
    """Sum of exponentials, or base-2 logarithm of the sum from base-2 logarithms (-inf where all are)."""
    if PLAIN:
        return tl.sum(terms, AXIS)
    else:
        maximum = tl.max(terms, AXIS)
        maximum = tl.where(maximum == -float("inf"), 0.0, maximum)
        return maximum + tl.log2(tl.sum(tl.exp2(terms - tl.expand_dims(maximum, AXIS)), AXIS))


@triton.jit
def _terms(scores, same, weight, PLAIN: tl.constexpr):
    """The negative and the positive statistic's terms. Scores and weights are base-2 logarithms, or PLAIN numbers."""
    if PLAIN:
        return tl.where(same, 0.0, scores) * weight, tl.where(same, scores, 0.0)
    else:
        return tl.where(same, -float("inf"), scores + weight), tl.where(same, scores, -float("inf"))


@triton.jit
def _add(total, part, PLAIN: tl.constexpr):
    if PLAIN:
        return total + part
    else:
        maximum = tl.maximum(total, part)
        maximum = tl.where(maximum == -float("inf"), 0.0, maximum)
        return maximum + tl.log2(tl.exp2(total - maximum) + tl.exp2(part - maximum))


@triton.jit
def _natural_log(total, PLAIN: tl.constexpr):
    log_sum = (tl.log2(total) if PLAIN else total) / LOG2E
    return tl.where(log_sum < LOG_ZERO, LOG_ZERO, log_sum)  # not tl.maximum: a NaN has to come through


@triton.jit(do_not_specialize=SIZES)
def statistics_of_few_rows(
    rows, labels, log_weights, num_weights, negatives, positives, positive_sums, log2_scale, num_rows, num_anchors,
    width, with_sum,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """The whole forward pass of BM anchors, which meet all candidates. Outputs: (A,) each."""
    i0 = tl.program_id(0) * BM
    i = i0 + tl.arange(0, BM)
    label_i = tl.load(labels + i, mask=i < num_rows, other=-3)
    negative = tl.full((BM,), 0.0 if PLAIN else -float("inf"), tl.float32)
    positive = tl.full((BM,), 0.0 if PLAIN else -float("inf"), tl.float32)
    positive_sum = tl.zeros((BM,), tl.float32)
    for j0 in range(0, num_rows, BN):
        products = inner_products(rows, rows, i0, j0, num_rows, width, BM, BN, BK, False, DTYPE, PRECISION)
        j = j0 + tl.arange(0, BN)
        label_j, weight = candidate(labels, log_weights, num_weights, j, num_rows, -2, PLAIN)
        same = label_i[:, None] == label_j[None, :]
        itself = i[:, None] == j[None, :]
        scores = tl.where(itself, -float("inf"), products * log2_scale)
        if with_sum:
            positive_sum += tl.sum(tl.where(same & (scores != -float("inf")), scores, 0.0), 1)
        if PLAIN:
            scores = tl.exp2(scores)
        of_negatives, of_positives = _terms(scores, same, weight[None, :], PLAIN)
        negative = _add(negative, _reduce(of_negatives, 1, PLAIN), PLAIN)
        positive = _add(positive, _reduce(of_positives, 1, PLAIN), PLAIN)
    mine = i < num_anchors
    tl.store(negatives + i, _natural_log(negative, PLAIN), mask=mine)
    tl.store(positives + i, _natural_log(positive, PLAIN), mask=mine)
    tl.store(positive_sums + i, positive_sum / LOG2E, mask=mine)


def small(rows: Tensor, comparison: Comparison) -> Statistics:
    """The statistics of at most `config.SMALL_ROWS` rows."""
    labels, log_weights, scale, num_anchors, _, with_sum, _ = comparison
    tile = tile_for(rows, comparison, "small")
    operand = operand_of(rows, rows.dtype)
    outputs = rows.new_empty(num_anchors), rows.new_empty(num_anchors), rows.new_empty(num_anchors)
    statistics_of_few_rows[(triton.cdiv(num_anchors, tile.rows),)](
        operand,
        labels,
        *weights_pointer(rows, log_weights),
        *outputs,
        scale * LOG2E.value,
        rows.shape[0],
        num_anchors,
        operand.shape[1],
        int(with_sum),
        **product_constants(tile, comparison),
    )
    return outputs


@triton.jit
def _label_agreement(ranges, i0, j0, num_rows, BM: tl.constexpr, BN: tl.constexpr):
    """Returns (all pairs of a tile share a label, no pair does); both are False if undecided.

    ranges: see `describe_rows`.
    """
    GROUP: tl.constexpr = BM if BM < BN else BN
    least_i, greatest_i = _label_range(ranges, i0, num_rows, BM, GROUP)
    least_j, greatest_j = _label_range(ranges, j0, num_rows, BN, GROUP)
    all_agree = (least_i == greatest_i) & (least_j == greatest_j) & (least_i == least_j)
    return all_agree, (greatest_i < least_j) | (greatest_j < least_i)


@triton.jit
def _label_range(ranges, first, num_rows, HEIGHT: tl.constexpr, GROUP: tl.constexpr):
    num_groups = tl.cdiv(num_rows, GROUP)
    group = first // GROUP + tl.arange(0, HEIGHT // GROUP)
    least = tl.load(ranges + group, mask=group < num_groups, other=-2)
    greatest = tl.load(ranges + num_groups + group, mask=group < num_groups, other=-2)
    return tl.min(least, 0), tl.max(greatest, 0)


@triton.jit(do_not_specialize=SIZES)
def describe_rows(
    labels, log_weights, num_weights, ranges, weights, num_rows, GROUP: tl.constexpr, PLAIN: tl.constexpr
):  # fmt: skip
    """Describes GROUP rows once for all tiles.

    ranges: (2, groups) the least and the greatest label of each group of rows.
    weights: (R,) see `candidate`.
    """
    group = tl.program_id(0)
    index = group * GROUP + tl.arange(0, GROUP)
    inside = index < num_rows
    label, weight = candidate(labels, log_weights, num_weights, index, num_rows, -2, PLAIN)
    tl.store(weights + index, weight, mask=inside)
    tl.store(ranges + group, tl.min(label, 0))
    tl.store(ranges + tl.cdiv(num_rows, GROUP) + group, tl.max(label, 0))


def _described_rows(rows: Tensor, comparison: Comparison, tile: Tile) -> tuple[Tensor, Tensor]:
    """`ranges` and `weights`; see `describe_rows`."""
    group = min(tile.rows, tile.columns)
    num_groups = triton.cdiv(rows.shape[0], group)
    ranges, weights = comparison.labels.new_empty(2, num_groups), rows.new_empty(rows.shape[0])
    describe_rows[(num_groups,)](
        comparison.labels,
        *weights_pointer(rows, comparison.log_weights),
        ranges,
        weights,
        rows.shape[0],
        GROUP=group,
        PLAIN=comparison.scale <= PLAIN_SCALE,
        **FUSED,
    )
    return ranges, weights


@triton.jit
def _store_columns(
    scores, labels, weights, column, column_stat, i0, j0, num_rows, num_anchors, with_sum,
    BM: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Stores the partial statistics of WIDTH columns of a tile, and returns those of its rows.

    Processes PART columns at a time: keeping every column's label and weight live would exhaust the registers.
    """
    if WIDTH > PART:
        half: tl.constexpr = WIDTH // 2
        left, right = halves(scores, BM, WIDTH)
        negative, positive, positive_sum = _store_columns(
            left, labels, weights, column, column_stat, i0, j0, num_rows, num_anchors, with_sum, BM, half, PART, PLAIN
        )
        of_right = _store_columns(
            right, labels, weights, column + half, column_stat, i0, j0 + half, num_rows, num_anchors, with_sum,
            BM, half, PART, PLAIN,
        )  # fmt: skip
        return _add(negative, of_right[0], PLAIN), _add(positive, of_right[1], PLAIN), positive_sum + of_right[2]
    else:
        at = tl.arange(0, WIDTH)
        i = i0 + tl.arange(0, BM)
        j = j0 + at
        if j0 < i0 + BM:
            scores = tl.where(i[:, None] < j[None, :], scores, -float("inf"))
        label_i = tl.load(labels + i, mask=i < num_rows, other=-3)
        label_j = tl.load(labels + j, mask=j < num_rows, other=-2)
        weight_i = tl.load(weights + i, mask=i < num_rows, other=0.0 if PLAIN else -float("inf"))
        weight_j = tl.load(weights + j, mask=j < num_rows, other=0.0 if PLAIN else -float("inf"))
        same = label_i[:, None] == label_j[None, :]
        positive_sum = tl.zeros((BM,), tl.float32)
        if with_sum:
            of_positives = tl.where(same & (scores != -float("inf")), scores, 0.0)
            positive_sum = tl.sum(of_positives, 1)
            tl.store(column + 2 * column_stat + at, tl.sum(of_positives, 0))
        if PLAIN:
            scores = tl.exp2(scores)
        if j0 < num_anchors:
            of_columns = _terms(scores, same, weight_i[:, None], PLAIN)
            tl.store(column + at, _reduce(of_columns[0], 0, PLAIN))
            tl.store(column + column_stat + at, _reduce(of_columns[1], 0, PLAIN))
        of_rows = _terms(scores, same, weight_j[None, :], PLAIN)
        return _reduce(of_rows[0], 1, PLAIN), _reduce(of_rows[1], 1, PLAIN), positive_sum


@triton.jit
def _store_uniform(
    scores, weights, column, column_stat, i0, j0, num_rows, agree, with_sum,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """`_store_columns`, PLAIN, for a whole tile of pairs i < j that all share their label (`agree`), or none does."""
    at = tl.arange(0, BN)
    i = i0 + tl.arange(0, BM)
    j = j0 + at
    positive_sum = tl.zeros((BM,), tl.float32)
    if with_sum:
        positive_sum = tl.where(agree, tl.sum(scores, 1), 0.0)
        tl.store(column + 2 * column_stat + at, tl.where(agree, tl.sum(scores, 0), 0.0))
    scores = tl.exp2(scores)
    weight_i = tl.where(agree, 1.0, tl.load(weights + i, mask=i < num_rows, other=0.0))
    weight_j = tl.where(agree, 1.0, tl.load(weights + j, mask=j < num_rows, other=0.0))
    of_columns = tl.sum(scores * weight_i[:, None], 0)
    tl.store(column + at, tl.where(agree, 0.0, of_columns))
    tl.store(column + column_stat + at, tl.where(agree, of_columns, 0.0))
    of_rows = tl.sum(scores * weight_j[None, :], 1)
    return tl.where(agree, 0.0, of_rows), tl.where(agree, of_rows, 0.0), positive_sum


@triton.jit(do_not_specialize=SIZES)
def statistics_of_tiles(
    left, right, labels, ranges, weights, row_parts, column_parts, log2_scale, first, num_rows, num_anchors,
    width, num_i, num_j, with_sum,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Partial statistics of the pairs i < j in one tile, for its rows and for its columns.

    The band begins at row and column `first`. row_parts: (3, num_j, num_i * BM), column_parts:
    (3, num_i, num_j * BN). Tiles without a pair write nothing, and `add_parts` does not read their places.
    `weights` are those of the candidates as negatives (base-2 logarithms unless PLAIN); `ranges`: see `describe_rows`.
    """
    block_i = tl.program_id(0) % num_i  # successive programs share columns, and the band's rows stay in the cache
    block_j = tl.program_id(0) // num_i
    if block_j * BN + BN - 1 > block_i * BM:
        i0 = first + block_i * BM
        j0 = first + block_j * BN
        scores = inner_products(left, right, i0, j0, num_rows, width, BM, BN, BK, TMA, DTYPE, PRECISION)
        row = row_parts + block_j.to(tl.int64) * num_i * BM + block_i * BM + tl.arange(0, BM)
        row_stat = num_j.to(tl.int64) * num_i * BM
        column = column_parts + block_i.to(tl.int64) * num_j * BN + block_j * BN
        column_stat = num_i.to(tl.int64) * num_j * BN
        all_agree, none_agree = _label_agreement(ranges, i0, j0, num_rows, BM, BN)
        if PLAIN and (all_agree | none_agree) & (j0 >= i0 + BM):
            negative, positive, positive_sum = _store_uniform(
                scores * log2_scale, weights, column, column_stat, i0, j0, num_rows, all_agree, with_sum, BM, BN
            )
        else:
            negative, positive, positive_sum = _store_columns(
                scores * log2_scale, labels, weights, column, column_stat, i0, j0, num_rows, num_anchors, with_sum,
                BM, BN, PART, PLAIN,
            )  # fmt: skip
        tl.store(row, negative)
        tl.store(row + row_stat, positive)
        if with_sum:
            tl.store(row + 2 * row_stat, positive_sum)


@triton.jit(do_not_specialize=SIZES)
def add_parts(
    row_parts, column_parts, negatives, positives, positive_sums, first_statistic, first, num_anchors, num_i, num_j,
    BM: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Adds a band's partial statistics to those of the bands before: WIDTH rows, one statistic per program.

    Outputs: (A,) each. A statistic is complete once the band that holds its row has been added. Only then is it what
    the operator returns; before, it is a sum of exponentials (PLAIN) or a base-2 logarithm.
    """
    statistic = first_statistic + tl.program_id(1)
    x0 = tl.program_id(0) * WIDTH
    x = x0 + tl.arange(0, WIDTH)
    part = tl.arange(0, PARTS)
    total = negatives
    if statistic == 1:
        total = positives
    if statistic == 2:
        total = positive_sums
    total += first + x
    mine = first + x < num_anchors
    empty: tl.constexpr = 0.0 if PLAIN else -float("inf")
    result = tl.load(total, mask=first + x < tl.where(first > 0, num_anchors, 0), other=empty)
    columns = column_parts + statistic.to(tl.int64) * num_i * num_j * BN
    for first_part in range(0, tl.minimum(num_i, tl.cdiv(x0 + WIDTH, BM)), PARTS):
        index = first_part + part
        written = (index[:, None] < num_i) & (index[:, None] * BM < x[None, :]) & mine[None, :]
        terms = tl.load(columns + index[:, None].to(tl.int64) * num_j * BN + x[None, :], mask=written, other=empty)
        result = _add(result, _reduce(terms, 0, PLAIN), PLAIN)
    if x0 < num_i * BM:
        rows = row_parts + statistic.to(tl.int64) * num_j * num_i * BM
        for first_part in range(x0 // BM * BM // BN, num_j, PARTS):
            index = first_part + part
            above = index[:, None] * BN + BN - 1 > x[None, :] // BM * BM
            written = (index[:, None] < num_j) & above & (x[None, :] < num_i * BM) & mine[None, :]
            terms = tl.load(rows + index[:, None].to(tl.int64) * num_i * BM + x[None, :], mask=written, other=empty)
            result = _add(result, _reduce(terms, 0, PLAIN), PLAIN)
        complete = x < num_i * BM
        if statistic == 2:
            result = tl.where(complete, result / LOG2E, result)
        else:
            result = tl.where(complete, _natural_log(result, PLAIN), result)
    tl.store(total, result, mask=mine)


def tiled(rows: Tensor, comparison: Comparison) -> Statistics:
    """The statistics of any number of rows, in bands whose partial statistics fit the workspace."""
    labels, _, scale, num_anchors, _, with_sum, product_dtype = comparison
    tile = tile_for(rows, comparison, "forward")
    constants = product_constants(tile, comparison)
    outputs = rows.new_empty(num_anchors), rows.new_empty(num_anchors), rows.new_empty(num_anchors)
    if not with_sum:
        outputs[2].zero_()
    operand = operand_of(rows, product_dtype)
    blocks = blocks_of(operand, (tile.rows, tile.depth), (tile.columns, tile.depth))
    ranges, weights = _described_rows(rows, comparison, tile)
    num_rows, width = operand.shape
    for first, height in forward_bands(num_rows, num_anchors, tile):
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
            scale * LOG2E.value,
            first,
            num_rows,
            num_anchors,
            width,
            num_i,
            num_j,
            int(with_sum),
            PART=tile.part,
            TMA=descriptors(rows),
            **constants,
        )
        # The sum of scores is added as a sum even where the other two are logarithms.
        for statistic, count, as_sums in ((0, 2, constants["PLAIN"]), (2, int(with_sum), True)):
            if count:
                add_parts[(triton.cdiv(num_anchors - first, 32), count)](
                    row_parts,
                    column_parts,
                    *outputs,
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
    return outputs
