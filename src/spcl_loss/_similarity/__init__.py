"""The similarity operator, registered with PyTorch, and the one place that chooses how it is computed.

Its two halves also stand alone, and then need not agree on the anchors: where ranks share the work, each asks for the
statistics of its own anchors against all candidates, and once all statistics are gathered, for the gradient of its own
rows from those of all anchors. Whatever a call is about comes first among the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spcl_loss._similarity import dense, strips
from spcl_loss._similarity.launch import unavailable_reason

IMPLEMENTATIONS = ("auto", "dense", "strips", "triton")
# Rows above which strips overtake dense: measured by benchmarks/loss.py, see docs/performance.md.
_DENSE_ROWS = 128


def contrast_statistics(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    *,
    scale: float,
    num_anchors: int,
    num_grads: int,
    with_sum: bool,
    product_dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss needs to know of the scores s_ij = scale * <rows_i, rows_j>, per anchor, without keeping them.

    Every row is a candidate of every other one; the first `num_anchors` rows are anchors too.

    Args:
        rows: (R, D) float32 or float64, of unit length.
        labels: (R,) int64. A row with a negative label is no candidate, and its own statistics mean nothing.
        log_weights: (R,) added to the score of a candidate where it is a negative; None for zeros.
        scale: factor from inner product to score.
        num_anchors: A <= R.
        num_grads: the gradient is wanted for that many leading rows, fewer or more than anchors; beyond it is zero.
        with_sum: whether the third statistic is wanted; zeros otherwise.
        product_dtype: of the operands of the matrix products on a GPU; results and all else are in the rows' dtype.
        impl: one of `IMPLEMENTATIONS`; says how, never what.

    Returns:
        Three tensors (A,): the log-sum-exp of the weighted scores of the candidates with another label (negatives),
        the log-sum-exp of the scores of the other candidates with the same label (positives), and the sum of the
        latter scores. The logarithm of an empty sum is about `dense.LOG_ZERO`.
    """
    transformed = torch._C._functorch.maybe_current_level() is not None
    if uses_dense(impl, rows.shape[0], rows.device, rows.dtype):
        return dense.statistics(rows, labels, log_weights, scale, num_anchors, with_sum)
    if transformed:
        raise NotImplementedError(
            f'torch.func transforms cannot look into impl={impl!r}; pass impl="dense", or "auto" to have it chosen'
        )
    outputs: tuple[Tensor, Tensor, Tensor] = _statistics(
        rows, labels, log_weights, scale, num_anchors, num_grads, with_sum, product_dtype, impl
    )
    return outputs


def uses_dense(impl: str, num_rows: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `impl` means the dense definition: it may, for few rows, and has to, under torch.func's transforms."""
    if impl != "auto":
        return impl == "dense"
    if torch._C._functorch.maybe_current_level() is not None:
        return True
    return num_rows <= _DENSE_ROWS and not _prefers_kernels(device, dtype)


def _prefers_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels serve few rows too. A graph being traced cannot ask; the operator itself will."""
    return device.type == "cuda" and (torch.compiler.is_compiling() or unavailable_reason(device, dtype) is None)


def _backend(impl: str, rows: Tensor) -> Any:
    """The module that computes; the one with kernels is imported, and triton with it, only when it is chosen."""
    reason = None if impl == "strips" else unavailable_reason(rows.device, rows.dtype)
    if impl == "triton" and reason is not None:
        raise ValueError(f"impl='triton' cannot be used: {reason}. Pass impl=\"auto\" to have a backend chosen")
    if impl == "triton" or (impl == "auto" and rows.is_cuda and reason is None):
        from spcl_loss._similarity import triton_kernels

        return triton_kernels
    return strips


@torch.library.custom_op("spcl_loss::contrast_statistics", mutates_args=())
def _statistics(
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
    outputs: tuple[Tensor, Tensor, Tensor] = _backend(impl, rows).statistics(
        rows, labels, log_weights, scale, num_anchors, with_sum, product_dtype
    )
    return outputs


@_statistics.register_fake
def _(rows: Tensor, labels: Tensor, log_weights: Tensor | None, scale: float, num_anchors: int, *_: Any) -> Any:
    return tuple(rows.new_empty(num_anchors) for _ in range(3))


def contrast_gradient(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    negative: Tensor,
    positive: Tensor,
    grads: Tensor,
    *,
    scale: float,
    num_grads: int,
    with_sum: bool,
    product_dtype: torch.dtype,
    impl: str,
) -> Tensor:
    """The gradient of the leading rows, complete, from the statistics of all anchors and the gradients of those.

    Args:
        rows: (R, D), like `labels`, `log_weights` and the options as for `contrast_statistics`.
        labels: (R,).
        log_weights: (R,) or None.
        negative: (A,) the first statistic of the leading A rows. One that is no anchor may stand among them with any
            finite statistics, if its gradients are zero.
        positive: (A,) the second.
        grads: (3, A) of what is differentiated, with respect to the three statistics.
        scale: as above.
        num_grads: G <= R, fewer or more than A.
        with_sum: whether the third row of `grads` counts.
        product_dtype: as above.
        impl: as above, but not "dense", whose statistics differentiate themselves.

    Returns:
        (G, D).
    """
    gradient: Tensor = _gradient(
        rows, labels, log_weights, negative, positive, grads, scale, num_grads, with_sum, product_dtype, impl
    )
    return gradient


@torch.library.custom_op("spcl_loss::contrast_gradient", mutates_args=())
def _gradient(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    negative: Tensor,
    positive: Tensor,
    grads: Tensor,
    scale: float,
    num_grads: int,
    with_sum: bool,
    product_dtype: torch.dtype,
    impl: str,
) -> Tensor:
    gradient: Tensor = _backend(impl, rows).gradient(
        rows, labels, log_weights, scale, num_grads, with_sum, negative, positive, grads, product_dtype
    )
    return gradient


@_gradient.register_fake
def _(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    negative: Tensor,
    positive: Tensor,
    grads: Tensor,
    scale: float,
    num_grads: int,
    *_: Any,
) -> Tensor:
    return rows.new_empty(num_grads, rows.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, labels, log_weights, ctx.scale, _, ctx.num_grads, ctx.with_sum, ctx.product_dtype, ctx.impl = inputs
    ctx.save_for_backward(rows, labels, log_weights, output[0], output[1])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    rows, labels, log_weights, negative, positive = ctx.saved_tensors
    grad = _gradient(
        rows,
        labels,
        log_weights,
        negative,
        positive,
        torch.stack(grads),
        ctx.scale,
        ctx.num_grads,
        ctx.with_sum,
        ctx.product_dtype,
        ctx.impl,
    )
    if ctx.num_grads < rows.shape[0]:
        grad = torch.nn.functional.pad(grad, (0, 0, 0, rows.shape[0] - ctx.num_grads))
    return grad, None, None, None, None, None, None, None, None


_statistics.register_autograd(_backward, setup_context=_setup)


def _no_second_derivative(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError(
        'the blockwise similarity operator has a first derivative only; pass impl="dense" to differentiate twice'
    )


_gradient.register_autograd(_no_second_derivative)
