"""A trainer of pytorch-metric-learning; it knows one process.

python examples/integrations/metric_learning_trainer.py runs/metric-learning
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ddp import save
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import Tensor, nn
from toy import BATCH_SIZE, CLASSES, EPOCHS, SAVE_EVERY, WIDTH, Points, Record, main, network

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss


class MetricLoss(SupervisedPrototypicalContrastiveLoss):
    """These trainers call loss(embeddings, labels, tuples that a miner found)."""

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None) -> Tensor:
        return super().forward(embeddings, labels)


class CurriculumTrainer(MetricLossOnly):
    def calculate_loss(self, batch: tuple[dict[str, Tensor], Tensor]) -> None:
        """As in the base class, with the embeddings shown to the sampler, and the index to the record."""
        inputs, labels = batch
        self.record(self.sampler.epoch, inputs["index"])
        embeddings, loss_fn = self.compute_embeddings(inputs["inputs"]), self.loss_funcs["metric_loss"]
        self.losses["metric_loss"] = loss_fn(embeddings, labels)
        self.sampler.observe(inputs["index"], embeddings.detach(), labels, *loss_fn.memory.centroids())


def train(folder: Path, record: Record) -> tuple[nn.Module, nn.Module]:
    data, model, loss_fn = Points(), network(), MetricLoss(CLASSES, WIDTH)
    sampler = DifficultyCurriculumSampler(torch.zeros(len(data)), num_epochs=EPOCHS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = {"model": model, "loss": loss_fn, "sampler": sampler, "optimizer": optimizer}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        for name, state in torch.load(checkpoint, weights_only=True).items():
            parts[name].load_state_dict(state)

    def after_step(trainer: CurriculumTrainer) -> None:
        if (trainer.iteration + 1) % SAVE_EVERY == 0:
            save({name: part.state_dict() for name, part in parts.items()}, checkpoint)

    trainer = CurriculumTrainer(
        {"trunk": model},
        {"trunk_optimizer": optimizer},
        BATCH_SIZE,
        {"metric_loss": loss_fn},
        data,
        sampler=sampler,
        data_and_label_getter=lambda batch: (batch, batch["labels"]),
        dataloader_num_workers=0,  # workers would read ahead of what the training has used
        end_of_iteration_hook=after_step,
    )
    trainer.record = record
    for epoch in range(sampler.epoch, EPOCHS):  # one call an epoch, which makes a new loader
        sampler.set_epoch(epoch)
        left = len(sampler) - sampler.state_dict()["position"]
        trainer.iterations_per_epoch = left // BATCH_SIZE  # these trainers drop an incomplete last batch
        trainer.train(start_epoch=epoch + 1, num_epochs=epoch + 1)
    return model, loss_fn


if __name__ == "__main__":
    main(train)
