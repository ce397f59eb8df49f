"""Which samples an epoch holds when no curriculum decides it, and how they are put into batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

POOL = 50  # batches sorted by length together: long enough for little padding, short enough for random batches


class RandomShareSampler(Sampler[int]):
    """All samples in random order, or a random share of them, anew each epoch; every rank gets as many."""

    def __init__(self, size: int, *, share: float, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        self.size, self.count, self.seed = size, max(1, int(share * size)), seed
        self.num_replicas, self.rank, self.epoch = num_replicas, rank, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]

    @property
    def indices(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        drawn = torch.randperm(self.size, generator=generator)[: self.count]
        return drawn[self.rank : len(self) * self.num_replicas : self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        yield from self.indices.tolist()

    def __len__(self) -> int:
        return self.count // self.num_replicas


def length_buckets(indices: list[int], lengths: list[int], batch_size: int, seed: int) -> list[list[int]]:
    """Batches of samples of like length, in random order.

    The samples are cut into pools of `POOL` batches as they come, each pool is sorted by length and cut into batches.
    """
    pool = POOL * batch_size
    batches = []
    for start in range(0, len(indices), pool):
        members = sorted(indices[start : start + pool], key=lambda index: lengths[index])
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[i] for i in order.tolist()]


def longest_first(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Batches of like length for a pass in which the order is free; the longest first, so that memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
