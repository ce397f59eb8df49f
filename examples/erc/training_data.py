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
from .dialogues import InputError
from .prompts import Prompts, Sample, collate
from .report import difficulty_counts
from .settings import Settings


class TrainingData:
    """The training split, epoch by epoch: `prepare` makes an epoch's samples, `begin` draws among them.

    Attributes:
        samples: n, of the epoch that was prepared last.
        sampler: draws those of them that the epoch trains on.
    """

    def __init__(self, settings: Settings, prompts: Prompts, accelerator: Accelerator) -> None:
        if settings.difficulty_pass != "every" and accelerator.num_processes > 1:
            raise InputError(
                f"difficulty_pass must be every with {accelerator.num_processes} processes, which would each observe "
                f"other samples; received {settings.difficulty_pass}"
            )
        self.settings, self.prompts, self.accelerator = settings, prompts, accelerator
        self.samples: list[Sample] = []
        self.prepare(0)
        self.sampler = _sampler(settings, len(self.samples), accelerator)

    def prepare(self, epoch: int) -> None:
        """Makes the samples of an epoch: the same own queries always, and past queries drawn for the epoch.

        After the last epoch there are the own queries alone.
        """
        self.samples = self.prompts.own_queries()
        if epoch < self.settings.epochs:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self.samples += self.prompts.past_queries(self.settings.past_queries, generator)

    def begin(self, epoch: int, difficulty: Tensor) -> dict[str, list[float]]:
        """Draws the epoch by the difficulties (n,).

        Returns:
            Histograms of the difficulties, see `difficulty_counts`.
        """
        if isinstance(self.sampler, DifficultyCurriculumSampler):
            self.sampler.set_epoch(epoch, difficulty)
        else:
            self.sampler.set_epoch(epoch)
        drawn = self.accelerator.gather(self.sampler.indices.to(self.accelerator.device)).cpu()
        return difficulty_counts(difficulty, drawn)

    def needs_pass(self, epoch: int) -> bool:
        """Whether the difficulties of an epoch come from a pass over its samples; else from the last training steps."""
        return {"every": True, "alternate": epoch % 2 == 0, "first": epoch == 0}[self.settings.difficulty_pass]

    def observe(self, members: list[int], features: Tensor, labels: Tensor, memory: PrototypeMemory) -> None:
        """Notes the difficulties of a training step's samples, if some epoch is to do without a pass."""
        if isinstance(self.sampler, DifficultyCurriculumSampler) and self.settings.difficulty_pass != "every":
            self.sampler.observe(torch.tensor(members), features.detach(), labels, *memory.centroids())

    def observed(self) -> Tensor:
        """Difficulties (n,) of the samples from the last training steps; a past query has its turn's own."""
        own = {(sample.dialogue, sample.turn): i for i, sample in enumerate(self.prompts.own_queries())}
        places = [own[sample.dialogue, sample.turn] for sample in self.samples]
        assert isinstance(self.sampler, DifficultyCurriculumSampler)  # else the settings have a pass every epoch
        return self.sampler.difficulty[places]

    def batches(self, epoch: int) -> list[list[int]]:
        """This process's share of the epoch, as places in `samples`."""
        lengths = [len(sample.input_ids) for sample in self.samples]
        seed = (self.settings.seed * 1_000_003 + epoch) * 4099 + self.accelerator.process_index
        return length_buckets(self.sampler.indices.tolist(), lengths, self.settings.batch_size, seed)

    def loader(self, batches: Sequence[list[int]]) -> Any:
        """Accelerate's loader moves batches to the device and knows the last one; each process has its own already."""
        loader: DataLoader[Sample] = DataLoader(
            self.samples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=partial(collate, padding=self.prompts.padding),
            generator=torch.Generator(),  # else a new loader advances the generator that dropout uses
        )
        device = self.accelerator.device
        return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


def _sampler(
    settings: Settings, size: int, accelerator: Accelerator
) -> DifficultyCurriculumSampler | RandomShareSampler:
    processes, process = accelerator.num_processes, accelerator.process_index
    if settings.curriculum == "on":
        return DifficultyCurriculumSampler(
            torch.zeros(size),  # not known yet
            num_epochs=settings.epochs,
            draw=settings.draw,
            seed=settings.seed,
            num_replicas=processes,
            rank=process,
        )
    share = {"all": 1.0, "half": 0.5}[settings.curriculum]
    return RandomShareSampler(size, share=share, seed=settings.seed, num_replicas=processes, rank=process)
