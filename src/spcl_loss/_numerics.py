"""Rows of unit length, products, and the one rule for precision and dtypes.

Autocast must not round what the loss computes. The functions here keep it out of their backward passes too: a backward
pass runs under the autocast state of the call of ``backward()``, not under that of the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Up to this scale exp(score) neither overflows nor vanishes in float32, not even summed over 2^24 rows: no maximum is
# needed.
PLAIN_SCALE = 40.0
# float16 loses digits below 6e-5. Entries of H are scaled to about this size at most, so that most lie above.
HALF_MAGNITUDE = 256.0
_PART_ELEMENTS = 1 << 20  # entries per part: a few MiB, so that it stays in cache


def in_torch_func() -> bool:
    """Whether a transform of `torch.func` (grad, vmap) calls this."""
    return torch._C._functorch.maybe_current_level() is not None


def computed_dtype(embeddings: Tensor) -> torch.dtype:
    """The dtype of everything that is computed from the embeddings, the loss included."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Of sums over a data set. A class may have millions of rows, over which float32 loses digits."""
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def parts(rows: int, width: int) -> Iterator[slice]:
    """Ranges of rows, for passes that must not copy the whole."""
    step = max(1, _PART_ELEMENTS // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def product_dtype(embeddings: Tensor) -> torch.dtype:
    """On a GPU products of half precision embeddings stay in half precision; a CPU gains nothing from it."""
    return embeddings.dtype if is_half(embeddings.dtype) and embeddings.is_cuda else computed_dtype(embeddings)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Switches autocast off where it is on: it would round products to half precision."""
    if device_type == "meta":  # meta tensors know no autocast
        return nullcontext()
    # A graph being traced cannot ask: its backward pass may be traced under another state.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def normalised(rows: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row divided by its Euclidean norm, and the norms (R, 1). A zero row stays zero, and has the norm 0.5.

    A row with a NaN or an infinity becomes NaN. Rows that are not `kept` (R,) become zeros: as candidates they would
    pass a NaN on to the other rows.
    """
    if kept is not None:
        if in_torch_func():  # PyTorch 2.6 cannot view the rows of a vmap as integers
            rows = rows.masked_fill(~kept[:, None], 0)
        else:  # by their bits, which removes a NaN too: masked_fill of whole rows takes twice as long on a CPU
            integer = torch.int64 if rows.dtype == torch.float64 else torch.int32
            rows = (rows.view(integer) * kept[:, None]).view(rows.dtype)
    # Dividing by the largest entry first keeps the sum of squares from overflowing or vanishing.
    largest = torch.threshold(rows.abs().amax(-1, keepdim=True), 0, 1)  # 1 instead of 0
    scaled = rows / largest
    norms = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(0.5)  # 0 for zero rows, else >= 1
    return scaled.div_(norms), norms * largest


def unit_rows(rows: Tensor, kept: Tensor | None = None) -> Tensor:
    """The rows of `normalised`, with derivatives of every order. The gradient of a zero row is bounded.

    Rows that are not `kept` pass their gradient on: whoever leaves them out must give it as zero.
    """
    unit: Tensor = _UnitRows.apply(rows, kept)[0]  # type: ignore[no-untyped-call]
    return unit


class _UnitRows(torch.autograd.Function):
    """d rows = (g - unit <unit, g>) / norm, with half the N x D arrays that autograd would hold."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        return normalised(rows, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_norms: Tensor | None) -> tuple[Tensor | None, None]:
        unit, norms = ctx.saved_tensors
        # The norms are an output for the sake of the second derivative, which reaches them here.
        result: Tensor | None = None if of_norms is None else of_norms * unit
        if grad is not None:
            along = (unit * grad).sum(-1, keepdim=True)  # not vecdot, which autocast rounds
            across = torch.addcmul(grad, unit, along, value=-1) / norms
            result = across if result is None else result + across
        return result, None


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` with gradients of every order in the operands' precision, whatever autocast says."""
    product: Tensor = _MatMul.apply(left, right)  # type: ignore[no-untyped-call]
    return product


class _MatMul(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return _matmul_without_autocast(left, right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        # Use plain products unless a second derivative is wanted: an autograd Function costs more than a small product.
        product = matmul if torch.is_grad_enabled() else _matmul_without_autocast
        of_left = product(grad, right.mT) if ctx.needs_input_grad[0] else None
        # Right is the transpose of rows: in this order their gradient has their own memory layout.
        of_right = product(grad.mT, left).mT if ctx.needs_input_grad[1] else None
        return of_left, of_right


def _matmul_without_autocast(left: Tensor, right: Tensor) -> Tensor:
    with without_autocast(left.device.type):
        return left @ right


def scaled_product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """``factor * left @ right`` in one call. Has no gradient of its own."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=factor)  # beta 0: the first tensor is not read


def widening_product(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right, summed and given in float32 unless the operands are float64. Has no gradient of its own."""
    if not is_half(left.dtype):
        return left @ right
    if _gives_float32(left.device):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def accumulate(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to the target, which has the dtype of such a product."""
    if not is_half(left.dtype):
        target.addmm_(left, right)
    elif _gives_float32(left.device) and torch.__version__ >= "2.10":  # before, the target had to be half too
        torch.addmm(target, left, right, out_dtype=torch.float32, out=target)
    else:
        target += widening_product(left, right)


def _gives_float32(device: torch.device) -> bool:
    """Whether products of half precision can be given in float32: from PyTorch 2.8 on, and on recent NVIDIA GPUs."""
    if device.type != "cuda" or torch.version.hip or not hasattr(torch.ops.aten.mm, "dtype"):
        return False
    if getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False):
        return False  # such products are summed in half precision, and PyTorch refuses to widen them
    return torch.cuda.get_device_capability(device) >= (8, 0)
