"""Which precision things are computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Autocast, where it is on, would round the scores to half precision."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # meta tensors know no autocast
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def product_dtype(embeddings: Tensor) -> torch.dtype:
    """On a GPU products of half precision embeddings stay in half precision; a CPU gains nothing from it."""
    half = embeddings.dtype in (torch.float16, torch.bfloat16) and embeddings.is_cuda
    return embeddings.dtype if half else computed_dtype(embeddings)


def computed_dtype(embeddings: Tensor) -> torch.dtype:
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32
