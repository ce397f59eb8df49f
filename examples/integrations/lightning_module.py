"""Lightning: the loss is a part of the module, the sampler's state is in that of a StatefulDataLoader.

torchrun --nproc-per-node 2 examples/integrations/lightning_module.py runs/lightning
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchdata.stateful_dataloader import StatefulDataLoader
from toy import BATCH_SIZE, CLASSES, EPOCHS, SAVE_EVERY, WIDTH, Points, Record, main, network

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty


class Classifier(LightningModule):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self.network, self.record, self.data = network(), record, Points()
        self.loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True)

    def train_dataloader(self) -> StatefulDataLoader[Any]:
        # draw="fixed", the default: Lightning takes the number of batches for the same in all epochs.
        self.sampler = DifficultyCurriculumSampler(
            prototype_difficulty(self.data.inputs, self.data.labels),
            num_epochs=EPOCHS,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )
        # Lightning calls the sampler's set_epoch, and saves and restores the state of this loader.
        return StatefulDataLoader(self.data, batch_size=BATCH_SIZE, sampler=self.sampler)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        self.record(self.sampler.epoch, batch["index"])
        return self.loss_fn(self.network(batch["inputs"]), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


def train(folder: Path, record: Record) -> tuple[nn.Module, nn.Module]:
    module = Classifier(record)
    trainer = Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        strategy="ddp",
        max_epochs=EPOCHS,
        use_distributed_sampler=False,  # else Lightning puts a DistributedSampler of its own around ours
        reload_dataloaders_every_n_epochs=0,  # the sampler has to live through all epochs
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=SAVE_EVERY)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, ckpt_path=last if last.exists() else None)
    return module.network, module.loss_fn


if __name__ == "__main__":
    main(train)
