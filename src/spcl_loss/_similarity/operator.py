"""The similarity operator: its registration with PyTorch, and the choice of a backend.

The two halves, statistics and gradient, can also be called apart. Ranks that share a batch do so: each computes the
statistics of its own anchors, gathers those of all, then computes the gradient of its own rows. Put the rows being
computed first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spcl_loss._numerics import in_torch_func, without_autocast
from spcl_loss._similarity import strips
from spcl_loss._similarity.comparison import Comparison, Statistics, Upstream
from spcl_loss._similarity.kernels import config
from spcl_loss._similarity.kernels.probe import kernels_work

# Up to this many rows dense is faster than strips on a CPU (docs/performance.md), and its N x N arrays are small.
_DENSE_ROWS = 256


def similarity_statistics(rows: Tensor, comparison: Comparison, impl: str) -> Statistics:
    """See `spcl_loss._similarity.compare`; here all rows are of unit length, or zero, and `impl` is not "dense"."""
    outputs: Statistics = _statistics_op(rows, *comparison, impl)
    return outputs


def similarity_gradient(rows: Tensor, comparison: Comparison, upstream: Upstream, impl: str) -> Tensor:
    """The complete gradient (G, D) of the leading rows. These may be more or fewer than the anchors of `upstream`."""
    gradient: Tensor = _gradient_op(rows, *comparison, *upstream, impl)
    return gradient


def uses_dense(impl: str, comparison: Comparison) -> bool:
    """Whether the dense definition is taken: for few rows, and under torch.func's transforms."""
    if impl != "auto":
        return impl == "dense"
    if in_torch_func():
        return True
    few = comparison.labels.shape[0] <= _DENSE_ROWS
    return few and not config.preferred(comparison.labels.device, comparison.product_dtype)


def _backend(impl: str, comparison: Comparison) -> Any:
    """The module that computes. Modules that import triton are imported only when the kernels are chosen."""
    device, product_dtype = comparison.labels.device, comparison.product_dtype
    if impl == "triton":
        reason = config.unavailable_reason(device, product_dtype)
        if reason is not None:
            raise ValueError(f"impl='triton' cannot be used: {reason}. Pass impl=\"auto\" to have a backend chosen")
    elif impl == "strips" or not (config.preferred(device, product_dtype) and kernels_work(device, comparison)):
        return strips
    from spcl_loss._similarity.kernels import dispatch

    return dispatch


# The fields of a `Comparison`, as the registered operators take them.
_COMPARISON = (
    "Tensor labels, Tensor? log_weights, float scale, SymInt num_anchors, SymInt num_grads, bool with_sum, "
    "ScalarType product_dtype"
)
_STATISTICS = f"(Tensor rows, {_COMPARISON}, str impl) -> (Tensor, Tensor, Tensor)"
_GRADIENT = f"(Tensor rows, {_COMPARISON}, Tensor negative, Tensor positive, Tensor grads, str impl) -> Tensor"


@torch.library.custom_op("spcl_loss::similarity_statistics", mutates_args=(), schema=_STATISTICS)
def _statistics_op(rows: Tensor, *flat: Any) -> Statistics:
    *fields, impl = flat
    comparison = Comparison(*fields)
    with without_autocast(rows.device.type):
        outputs: Statistics = _backend(impl, comparison).statistics(rows, comparison)
    return outputs


@_statistics_op.register_fake
def _(rows: Tensor, *flat: Any) -> Statistics:
    *fields, _ = flat
    num_anchors = Comparison(*fields).num_anchors
    return rows.new_empty(num_anchors), rows.new_empty(num_anchors), rows.new_empty(num_anchors)


@torch.library.custom_op("spcl_loss::similarity_gradient", mutates_args=(), schema=_GRADIENT)
def _gradient_op(rows: Tensor, *flat: Any) -> Tensor:
    *fields, negative, positive, grads, impl = flat
    comparison, upstream = Comparison(*fields), Upstream(negative, positive, grads)
    with without_autocast(rows.device.type):  # autocast may be on where `backward()` is called
        gradient: Tensor = _backend(impl, comparison).gradient(rows, comparison, upstream)
    return gradient


@_gradient_op.register_fake
def _(rows: Tensor, *flat: Any) -> Tensor:
    *fields, _, _, _, _ = flat
    return rows.new_empty(Comparison(*fields).num_grads, rows.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Statistics) -> None:
    rows, labels, log_weights, *ctx.settings, ctx.impl = inputs
    ctx.save_for_backward(rows, labels, log_weights, output[0], output[1])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    rows, labels, log_weights, negative, positive = ctx.saved_tensors
    comparison = Comparison(labels, log_weights, *ctx.settings)
    grad = similarity_gradient(rows, comparison, Upstream(negative, positive, torch.stack(grads)), ctx.impl)
    if comparison.num_grads < rows.shape[0]:
        grad = torch.nn.functional.pad(grad, (0, 0, 0, rows.shape[0] - comparison.num_grads))
    return grad, *(None,) * 8


_statistics_op.register_autograd(_backward, setup_context=_setup)


def _no_second_derivative(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError(
        'the blockwise similarity operator has a first derivative only; pass impl="dense" to differentiate twice'
    )


_gradient_op.register_autograd(_no_second_derivative)
