"""The similarity operator: its registration with PyTorch, and the choice of a backend.

The two halves, statistics and gradient, can also be called apart. Ranks that share a batch do so: each computes the
statistics of its own anchors, gathers those of all, then computes the gradient of its own rows. Put the rows being
computed first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spcl_loss._numerics import full_precision
from spcl_loss._similarity import strips
from spcl_loss._similarity.contrast import Contrast, Statistics, Upstream
from spcl_loss._similarity.kernels.config import unavailable_reason

# Rows above which strips overtake dense: measured by benchmarks/loss.py, see docs/performance.md.
_DENSE_ROWS = 128


def contrast_statistics(rows: Tensor, contrast: Contrast, impl: str) -> Statistics:
    """See `spcl_loss._similarity.compare`; here all rows are of unit length, or zero, and `impl` is not "dense"."""
    outputs: Statistics = _statistics_op(rows, *contrast, impl)
    return outputs


def contrast_gradient(rows: Tensor, contrast: Contrast, upstream: Upstream, impl: str) -> Tensor:
    """The gradient (G, D) of the leading rows, complete, from the statistics of all anchors.

    Args:
        rows: (R, D), as for `contrast_statistics`.
        contrast: as for `contrast_statistics`; `num_grads` may be more or less than the number of anchors.
        upstream: the statistics of all anchors and their gradients.
        impl: as for `contrast_statistics`.
    """
    gradient: Tensor = _gradient_op(rows, *contrast, *upstream, impl)
    return gradient


def uses_dense(impl: str, rows: Tensor) -> bool:
    """Whether the dense definition is taken: for few rows, and under torch.func's transforms."""
    if impl != "auto":
        return impl == "dense"
    if torch._C._functorch.maybe_current_level() is not None:
        return True
    return rows.shape[0] <= _DENSE_ROWS and not _prefers_kernels(rows.device, rows.dtype)


def _prefers_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels serve few rows too. A graph being traced cannot ask; the operator itself will."""
    return device.type == "cuda" and (torch.compiler.is_compiling() or unavailable_reason(device, dtype) is None)


def _backend(impl: str, rows: Tensor) -> Any:
    """The module that computes. The one with kernels, and triton with it, is imported only when it is chosen."""
    reason = None if impl == "strips" else unavailable_reason(rows.device, rows.dtype)
    if impl == "triton" and reason is not None:
        raise ValueError(f"impl='triton' cannot be used: {reason}. Pass impl=\"auto\" to have a backend chosen")
    if impl == "triton" or (impl == "auto" and rows.is_cuda and reason is None):
        from spcl_loss._similarity.kernels import dispatch

        return dispatch
    return strips


@torch.library.custom_op("spcl_loss::contrast_statistics", mutates_args=())
def _statistics_op(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_anchors: int,
    num_grads: int,
    with_sum: bool,
    product_dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    contrast = Contrast(labels, log_weights, scale, num_anchors, num_grads, with_sum, product_dtype)
    with full_precision(rows.device.type):
        outputs: Statistics = _backend(impl, rows).statistics(rows, contrast)
    return outputs


@_statistics_op.register_fake
def _(rows: Tensor, labels: Tensor, log_weights: Tensor | None, scale: float, num_anchors: int, *_: Any) -> Any:
    return tuple(rows.new_empty(num_anchors) for _ in range(3))


@torch.library.custom_op("spcl_loss::contrast_gradient", mutates_args=())
def _gradient_op(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    scale: float,
    num_anchors: int,
    num_grads: int,
    with_sum: bool,
    product_dtype: torch.dtype,
    negative: Tensor,
    positive: Tensor,
    grads: Tensor,
    impl: str,
) -> Tensor:
    contrast = Contrast(labels, log_weights, scale, num_anchors, num_grads, with_sum, product_dtype)
    with full_precision(rows.device.type):  # autocast may be on where `backward()` is called
        gradient: Tensor = _backend(impl, rows).gradient(rows, contrast, Upstream(negative, positive, grads))
    return gradient


@_gradient_op.register_fake
def _(
    rows: Tensor, labels: Tensor, log_weights: Tensor | None, scale: float, num_anchors: int, num_grads: int, *_: Any
) -> Tensor:
    return rows.new_empty(num_grads, rows.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Statistics) -> None:
    rows, labels, log_weights, *ctx.settings, ctx.impl = inputs
    ctx.save_for_backward(rows, labels, log_weights, output[0], output[1])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    rows, labels, log_weights, negative, positive = ctx.saved_tensors
    contrast = Contrast(labels, log_weights, *ctx.settings)
    grad = contrast_gradient(rows, contrast, Upstream(negative, positive, torch.stack(grads)), ctx.impl)
    if contrast.num_grads < rows.shape[0]:
        grad = torch.nn.functional.pad(grad, (0, 0, 0, rows.shape[0] - contrast.num_grads))
    return grad, *(None,) * 8


_statistics_op.register_autograd(_backward, setup_context=_setup)


def _no_second_derivative(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError(
        'the blockwise similarity operator has a first derivative only; pass impl="dense" to differentiate twice'
    )


_gradient_op.register_autograd(_no_second_derivative)
