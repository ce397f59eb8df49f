"""Where the Triton kernels run, and with which tiles. Imports no triton: `auto` asks here before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch

# Which path serves which size. Chosen on paper and by benchmarks/static.py: none of these has been measured on a GPU.
# Rows up to which one launch per pass serves.
SMALL_ROWS = 256
# Columns up to which the backward pass keeps gradients in registers. Wider rows are predicted to be faster through a
# workspace (docs/performance.md); kernels exist for up to 256.
NARROW = 64
# From that many rows on a narrow backward pass has programs enough to fill a GPU.
NARROW_ROWS = 16384
# From that many rows on sorting them by class costs less than comparing labels pair by pair.
SORTED_ROWS = 8192
WORKSPACE_BYTES = 768 << 20
# Rows of the forward pass whose partial results are kept before they are added up.
STRIP_ROWS = 8192
# The vendor's product wants at least that many rows of H at a time to fill a GPU.
LOWEST_STRIP = 4096


class Tile(NamedTuple):
    """Rows, columns and depth of one step of a product, and the warps and pipeline stages that work on it.

    `part` is how many columns are finished at a time; in the small backward pass, how many of the gradient's are kept.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    part: int


# Chosen by what they compile to: no spilled registers, and on sm_90 two programs per multiprocessor, so that one
# multiplies while the other finishes its tile. "steep" kernels serve scales whose exponentials overflow.
# architecture -> precision of the products -> kernel
TILES: dict[str, dict[str, dict[str, Tile]]] = {
    "sm_80": {  # compute capability 8.x, and 12.x, which has no more shared memory: 99 KiB suffice
        "half": {
            "small": Tile(16, 64, 64, 4, 3, 64),
            "forward": Tile(128, 128, 32, 8, 3, 32),
            "forward_steep": Tile(128, 128, 32, 8, 3, 32),
            "backward": Tile(128, 128, 32, 8, 3, 32),
            "backward_steep": Tile(128, 128, 32, 8, 3, 16),
            "narrow_64": Tile(128, 64, 64, 8, 2, 64),
            "narrow_128": Tile(128, 64, 64, 8, 2, 64),
            "narrow_256": Tile(64, 32, 64, 8, 2, 32),
        },
        "tf32": {
            "small": Tile(16, 32, 32, 4, 3, 64),
            "forward": Tile(128, 128, 32, 8, 2, 32),
            "forward_steep": Tile(128, 128, 32, 8, 2, 32),
            "backward": Tile(128, 128, 32, 8, 2, 32),
            "backward_steep": Tile(128, 128, 32, 8, 3, 16),
        },
        "ieee": {
            "small": Tile(16, 32, 32, 4, 3, 32),
            "forward": Tile(64, 64, 16, 8, 2, 32),
            "forward_steep": Tile(64, 64, 16, 8, 2, 32),
            "backward": Tile(64, 64, 16, 8, 2, 32),
            "backward_steep": Tile(64, 64, 16, 8, 2, 32),
        },
    },
    "sm_90": {
        "half": {
            "small": Tile(16, 64, 64, 4, 2, 64),
            "forward": Tile(128, 128, 64, 4, 3, 32),
            "forward_steep": Tile(128, 128, 64, 4, 3, 16),
            "backward": Tile(128, 128, 64, 4, 3, 32),
            "backward_steep": Tile(128, 128, 64, 4, 3, 16),
            "narrow_64": Tile(128, 128, 64, 8, 2, 128),
            "narrow_128": Tile(128, 128, 64, 8, 2, 128),
            "narrow_256": Tile(128, 64, 64, 8, 2, 64),
        },
        "tf32": {
            "small": Tile(16, 32, 32, 4, 3, 64),
            "forward": Tile(128, 128, 32, 8, 3, 32),
            "forward_steep": Tile(128, 128, 32, 8, 3, 32),
            "backward": Tile(128, 128, 32, 8, 3, 32),
            "backward_steep": Tile(128, 128, 32, 8, 3, 32),
        },
    },
    "sm_100": {
        "half": {
            "small": Tile(16, 64, 64, 4, 2, 64),
            "forward": Tile(128, 64, 64, 4, 3, 32),
            "forward_steep": Tile(128, 128, 64, 8, 3, 32),
            "backward": Tile(128, 256, 64, 8, 3, 32),
            "backward_steep": Tile(128, 128, 64, 8, 3, 16),
            "narrow_64": Tile(128, 64, 64, 8, 2, 64),
            "narrow_128": Tile(128, 64, 64, 8, 2, 64),
            "narrow_256": Tile(128, 64, 64, 8, 2, 64),
        },
        "tf32": {
            "small": Tile(16, 32, 32, 4, 3, 64),
            "forward": Tile(128, 128, 32, 8, 3, 16),
            "forward_steep": Tile(128, 128, 32, 8, 3, 32),
            "backward": Tile(128, 128, 32, 8, 3, 32),
            "backward_steep": Tile(128, 128, 32, 8, 3, 16),
        },
    },
}
TILES["sm_90"]["ieee"] = TILES["sm_80"]["ieee"]
TILES["sm_100"]["ieee"] = TILES["sm_80"]["ieee"] | {"small": Tile(16, 32, 32, 4, 2, 32)}
# Small enough that ragged shapes of a few rows fill several tiles.
_INTERPRETED = {name: Tile(16, 32, 16, 4, 1, 16) for name in TILES["sm_80"]["half"]}
TILES["interpreter"] = dict.fromkeys(("half", "tf32", "ieee"), _INTERPRETED)


def unavailable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why rows of this dtype on this device cannot go through the kernels; None where they can."""
    if dtype != torch.float32:
        return f"the kernels compute in float32; rows are {dtype}"
    if device.type == "cpu" and not interpreted():
        return "rows are on the CPU, which only Triton's interpreter serves (environment variable TRITON_INTERPRET=1)"
    if device.type not in ("cpu", "cuda"):
        return f"the kernels run on CUDA devices; rows are on {device.type}"
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0)):
        return "the kernels want an NVIDIA device of compute capability 8.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if importlib.util.find_spec("triton.tools.tensor_descriptor") is None:
        return "this Triton has no tensor descriptors; the kernels want 3.6 or newer"
    return None


def interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter, which decides when they are defined."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def architecture(device: torch.device) -> str:
    """Key of `TILES`."""
    if device.type == "cpu":
        return "interpreter"
    major = torch.cuda.get_device_capability(device)[0]
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def has_tensor_descriptors(architecture: str) -> bool:
    """Whether operands come through the tensor memory accelerator; pointers and cp.async elsewhere."""
    return architecture != "sm_80"


def precision(product_dtype: torch.dtype) -> str:
    """Key of `TILES[architecture]`: float32 products obey `torch.set_float32_matmul_precision`."""
    if product_dtype != torch.float32:
        return "half"
    return "tf32" if _allows_tf32() else "ieee"


def _allows_tf32() -> bool:
    """As PyTorch's own products on a GPU do; the older question raises where the newer setting was used."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since PyTorch 2.9
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def narrow_kernel(width: int) -> tuple[str, int]:
    """Name in the table and register width of the backward pass for rows up to `NARROW` wide."""
    held = next(size for size in (64, 128, 256) if width <= size)
    return f"narrow_{held}", held


def workspace_shape(num_rows: int, num_anchors: int, tile: Tile, product_dtype: torch.dtype) -> tuple[int, int]:
    """Height and breadth of the workspace of H, in whole tiles: all columns, unless that makes it too low."""
    elements = WORKSPACE_BYTES // product_dtype.itemsize
    all_rows, all_columns = _whole(num_anchors, tile.rows), _whole(num_rows, tile.columns)
    height = min(all_rows, max(LOWEST_STRIP, elements // all_columns // tile.rows * tile.rows))
    return height, min(all_columns, max(1, elements // height // tile.columns) * tile.columns)


def _whole(size: int, tile: int) -> int:
    return -(-size // tile) * tile
