"""The training samples of an epoch, which of them the curriculum draws, and the batches they come in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader

from spcl_loss import DifficultyCurriculumSampler, PrototypeMemory

from .batches import RandomShareSampler, length_buckets
from .inputs import Sample, collate
from .prompts import Prompts
from .report import difficulty_counts
from .settings import Settings
from .windows import Windows


class TrainingData:
    """The training split, epoch by epoch: `prepare` makes an epoch's samples, `begin` draws among them.

    Attributes:
        samples: n, of the epoch that was prepared last.
        sampler: draws those of them that the epoch trains on.
    """

    def __init__(self, settings: Settings, layout: Prompts | Windows, accelerator: Accelerator) -> None:
        self.settings, self.layout, self.accelerator = settings, layout, accelerator
        # Each of several processes would know the difficulties of its own steps only.
        self.observes = (
            settings.curriculum == "on" and settings.difficulty_pass != "every" and accelerator.num_processes == 1
        )
        self.samples: list[Sample] = []
        self.prepare(0)
        self.sampler = _sampler(settings, len(self.samples))

    def prepare(self, epoch: int) -> None:
        """Makes the samples of an epoch: the same own queries always, and past queries drawn for the epoch.

        After the last epoch there are the own queries alone.
        """
        self.samples = self.layout.own_queries()
        if epoch < self.settings.epochs and isinstance(self.layout, Prompts):
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self.samples += self.layout.past_queries(self.settings.past_queries, generator)

    def begin(self, epoch: int, difficulty: Tensor | None) -> dict[str, list[float]] | None:
        """Draws the epoch by the difficulties (n,), which without a curriculum need not be known.

        Returns:
            Histograms of the difficulties, see `difficulty_counts`.
        """
        if isinstance(self.sampler, DifficultyCurriculumSampler):
            self.sampler.set_epoch(epoch, difficulty)
        else:
            self.sampler.set_epoch(epoch)
        return None if difficulty is None else difficulty_counts(difficulty, self.sampler.indices)

    def needs_pass(self, epoch: int) -> bool:
        """Whether an epoch begins with a pass over its samples; the one after the last stands for the end of training.

        Else a curriculum takes the difficulties from the last training steps.
        """
        if epoch == 0 or self.settings.curriculum != "on":
            return epoch == 0
        if not self.observes:
            return True
        return self.settings.difficulty_pass == "alternate" and epoch % 2 == 0 and epoch < self.settings.epochs

    def observe(self, members: list[int], features: Tensor, labels: Tensor, memory: PrototypeMemory) -> None:
        """Notes the difficulties of a training step's samples, if some epoch is to do without a pass."""
        if self.observes and isinstance(self.sampler, DifficultyCurriculumSampler):
            self.sampler.observe(torch.tensor(members), features.detach(), labels, *memory.centroids())

    def observed(self) -> Tensor | None:
        """Difficulties (n,) of a curriculum's samples from the last training steps; a past query has its turn's own."""
        if not isinstance(self.sampler, DifficultyCurriculumSampler):
            return None
        own = {(sample.dialogue, sample.turn): i for i, sample in enumerate(self.layout.own_queries())}
        places = [own[sample.dialogue, sample.turn] for sample in self.samples]
        return self.sampler.difficulty[places]

    def batches(self, epoch: int) -> list[list[int]]:
        """This process's share of the epoch's batches, as places in `samples`; each process has as many."""
        seed = (self.settings.seed * 1_000_003 + epoch) * 4099
        batches = length_buckets(self.samples, self.sampler.indices.tolist(), self.settings.batch_size, seed)
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        share = len(batches) // processes
        return batches[process : share * processes : processes] or [batches[process % len(batches)]]

    def loader(self, batches: Sequence[list[int]]) -> Any:
        """Accelerate's loader moves batches to the device and knows the last one; each process has its own already."""
        loader: DataLoader[Sample] = DataLoader(
            self.samples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=partial(collate, padding=self.layout.padding),
            generator=torch.Generator(),  # else a new loader advances the generator that dropout uses
        )
        device = self.accelerator.device
        return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


def _sampler(settings: Settings, size: int) -> DifficultyCurriculumSampler | RandomShareSampler:
    """Draws for all processes, which then share the batches."""
    if settings.curriculum == "on":
        return DifficultyCurriculumSampler(
            torch.zeros(size),  # not known yet
            num_epochs=settings.epochs,
            draw=settings.draw,
            seed=settings.seed,
            num_replicas=1,  # each process draws the whole epoch, and takes its own part of every batch
            rank=0,
        )
    return RandomShareSampler(size, share={"all": 1.0, "half": 0.5}[settings.curriculum], seed=settings.seed)
