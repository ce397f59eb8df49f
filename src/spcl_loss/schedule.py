"""Pacing: how probable a sample's presence in an epoch is, by its rank from easy to hard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spcl_loss._checks import check_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

Schedule = str | tuple[float, float] | Callable[[int], Tensor]

_PACINGS = ("linear", "root", "step")


def check_schedule(schedule: Schedule) -> None:
    if callable(schedule) or schedule in _PACINGS:
        return
    if isinstance(schedule, str) or not isinstance(schedule, tuple) or len(schedule) != 2:
        raise ValueError(
            f"schedule must be one of {', '.join(map(repr, _PACINGS))}, a pair (start, end), or a callable from an "
            f"epoch to keep probabilities; received {schedule!r}"
        )
    for bound in schedule:
        check_number("a bound of schedule", bound)
        if not 0 <= bound <= 1:
            raise ValueError(
                f"schedule must be a pair of tilts from 0, easy samples only, to 1, hard ones; received {schedule}"
            )


def keep_by_rank(schedule: Schedule, epoch: int, num_epochs: int, size: int) -> NDArray[np.float64]:
    """(size,) keep probabilities in an epoch, from the easiest sample to the hardest."""
    if callable(schedule):
        return _called(schedule, epoch, size)
    if size == 1:
        return np.ones(1)
    elapsed = epoch / max(1, num_epochs - 1)  # from 0 in the first epoch to 1 in the last
    if schedule == "root":
        return _pool((0.25 + 0.75 * elapsed) ** 0.5, size)
    if schedule == "step":
        return _pool(0.5 if 2 * epoch < num_epochs else 1.0, size)
    if isinstance(schedule, tuple):
        start, end = schedule
        return _line(start + (end - start) * elapsed, size)
    return _line(epoch / num_epochs, size)


def _line(tilt: float, size: int) -> NDArray[np.float64]:
    """From 1 - tilt for the easiest sample to tilt for the hardest."""
    keep = np.arange(size, dtype=np.float64)
    keep *= (2 * tilt - 1) / (size - 1)
    keep += 1 - tilt
    return np.clip(keep, 0, 1, out=keep)


def _pool(share: float, size: int) -> NDArray[np.float64]:
    """Half of the data, drawn from this share of it, the easiest."""
    pool = max(round(share * size), -(-size // 2))
    keep = np.zeros(size)
    keep[:pool] = 0.5 * size / pool
    return keep


def _called(schedule: Callable[[int], Tensor], epoch: int, size: int) -> NDArray[np.float64]:
    keep = torch.as_tensor(schedule(epoch)).detach().to("cpu", torch.float64, copy=True)  # the caller changes it
    if keep.shape != (size,):
        raise ValueError(
            f"schedule must give one keep probability a sample, of shape ({size},), from the easiest to the hardest; "
            f"received {tuple(keep.shape)} in epoch {epoch}"
        )
    inside = (keep >= 0) & (keep <= 1)
    if not bool(inside.all()):
        raise ValueError(
            f"schedule must give probabilities from 0 to 1; received {float(keep[~inside][0])} in epoch {epoch}"
        )
    return keep.numpy()
