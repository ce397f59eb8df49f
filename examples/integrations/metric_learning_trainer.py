"""A trainer of pytorch-metric-learning. It knows one process only.

python examples/integrations/metric_learning_trainer.py

Name a folder as an argument to save checkpoints there, and to continue from the last one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import Tensor, nn
from torch.utils.data import Dataset

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss

EPOCHS, BATCH_SIZE, CLASSES, WIDTH = 3, 8, 4, 8
SAVE_EVERY = 5  # training steps


class Points(Dataset[dict[str, Any]]):
    """203 points around four corners. A sample carries its index, so that the sampler can score it."""

    def __init__(self, seed: int = 0) -> None:
        noise = torch.randn(203, 6, generator=torch.Generator().manual_seed(seed))
        self.labels = torch.arange(203) % CLASSES
        self.inputs = torch.eye(CLASSES, 6)[self.labels] + 0.5 * noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "inputs": self.inputs[index], "labels": self.labels[index]}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, WIDTH))


class MetricLoss(SupervisedPrototypicalContrastiveLoss):
    """These trainers pass a third argument: the tuples that a miner found. This loss needs none."""

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None) -> Tensor:
        return super().forward(embeddings, labels)


class CurriculumTrainer(MetricLossOnly):
    def calculate_loss(self, batch: tuple[dict[str, Tensor], Tensor]) -> None:
        """As in the base class, but first the sampler observes the embeddings: they are not in the centroids yet."""
        inputs, labels = batch
        embeddings, loss_fn = self.compute_embeddings(inputs["inputs"]), self.loss_funcs["metric_loss"]
        self.sampler.observe(inputs["index"], embeddings.detach(), labels, *loss_fn.memory.centroids())
        self.losses["metric_loss"] = loss_fn(embeddings, labels)


def train(folder: Path) -> tuple[nn.Module, SupervisedPrototypicalContrastiveLoss]:
    data, model, loss_fn = Points(), make_model(), MetricLoss(CLASSES, WIDTH)
    # The difficulty is not known yet: start with equal scores, which the training steps replace.
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
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,  # workers would read ahead of what the training has used
        end_of_iteration_hook=after_step,
    )
    for epoch in range(sampler.epoch, EPOCHS):  # one call an epoch, which makes a new loader
        sampler.set_epoch(epoch)
        left = len(sampler) - sampler.state_dict()["position"]
        trainer.iterations_per_epoch = left // BATCH_SIZE  # these trainers drop an incomplete last batch
        trainer.train(start_epoch=epoch + 1, num_epochs=epoch + 1)
    return model, loss_fn


def save(state: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)  # a reader sees the old file or the new one, never half of one


@torch.no_grad()
def accuracy(model: nn.Module, loss_fn: SupervisedPrototypicalContrastiveLoss) -> float:
    """The share of new points whose nearest prototype is that of their class."""
    data = Points(seed=1)
    return (loss_fn.predict(model.eval()(data.inputs)) == data.labels).float().mean().item()


if __name__ == "__main__":
    model, loss_fn = train(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    print(f"accuracy on new points: {accuracy(model, loss_fn):.2f}")
