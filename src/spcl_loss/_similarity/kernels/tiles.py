"""What both passes share: device functions that load blocks and multiply tiles, and the arguments of launches."""

# Device code is untyped: Triton reads the source of these functions, and their values have no Python types.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from spcl_loss._numerics import PLAIN_SCALE
from spcl_loss._similarity.comparison import LOG_ZERO as _LOG_ZERO
from spcl_loss._similarity.comparison import Comparison
from spcl_loss._similarity.kernels import config
from spcl_loss._similarity.kernels.config import Tile

LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
LOG_ZERO: tl.constexpr = tl.constexpr(_LOG_ZERO)
# Do not specialise on these: it brings nothing, and Triton would turn a value of 1 into a constant, which has no
# tensor methods.
SIZES = (
    "num_weights", "first_statistic", "first", "first_i", "first_j",
    "num_rows", "num_anchors", "num_grads", "num_i", "num_j", "with_sum",
)  # fmt: skip
_WIDTH_UNIT = 16  # entries; Triton specialises only on divisibility by 16.
_ADDRESS_UNIT = 16  # bytes
# Multiplications and additions in one instruction: Triton is about to change its default.
FUSED = {"enable_fp_fusion": True}


@triton.jit
def block(rows, first, k, num_rows, width, HEIGHT: tl.constexpr, DEPTH: tl.constexpr, TMA: tl.constexpr):
    """HEIGHT rows from `first` on, DEPTH of their entries from `k` on; zeros beyond the edges."""
    if TMA:
        return rows.load([first, k])
    else:
        i = first + tl.arange(0, HEIGHT)
        d = k + tl.arange(0, DEPTH)
        inside = (i[:, None] < num_rows) & (d[None, :] < width)
        return tl.load(rows + i[:, None].to(tl.int64) * width + d[None, :], mask=inside, other=0.0)


@triton.jit
def inner_products(
    left, right, i0, j0, num_rows, width,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of inner products <left_i, right_j> in float32: rows from i0 on, columns from j0 on."""
    products = tl.zeros((BM, BN), tl.float32)
    for k in range(0, width, BK):
        rows_i = block(left, i0, k, num_rows, width, BM, BK, TMA).to(DTYPE)
        rows_j = block(right, j0, k, num_rows, width, BN, BK, TMA).to(DTYPE)
        products = tl.dot(rows_i, rows_j.T, products, input_precision=PRECISION)
    return products


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def candidate(labels, log_weights, num_weights, index, num_rows, OUTSIDE: tl.constexpr, PLAIN: tl.constexpr):
    """Label of each row (OUTSIDE beyond the edge), and its weight as a negative (a base-2 logarithm unless PLAIN)."""
    label = tl.load(labels + index, mask=index < num_rows, other=OUTSIDE)
    log2_weight = tl.load(log_weights + index, mask=index < num_weights, other=0.0) * LOG2E
    log2_weight = tl.where(label < 0, -float("inf"), log2_weight)
    return label, tl.exp2(log2_weight) if PLAIN else log2_weight


def product_constants(tile: Tile, comparison: Comparison) -> dict[str, Any]:
    """Compile-time arguments of every kernel that multiplies."""
    names = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    precision = config.precision(comparison.product_dtype)
    return {
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth,
        "DTYPE": names[comparison.product_dtype],
        "PRECISION": "ieee" if precision == "ieee" else "tf32",
        "PLAIN": comparison.scale <= PLAIN_SCALE,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **FUSED,
    }


def tile_for(rows: Tensor, comparison: Comparison, kernel: str) -> Tile:
    """The tile of kernel "small", "forward" or "backward"."""
    tiles = config.TILES[config.architecture(rows.device)][config.precision(comparison.product_dtype)]
    steep = f"{kernel}_steep"
    return tiles[steep if comparison.scale > PLAIN_SCALE and steep in tiles else kernel]


def descriptors(rows: Tensor) -> bool:
    return config.has_tensor_descriptors(config.architecture(rows.device))


def operand_of(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows in this dtype, contiguous, aligned, and padded with zeros to a multiple of 16 entries.

    Vector loads, asynchronous copies on sm_80 among them, want such widths, and tensor descriptors want rows and a base
    address at multiples of 16 bytes.
    """
    padding = -rows.shape[1] % _WIDTH_UNIT
    operand = rows.to(dtype)
    operand = (torch.nn.functional.pad(operand, (0, padding)) if padding else operand).contiguous()
    return operand.clone() if operand.data_ptr() % _ADDRESS_UNIT else operand


def blocks_of(matrix: Tensor, *shapes: tuple[int, int]) -> tuple[Any, ...]:
    """The matrix as a kernel's loads and stores take it: a pointer, or one tensor descriptor per block shape."""
    if not descriptors(matrix):
        return (matrix,) * len(shapes)
    return tuple(TensorDescriptor.from_tensor(matrix, list(shape)) for shape in shapes)


def weights_pointer(rows: Tensor, log_weights: Tensor | None) -> tuple[Tensor, int]:
    """The kernels' arguments `log_weights, num_weights`: a pointer, and the number of weights to read there."""
    return (rows, 0) if log_weights is None else (log_weights.contiguous(), rows.shape[0])
