"""Lightning: the loss is a part of the module, and a StatefulDataLoader holds the sampler's state.

python examples/integrations/lightning_module.py
torchrun --nproc-per-node 2 examples/integrations/lightning_module.py

Name a folder as an argument to save checkpoints there, and to continue from the last one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty

EPOCHS, BATCH_SIZE, CLASSES, WIDTH = 3, 8, 4, 8
SAVE_EVERY = 5  # training steps


class Points(Dataset[dict[str, Any]]):
    """203 points around four corners."""

    def __init__(self, seed: int = 0) -> None:
        noise = torch.randn(203, 6, generator=torch.Generator().manual_seed(seed))
        self.labels = torch.arange(203) % CLASSES
        self.inputs = torch.eye(CLASSES, 6)[self.labels] + 0.5 * noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, WIDTH))


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.data = make_model(), Points()
        self.loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True)

    def train_dataloader(self) -> StatefulDataLoader[Any]:
        # The default, draw="fixed", gives all epochs the same number of batches, which Lightning assumes.
        difficulty = prototype_difficulty(self.data.inputs, self.data.labels)
        sampler = DifficultyCurriculumSampler(difficulty, num_epochs=EPOCHS)
        # Lightning calls the sampler's set_epoch, and it saves and restores the state of this loader.
        return StatefulDataLoader(self.data, batch_size=BATCH_SIZE, sampler=sampler)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        return self.loss_fn(self.model(batch["inputs"]), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


def train(folder: Path) -> tuple[nn.Module, SupervisedPrototypicalContrastiveLoss]:
    module = Classifier()
    trainer = Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        strategy="ddp",
        max_epochs=EPOCHS,
        use_distributed_sampler=False,  # else Lightning wraps a DistributedSampler around ours
        reload_dataloaders_every_n_epochs=0,  # one sampler must live through all epochs
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=SAVE_EVERY)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, ckpt_path=last if last.exists() else None)
    return module.model, module.loss_fn


@torch.no_grad()
def accuracy(model: nn.Module, loss_fn: SupervisedPrototypicalContrastiveLoss) -> float:
    """The share of new points whose nearest prototype is that of their class."""
    data, device = Points(seed=1), loss_fn.memory.queue.device
    predicted = loss_fn.predict(model.eval()(data.inputs.to(device)))
    return (predicted.cpu() == data.labels).float().mean().item()


if __name__ == "__main__":
    model, loss_fn = train(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    if torch.distributed.get_rank() == 0:
        print(f"accuracy on new points: {accuracy(model, loss_fn):.2f}")
    torch.distributed.destroy_process_group()
