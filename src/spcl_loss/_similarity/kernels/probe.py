"""Whether the kernels work here: `auto` tries each kind of launch once per device and precision, against strips."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from spcl_loss._numerics import PLAIN_SCALE
from spcl_loss._similarity import strips
from spcl_loss._similarity.comparison import Comparison, Upstream
from spcl_loss._similarity.kernels import config

# (device, dtype and precision of the products, few rows, small scale) -> whether the kernels work. The only state here.
_works: dict[tuple[torch.device, torch.dtype, str, bool, bool], bool] = {}


def kernels_work(device: torch.device, comparison: Comparison) -> bool:
    """Whether the kernels that serve this comparison can be compiled and launched, and agree with strips.

    Tries them on the first call for a kind of launch. If they fail, warns with the reason. A stream that is being
    captured cannot wait for an answer: without an earlier one, the answer is no.
    """
    few, plain = comparison.labels.shape[0] <= config.SMALL_ROWS, comparison.scale <= PLAIN_SCALE
    key = device, comparison.product_dtype, config.precision(comparison.product_dtype), few, plain
    if key in _works:
        return _works[key]
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        _warn("nobody has tried them yet, and a CUDA graph is being captured. Run one step before the capture")
        return False
    reason = _reason_to_avoid(device, comparison.product_dtype, few, plain)
    _works[key] = reason is None
    if reason is not None:
        _warn(f"they failed on {device} with products in {comparison.product_dtype}: {reason}")
    return reason is None


def _warn(reason: str) -> None:
    warnings.warn(
        f'spcl_loss computes without its Triton kernels: {reason}. impl="triton" insists on them and raises the whole '
        'error; impl="strips" avoids this warning',
        RuntimeWarning,
        stacklevel=2,
    )


def _reason_to_avoid(device: torch.device, product_dtype: torch.dtype, few: bool, plain: bool) -> str | None:
    scale = 10.0 if plain else 100.0
    try:
        with _waiting_allowed(device):
            errors = _errors(device, product_dtype, 40 if few else config.SMALL_ROWS + 50, scale)
    except Exception as error:  # no C compiler, a compiler that fails, out of resources, ...: whatever it is, go on
        return f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]
    # TF32 and half precision move scores by up to 2e-3 of the scale. A wrong kernel is off by far more.
    if all(error <= 2e-3 * scale for error in errors[:3]) and errors[3] <= 0.05:  # False for NaN too
        return None
    return f"they disagree with strips (largest differences of the statistics and of the gradient: {errors})"


def _errors(device: torch.device, product_dtype: torch.dtype, num_rows: int, scale: float) -> list[float]:
    """Largest difference of each statistic, per score, and relative difference of the gradient, on random rows."""
    from spcl_loss._similarity.kernels import dispatch

    generator = torch.Generator().manual_seed(0)  # the global generators stay as they are
    drawn = torch.randn(num_rows, 83, generator=generator, dtype=torch.float32, device="cpu").to(device)
    rows = torch.nn.functional.normalize(drawn[:, :80])
    labels = torch.arange(num_rows, dtype=torch.int32, device=device) % 5  # as the loss passes them
    comparison = Comparison(labels, None, scale, num_rows, num_rows, True, product_dtype)
    expected, found = strips.statistics(rows, comparison), dispatch.statistics(rows, comparison)
    errors = [(a - b).abs().max() for a, b in zip(found, expected, strict=True)]
    errors[2] = errors[2] / (num_rows // 5)
    upstream = Upstream(*expected[:2], drawn[:, 80:].T)
    gradients = [backend.gradient(rows, comparison, upstream) for backend in (dispatch, strips)]
    return [*map(Tensor.item, errors), ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()]


@contextmanager
def _waiting_allowed(device: torch.device) -> Iterator[None]:
    """Reading the errors waits for the GPU, even where `torch.cuda.set_sync_debug_mode` forbids it."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
