"""Draws of samples whose keep probabilities are stated by rank: a few passes over plain arrays, exact at any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHOLE = 1 << 30  # keep probabilities are counted in parts of this, so that sums of any length are exact


def integer_shares(keep: NDArray[np.float64]) -> NDArray[np.int32]:
    """Probabilities as parts of WHOLE; overwrites `keep`."""
    keep *= WHOLE
    return np.rint(keep, out=keep).astype(np.int32)


def whole_number_of_samples(shares: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Shares, and what one sample is in them, such that they add up to a whole number of samples, rounded down.

    Rounding leaves k shares off by k/2 in all; what they lack to the whole number for that reason, single units make
    up. Overwrites `shares`.
    """
    total = int(shares.sum(dtype=np.int64))
    rounded = int(np.count_nonzero((shares > 0) & (shares < WHOLE))) // 2
    length = (total + rounded) // WHOLE
    if length == 0:
        raise ValueError(
            "schedule must keep at least one sample an epoch; received keep probabilities that add up to "
            f"{total / WHOLE:g}. Raise them, or take draw='bernoulli'"
        )
    whole = max(WHOLE, -(-total // length))
    if short := whole * length - total:
        shares[np.flatnonzero((shares > 0) & (shares < whole))[:short]] += 1
    return shares, whole


def draw_samples(
    scores: NDArray[Any],
    shares: NDArray[np.int32],
    whole: int,
    *,
    systematic: bool,
    shuffle: bool,
    generator: np.random.Generator,
) -> NDArray[Any]:
    """Indices of the samples drawn, in random order or from the lowest score to the highest.

    Args:
        scores: (n,) of the samples; equal ones are ranked at random.
        shares: (n,) by rank from the lowest score to the highest: how probable it is to be drawn, in parts of `whole`.
        whole: one sample.
        systematic: whether the number drawn is always the same; `shares` must then add up to a multiple of `whole`.
        shuffle: whether the order is random.
        generator: what all of it is drawn with.
    """
    size = scores.shape[0]
    order = generator.permutation(np.arange(size, dtype=np.int32 if size < 2**31 else np.int64))
    by_rank = _argsort(scores[order])  # places in `order`, which breaks ties at random
    by_place = np.empty_like(shares)
    by_place[by_rank] = shares
    del shares  # one of several arrays of the size of the scores
    kept = (_systematic if systematic else _coins)(by_place, whole, generator)
    return order[kept] if shuffle else order[by_rank[kept[by_rank]]]


def _coins(shares: NDArray[np.int32], whole: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    kept = np.empty(shares.shape, dtype=bool)
    np.less(generator.integers(whole, size=shares.shape[0], dtype=np.int32), shares, out=kept)
    return kept


def _systematic(shares: NDArray[np.int32], whole: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Lays the shares end to end from a random start on, and takes the sample at every multiple of `whole`.

    The shares add up to a multiple of it, so the number taken does not depend on the start.
    """
    crossed = shares.astype(np.int64)
    np.cumsum(crossed, out=crossed)
    crossed += generator.integers(whole)
    crossed //= whole
    kept = np.empty(shares.shape, dtype=bool)
    kept[0] = crossed[0] > 0
    np.not_equal(crossed[1:], crossed[:-1], out=kept[1:])
    return kept


def _argsort(scores: NDArray[Any]) -> NDArray[Any]:
    """Stable. Single-precision scores are sorted as integers that hold their places too: several times faster."""
    if scores.dtype != np.float32 or scores.shape[0] >= 2**31:
        return scores.argsort(kind="stable")
    keys = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    keys ^= (keys >> 31) & 0x7FFFFFFF  # the bits of negative numbers count downwards
    pairs = keys.astype(np.int64)
    pairs <<= 32
    pairs |= np.arange(scores.shape[0], dtype=np.int32)
    pairs.sort()
    return pairs.astype(np.int32)  # the lower half
