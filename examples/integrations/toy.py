"""What the examples of this folder train, and a record of which samples they trained on."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

EPOCHS, BATCH_SIZE, CLASSES, WIDTH = 3, 8, 4, 8
SAVE_EVERY = 5  # training steps


class Points(Dataset[dict[str, Any]]):
    """203 points around four corners. A sample knows its index, from which the sampler learns whose score is whose."""

    def __init__(self) -> None:
        noise = torch.randn(203, 6, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(203) % CLASSES
        self.inputs = torch.eye(CLASSES, 6)[self.labels] + 0.5 * noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "inputs": self.inputs[index], "labels": self.labels[index]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, WIDTH))


class Interrupted(Exception):
    """Stands for the kill signal, the power failure, the end of a time slot."""


class Record:
    """The (epoch, sample indices) of every batch trained on; interrupts the training after `stop_after` of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.batches: list[tuple[int, list[int]]] = []
        self.stop_after = stop_after

    def __call__(self, epoch: int, indices: Tensor) -> None:
        if len(self.batches) == self.stop_after:
            raise Interrupted
        self.batches.append((epoch, indices.tolist()))


def main(train: Callable[[Path, Record], Any]) -> None:
    """Trains in the folder that the command line names, or in a new one; goes on with what the folder holds."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    record = Record()
    train(folder, record)
    for epoch in range(EPOCHS):
        seen = [index for at, indices in record.batches if at == epoch for index in indices]
        print(f"epoch {epoch}: {len(seen)} samples, {len(set(seen))} different ones")
    if dist.is_initialized():
        dist.destroy_process_group()
