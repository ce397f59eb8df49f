"""Where the Triton kernels run, and with which tiles. Imports triton only to ask for its version."""

from __future__ import annotations

import importlib
import os
import re
from typing import NamedTuple

import torch

from spcl_loss._numerics import is_half

# Up to this many rows, one launch per pass does everything.
SMALL_ROWS = 256
# From this many rows on, the forward pass sorts them by class: that costs less than to compare labels pair by pair.
SORTED_ROWS = 16384
# Upper bound of what is kept between two kernels: partial statistics, or entries of H.
WORKSPACE_BYTES = 768 << 20
# Rows of the forward pass whose partial statistics are kept before they are added up.
BAND_ROWS = 8192
# Rows of H that the workspace holds. A matrix product of fewer would not fill a GPU. Of more rows, a larger part of H
# would be computed twice: below the diagonal too, within the band's own columns.
H_BAND_ROWS = 4096


class Tile(NamedTuple):
    """Rows, columns and depth of one step of a product, and the warps and pipeline stages that work on it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    part: int = 0  # columns of scores or of H that a program of the tiled passes finishes at a time
    slice: int = 0  # columns of the gradient that a program of the small backward pass computes


# None spills registers. Those of sm_90 were chosen among some 150 on an H100 and an H200 (docs/kernels.md), the steep
# ones from compiled code alone. Two programs share a multiprocessor: one multiplies while the other finishes its tile.
# The other architectures are not measured. "steep": for scales whose exponentials overflow, where such a kernel needs
# another tile.
# architecture -> precision of the products -> kernel
TILES: dict[str, dict[str, dict[str, Tile]]] = {
    "sm_80": {  # compute capability 8.x, and 12.x, which has no more shared memory: 99 KiB suffice
        "half": {
            "small": Tile(16, 64, 64, 4, 3, slice=64),
            "forward": Tile(128, 128, 32, 8, 3, 32),
            "backward": Tile(128, 128, 32, 8, 3, 32),
            "backward_steep": Tile(128, 128, 32, 8, 3, 16),
        },
        "tf32": {
            "small": Tile(16, 32, 32, 4, 3, slice=64),
            "forward": Tile(128, 128, 32, 8, 2, 32),
            "backward": Tile(128, 128, 32, 8, 2, 32),
            "backward_steep": Tile(128, 128, 32, 8, 3, 16),
        },
        "ieee": {
            "small": Tile(16, 32, 32, 4, 3, slice=32),
            "forward": Tile(64, 64, 16, 8, 2, 32),
            "backward": Tile(64, 64, 16, 8, 2, 32),
        },
    },
    "sm_90": {
        "half": {
            "small": Tile(16, 64, 64, 4, 4, slice=64),
            "forward": Tile(128, 128, 64, 4, 3, 32),
            "forward_steep": Tile(128, 128, 64, 4, 3, 16),
            "backward": Tile(128, 128, 64, 4, 3, 32),
            "backward_steep": Tile(128, 128, 64, 4, 3, 16),
        },
        "tf32": {
            "small": Tile(16, 32, 32, 4, 3, slice=64),
            "forward": Tile(128, 128, 32, 4, 3, 32),
            "backward": Tile(128, 128, 32, 4, 3, 16),
        },
    },
    "sm_100": {
        "half": {
            "small": Tile(16, 64, 64, 4, 2, slice=64),
            "forward": Tile(128, 64, 64, 4, 3, 32),
            "forward_steep": Tile(128, 128, 64, 8, 3, 32),
            "backward": Tile(128, 256, 64, 8, 3, 32),
            "backward_steep": Tile(128, 128, 64, 8, 3, 16),
        },
        "tf32": {
            "small": Tile(16, 32, 32, 4, 3, slice=64),
            "forward": Tile(128, 128, 32, 8, 3, 16),
            "forward_steep": Tile(128, 128, 32, 8, 3, 32),
            "backward": Tile(128, 128, 32, 8, 3, 32),
            "backward_steep": Tile(128, 128, 32, 8, 3, 16),
        },
    },
}
TILES["sm_90"]["ieee"] = TILES["sm_80"]["ieee"]
TILES["sm_100"]["ieee"] = TILES["sm_80"]["ieee"] | {"small": Tile(16, 32, 32, 4, 2, slice=32)}
# Small, so that ragged shapes of a few rows fill several tiles.
_INTERPRETED = dict.fromkeys(("small", "forward", "backward"), Tile(16, 32, 16, 4, 1, part=16, slice=16))
TILES["interpreter"] = dict.fromkeys(("half", "tf32", "ieee"), _INTERPRETED)


def preferred(device: torch.device, product_dtype: torch.dtype) -> bool:
    """Whether `auto` takes the kernels, if they prove to work.

    Products in full float32 do not use the tensor cores here and are slower than the vendor's: strips take those.
    """
    if device.type != "cuda":
        return False
    if torch.compiler.is_compiling():  # a traced graph cannot ask about the device; the operator itself will
        return is_half(product_dtype)
    return precision(product_dtype) != "ieee" and unavailable_reason(device, product_dtype) is None


def unavailable_reason(device: torch.device, product_dtype: torch.dtype) -> str | None:
    """Why these products on this device cannot go through the kernels; None where they can."""
    if product_dtype == torch.float64:
        return f"the kernels compute in float32; rows are {product_dtype}"
    if device.type == "cpu" and not interpreted():
        return "rows are on the CPU, which only Triton's interpreter serves (environment variable TRITON_INTERPRET=1)"
    if device.type not in ("cpu", "cuda"):
        return f"the kernels run on CUDA devices; rows are on {device.type}"
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0)):
        return "the kernels want an NVIDIA device of compute capability 8.0 or newer"
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"Triton is not installed, or cannot be imported ({error})"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (3, 6):
        return f"the kernels want Triton 3.6 or newer; this is Triton {version}"
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels. Triton reads the variable when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def architecture(device: torch.device) -> str:
    """Key of `TILES`."""
    if device.type == "cpu":
        return "interpreter"
    major = torch.cuda.get_device_capability(device)[0]
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def has_tensor_descriptors(architecture: str) -> bool:
    """Whether operands are loaded through the tensor memory accelerator. Otherwise: pointers and cp.async.

    For diagnosis, the environment variable SPCL_TENSOR_DESCRIPTORS=0 selects pointers everywhere.
    """
    return architecture != "sm_80" and os.environ.get("SPCL_TENSOR_DESCRIPTORS", "1") != "0"


def precision(product_dtype: torch.dtype) -> str:
    """Key of `TILES[architecture]`: float32 products obey `torch.set_float32_matmul_precision`."""
    if is_half(product_dtype):
        return "half"
    return "tf32" if _allows_tf32() else "ieee"


def _allows_tf32() -> bool:
    """Whether PyTorch's own products on a GPU use TF32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since PyTorch 2.9; the older query raises once this one was set
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def workspace_shape(num_rows: int, num_anchors: int, tile: Tile, product_dtype: torch.dtype) -> tuple[int, int]:
    """Height and breadth of the workspace of H, in whole tiles: all columns, as far as `WORKSPACE_BYTES` allow it."""
    height = _round_up(min(num_anchors, H_BAND_ROWS), tile.rows)
    fitting = WORKSPACE_BYTES // product_dtype.itemsize // height // tile.columns
    return height, min(_round_up(num_rows, tile.columns), max(1, fitting) * tile.columns)


def forward_bands(num_rows: int, num_anchors: int, tile: Tile) -> list[tuple[int, int]]:
    """First row and height of each band of the forward pass, whose partial statistics are kept at a time."""
    budget = WORKSPACE_BYTES // (12 * num_rows)  # blocks of rows
    step = max(tile.rows, tile.columns)
    height = max(step, min(BAND_ROWS, budget * tile.rows) // step * step)
    return [(first, min(height, num_anchors - first)) for first in range(0, num_anchors, height)]


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
