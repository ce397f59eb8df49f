"""Rows of unit length, and the one rule for precision and dtypes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Each row divided by its Euclidean norm; a zero row stays zero and gets a bounded gradient.

    A row with a NaN or an infinity becomes NaN.
    """
    unit: Tensor = _UnitRows.apply(rows)[0]  # type: ignore[no-untyped-call]
    return unit


class _UnitRows(torch.autograd.Function):
    """d rows = (g - unit <unit, g>) / norm, with half the N x D arrays that autograd would hold."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
        # Dividing by the largest entry first keeps the sum of squares from overflowing or vanishing.
        largest = rows.abs().amax(-1, keepdim=True)
        largest = largest.masked_fill(largest == 0, 1)
        scaled = rows / largest
        norms = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(0.5)  # 0 for zero rows, else >= 1
        return scaled.div_(norms), norms * largest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_norms: Tensor | None) -> Tensor | None:
        unit, norms = ctx.saved_tensors
        # The norms are an output for the sake of the second derivative, which reaches them here.
        result: Tensor | None = None if of_norms is None else of_norms * unit
        if grad is not None:
            along = torch.linalg.vecdot(unit, grad).unsqueeze(-1)
            across = torch.addcmul(grad, unit, along, value=-1) / norms
            result = across if result is None else result + across
        return result


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
