"""Which samples an epoch holds when no curriculum decides it, and how they are put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from .inputs import Sample, share_inputs

POOL = 50  # batches sorted by length together: long enough for little padding, short enough for random batches


class RandomShareSampler(Sampler[int]):
    """All samples in random order, or a random share of them, anew each epoch."""

    def __init__(self, size: int, *, share: float, seed: int) -> None:
        self.size, self.count, self.seed, self.epoch = size, max(1, int(share * size)), seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]

    @property
    def indices(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.size, generator=generator)[: self.count]

    def __iter__(self) -> Iterator[int]:
        yield from self.indices.tolist()

    def __len__(self) -> int:
        return self.count


def length_buckets(samples: Sequence[Sample], indices: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Batches of samples of like length, in random order.

    The samples are cut into pools of `POOL` batches as they come, each pool is sorted by length and cut into batches.
    Samples that share an input stay together, so that a batch may have more than `batch_size` of them.
    """
    batches = []
    for pool in _cut(share_inputs(samples, indices), POOL * batch_size):
        pool.sort(key=lambda group: _length(samples, group))
        batches += [_flat(groups) for groups in _cut(pool, batch_size)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[i] for i in order.tolist()]


def longest_first(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Batches of like length for a pass in which the order is free; the longest first, so that memory fails at once."""
    groups = share_inputs(samples, range(len(samples)))
    groups.sort(key=lambda group: -_length(samples, group))
    return [_flat(batch) for batch in _cut(groups, batch_size)]


def _length(samples: Sequence[Sample], group: Sequence[int]) -> int:
    return max(samples[index].length for index in group)


def _cut(groups: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """The groups in runs of at least `size` members; the last may have fewer."""
    runs: list[list[list[int]]] = []
    room = 0
    for group in groups:
        if room <= 0:
            runs.append([])
            room = size
        runs[-1].append(group)
        room -= len(group)
    return runs


def _flat(groups: Sequence[list[int]]) -> list[int]:
    return [index for group in groups for index in group]
