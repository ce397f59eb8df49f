"""What the launchers of both passes hand to the Triton kernels: operands, labels, weights, and constants."""

# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from spcl_loss._similarity import launch
from spcl_loss._similarity.formats import PLAIN_SCALE
from spcl_loss._similarity.launch import Tile

LOG2E = math.log2(math.e)
# Multiplications and additions in one instruction: Triton is about to change its default.
FUSED = {"enable_fp_fusion": True}


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
        "PLAIN": scale <= PLAIN_SCALE,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **FUSED,
    }


def is_half(product_dtype: torch.dtype) -> bool:
    return product_dtype != torch.float32


def tile_for(rows: Tensor, product_dtype: torch.dtype, kernel: str) -> Tile:
    return launch.TILES[launch.architecture(rows.device)][launch.precision(product_dtype)][kernel]


def descriptors(rows: Tensor) -> bool:
    return launch.has_tensor_descriptors(launch.architecture(rows.device))


def operand_of(rows: Tensor, product_dtype: torch.dtype) -> Tensor:
    """The rows in the products' dtype, each beginning at a multiple of 16 bytes, as the copy engine asks."""
    padding = -rows.shape[1] % (16 // product_dtype.itemsize)
    operand = rows.to(product_dtype)
    return (torch.nn.functional.pad(operand, (0, padding)) if padding else operand).contiguous()


def blocks_of(matrix: Tensor, *shapes: tuple[int, int]) -> tuple[Any, ...]:
    """The matrix as each of a kernel's loads and stores wants it."""
    if not descriptors(matrix):
        return (matrix,) * len(shapes)
    return tuple(TensorDescriptor.from_tensor(matrix, list(shape)) for shape in shapes)


def dense_labels(labels: Tensor) -> Tensor:
    """The same classes in 32 bits, which compare in one instruction: each row's first place in sorted order."""
    return torch.searchsorted(labels.sort().values, labels, out_int32=True).masked_fill_(labels < 0, -1)


def label_ranges(labels: Tensor, tile: Tile) -> Tensor:
    """(2, groups) the least and the greatest label of each group of rows; see `agreement` in `tile_kernels`."""
    group = min(tile.rows, tile.columns)
    groups = torch.nn.functional.pad(labels, (0, -labels.shape[0] % group), value=-2).view(-1, group)
    return torch.stack([groups.amin(1), groups.amax(1)])


def weights_pointer(rows: Tensor, log_weights: Tensor | None) -> tuple[Tensor, int]:
    """A pointer, and how many weights are to be read there."""
    return (rows, 0) if log_weights is None else (log_weights.contiguous(), rows.shape[0])


def candidate_weights(rows: Tensor, labels: Tensor, log_weights: Tensor | None, plain: bool) -> Tensor:
    """(R,) what `candidate` computes, once for all tiles."""
    logs = rows.new_zeros(rows.shape[0]) if log_weights is None else log_weights
    logs = logs.masked_fill(labels < 0, -math.inf)
    return logs.exp() if plain else logs * LOG2E
