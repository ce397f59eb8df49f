"""An epoch -> which samples: schedules give each rank a keep probability, draws keep samples with exactly these."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from spcl_loss._checks import check_number

if TYPE_CHECKING:  # importing it loads more of NumPy
    from numpy.typing import NDArray

Draw = Literal["fixed", "bernoulli"]
Pacing = Literal["linear", "root", "step"]
Schedule = Pacing | tuple[float, float] | Callable[[int], Tensor]

_PARTS = 1 << 30  # probabilities are counted in parts of one sample, so that sums of any length are exact


class Settings(NamedTuple):
    """What decides the samples of an epoch beside the scores."""

    draw: Draw
    shuffle: bool
    schedule: Schedule
    num_epochs: int
    epoch: int
    seed: int
    num_replicas: int
    rank: int

    def recorded(self) -> dict[str, Any]:
        """Those that a state has to agree on, in types that `torch.load` reads."""
        schedule: object = "a callable" if callable(self.schedule) else self.schedule
        if isinstance(schedule, tuple):  # of NumPy's numbers perhaps
            schedule = tuple(map(float, schedule))
        return {"draw": self.draw, "shuffle": self.shuffle, "schedule": schedule, "num_epochs": self.num_epochs}


class Epoch(NamedTuple):
    """The samples of one rank in an epoch, in order, and what they were drawn from."""

    settings: Settings
    scores: Tensor
    indices: NDArray[Any]


def check_schedule(schedule: Schedule) -> None:
    pacings = get_args(Pacing)
    if callable(schedule) or (isinstance(schedule, str) and schedule in pacings):
        return
    if not isinstance(schedule, tuple) or len(schedule) != 2:
        raise ValueError(
            f"schedule must be one of {', '.join(map(repr, pacings))}, a pair (start, end), or a callable from an "
            f"epoch to keep probabilities; received {schedule!r}. Pass one of these"
        )
    for bound in schedule:
        check_number("a bound of schedule", bound)
        if not 0 <= bound <= 1:
            raise ValueError(
                "schedule must be a pair of numbers from 0 (easy samples only) to 1 (hard samples only); "
                f"received {schedule}. Use (0, 1) for easy samples first"
            )


def draw_epoch(settings: Settings, scores: Tensor) -> Epoch:
    ranks = settings.num_replicas
    drawn = draw_samples(settings, scores.numpy(), np.random.default_rng([settings.seed, settings.epoch]))
    if drawn.shape[0] < ranks > 1:
        raise ValueError(
            f"an epoch must hold at least one sample for each of num_replicas={ranks}; received {drawn.shape[0]} of "
            f"{scores.shape[0]} samples in epoch {settings.epoch}. Use fewer ranks or more data"
        )
    equal = drawn.shape[0] - drawn.shape[0] % ranks
    return Epoch(settings, scores, drawn[settings.rank : equal : ranks].copy())


def keep_parts(settings: Settings, size: int) -> tuple[NDArray[np.int32], int]:
    """The keep probabilities of an epoch as whole numbers.

    Returns:
        (size,) parts from the easiest sample to the hardest, and the number of parts per sample. The keep probability
        of a rank is the quotient of the two. For the fixed draw the parts add up to a whole number of samples.
    """
    keep = _keep_by_rank(settings.schedule, settings.epoch, settings.num_epochs, size)
    keep *= _PARTS
    parts = np.rint(keep, out=keep).astype(np.int32)
    return (parts, _PARTS) if settings.draw == "bernoulli" else _whole_number_of_samples(parts)


def keep_probability(settings: Settings, scores: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) by sample. Samples of equal score are ranked at random, so they share the mean of their ranks."""
    parts, parts_per_sample = keep_parts(settings, scores.shape[0])
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    sums = np.bincount(np.sort(group), parts / parts_per_sample)
    shared: NDArray[np.float64] = (sums / sizes)[group]
    return shared


def draw_samples(settings: Settings, scores: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Indices of the samples that all ranks keep, in random order or from the lowest score (n,) to the highest.

    Samples of equal score are ranked at random.
    """
    size = scores.shape[0]
    order = generator.permutation(np.arange(size, dtype=np.int32 if size < 2**31 else np.int64))
    by_rank = _argsort(scores[order])  # places in `order`, which breaks ties at random
    parts, parts_per_sample = keep_parts(settings, size)
    by_place = np.empty_like(parts)
    by_place[by_rank] = parts
    del parts  # frees one of several arrays of n entries
    if settings.draw == "fixed":
        kept = _systematic(by_place, parts_per_sample, generator)
    else:
        kept = generator.integers(parts_per_sample, size=size, dtype=np.int32) < by_place
    return order[kept] if settings.shuffle else order[by_rank[kept[by_rank]]]


def _keep_by_rank(schedule: Schedule, epoch: int, num_epochs: int, size: int) -> NDArray[np.float64]:
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
    """Half of the data, drawn from the easiest `share` of it."""
    pool = max(round(share * size), -(-size // 2))
    keep = np.zeros(size)
    keep[:pool] = 0.5 * size / pool
    return keep


def _called(schedule: Callable[[int], Tensor], epoch: int, size: int) -> NDArray[np.float64]:
    """What the user's callable gives, checked. A copy, since `keep_parts` writes to it."""
    given = schedule(epoch)
    try:
        keep = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"schedule must give a tensor of keep probabilities; received {type(given).__name__} in epoch {epoch}: "
            f"{error}. Make it return a tensor of shape ({size},)"
        ) from error
    if keep.shape != (size,):
        raise ValueError(
            f"schedule must give one keep probability per sample, of shape ({size},), from the easiest to the hardest; "
            f"received {tuple(keep.shape)} in epoch {epoch}. Make it return a tensor of that shape"
        )
    inside = (keep >= 0) & (keep <= 1)
    if not bool(inside.all()):
        raise ValueError(
            f"schedule must give probabilities from 0 to 1; received {float(keep[~inside][0])} in epoch {epoch}. "
            "Use torch.clamp(keep, 0, 1), or divide by the largest"
        )
    return keep.numpy()


def _whole_number_of_samples(parts: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """The parts and the number of parts per sample, such that the parts add up to whole samples, rounded down.

    Rounding k probabilities to parts can lose k/2 parts in all. If the sum falls short of a whole number of samples by
    no more than that, single parts are added to make it whole. Overwrites `parts`.
    """
    total = int(parts.sum(dtype=np.int64))
    rounded = int(np.count_nonzero((parts > 0) & (parts < _PARTS))) // 2
    length = (total + rounded) // _PARTS
    if length == 0:
        raise ValueError(
            "schedule must keep at least one sample per epoch; received keep probabilities that add up to "
            f"{total / _PARTS:g}. Raise them, or take draw='bernoulli'"
        )
    parts_per_sample = max(_PARTS, -(-total // length))
    if short := parts_per_sample * length - total:
        parts[np.flatnonzero((parts > 0) & (parts < parts_per_sample))[:short]] += 1
    return parts, parts_per_sample


def _systematic(parts: NDArray[np.int32], parts_per_sample: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Systematic sampling: lays the parts end to end from a random start, and keeps the sample at every whole sample.

    The parts add up to a whole number of samples, so the number kept does not depend on the start.
    """
    crossed = parts.astype(np.int64)
    np.cumsum(crossed, out=crossed)
    crossed += generator.integers(parts_per_sample)
    crossed //= parts_per_sample
    kept = np.empty(parts.shape, dtype=bool)
    kept[0] = crossed[0] > 0
    np.not_equal(crossed[1:], crossed[:-1], out=kept[1:])
    return kept


def _argsort(scores: NDArray[Any]) -> NDArray[Any]:
    """A stable argsort. Packs a float32 score and its place into one integer: sorting those is several times faster."""
    if scores.dtype != np.float32 or scores.shape[0] >= 2**31:
        return scores.argsort(kind="stable")
    keys = (scores + np.float32(0)).view(np.int32)  # adding 0 turns -0 into 0
    keys ^= (keys >> 31) & 0x7FFFFFFF  # the bits of negative numbers run downwards
    pairs = keys.astype(np.int64)
    pairs <<= 32
    pairs |= np.arange(scores.shape[0], dtype=np.int32)
    pairs.sort()
    return pairs.astype(np.int32)  # the lower half
