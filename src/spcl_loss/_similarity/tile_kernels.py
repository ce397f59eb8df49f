"""What the Triton kernels of both passes share: loading blocks, and tiles of inner products."""

# mypy: ignore-errors
# Device code: Triton reads these functions' source, their values have no Python types.

from __future__ import annotations

import triton
import triton.language as tl

from spcl_loss._similarity import dense

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LOG_ZERO: tl.constexpr = tl.constexpr(dense.LOG_ZERO)
# Sizes that bring nothing when specialised on, and would be no tensors any more where they are 1.
SIZES = (
    "num_weights", "first_statistic", "first", "first_i", "first_j",
    "num_rows", "num_anchors", "num_grads", "num_i", "num_j", "with_sum",
)  # fmt: skip


@triton.jit
def block(rows, first, k, num_rows, width, stride, HEIGHT: tl.constexpr, DEPTH: tl.constexpr, TMA: tl.constexpr):
    """HEIGHT rows from `first` on, DEPTH of their entries from `k` on; zeros beyond the edges."""
    if TMA:
        return rows.load([first, k])
    else:
        i = first + tl.arange(0, HEIGHT)
        d = k + tl.arange(0, DEPTH)
        inside = (i[:, None] < num_rows) & (d[None, :] < width)
        return tl.load(rows + i[:, None].to(tl.int64) * stride + d[None, :], mask=inside, other=0.0)


@triton.jit
def inner_products(
    left, right, i0, j0, num_rows, width, stride,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of <left_i, right_j> in float32, rows from i0 and columns from j0 on."""
    products = tl.zeros((BM, BN), tl.float32)
    for k in range(0, width, BK):
        rows_i = block(left, i0, k, num_rows, width, stride, BM, BK, TMA).to(DTYPE)
        rows_j = block(right, j0, k, num_rows, width, stride, BN, BK, TMA).to(DTYPE)
        products = tl.dot(rows_i, rows_j.T, products, input_precision=PRECISION)
    return products


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def candidate(labels, log_weights, num_weights, index, num_rows, OUTSIDE: tl.constexpr, PLAIN: tl.constexpr):
    """Label and weight of each row as a negative (base-2 logarithm unless PLAIN); one beyond the edge is OUTSIDE."""
    label = tl.load(labels + index, mask=index < num_rows, other=OUTSIDE)
    log2_weight = tl.load(log_weights + index, mask=index < num_weights, other=0.0) * LOG2E
    log2_weight = tl.where(label < 0, -float("inf"), log2_weight)
    return label, tl.exp2(log2_weight) if PLAIN else log2_weight


@triton.jit
def agreement(ranges, i0, j0, num_rows, BM: tl.constexpr, BN: tl.constexpr):
    """Whether all pairs of a tile share their label, and whether none does; neither is said where it is not known.

    ranges: (2, groups), the least and the greatest label of every group of min(BM, BN) rows.
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
