"""Hugging Face Trainer: a subclass for loss and sampler, a callback for epochs and checkpoints.

torchrun --nproc-per-node 2 examples/integrations/huggingface_trainer.py runs/trainer
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toy import BATCH_SIZE, CLASSES, EPOCHS, SAVE_EVERY, WIDTH, Points, Record, main, network
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty


class CurriculumTrainer(Trainer):
    def __init__(
        self, loss_fn: nn.Module, sampler: DifficultyCurriculumSampler, record: Record, **options: Any
    ) -> None:
        super().__init__(callbacks=[CurriculumCallback(loss_fn, sampler)], **options)
        self.loss_fn, self.sampler, self.record = loss_fn.to(self.args.device), sampler, record

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Not prepared by Accelerate, which would share the ranks' own samples among the ranks once more."""
        return DataLoader(self.train_dataset, batch_size=self.args.per_device_train_batch_size, sampler=self.sampler)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        self.record(self.sampler.epoch, inputs["index"])
        return self.loss_fn(model(inputs["inputs"]), inputs["labels"])


class CurriculumCallback(TrainerCallback):
    """Sets the sampler's epochs; saves and restores loss and sampler with the trainer's checkpoints."""

    def __init__(self, loss_fn: nn.Module, sampler: DifficultyCurriculumSampler) -> None:
        self.loss_fn, self.sampler = loss_fn, sampler

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step > 0:
            saved = torch.load(self._path(args, state), weights_only=True)
            self.loss_fn.load_state_dict(saved["loss"])
            self.sampler.load_state_dict(saved["sampler"])

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            # The trainer itself skips the batches of the epoch that it has trained on, so from position 0.
            saved = {"loss": self.loss_fn.state_dict(), "sampler": self.sampler.state_dict(position=0)}
            torch.save(saved, self._path(args, state))

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "curriculum.pt"


def train(folder: Path, record: Record) -> tuple[nn.Module, nn.Module]:
    data = Points()
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=0.01,
        save_steps=SAVE_EVERY,
        remove_unused_columns=False,  # the sample's index among them
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=args.world_size > 1)
    sampler = DifficultyCurriculumSampler(
        prototype_difficulty(data.inputs, data.labels),
        num_epochs=EPOCHS,
        num_replicas=args.world_size,
        rank=args.process_index,
    )
    trainer = CurriculumTrainer(loss_fn, sampler, record, model=network(), args=args, train_dataset=data)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    return trainer.model, loss_fn


if __name__ == "__main__":
    main(train)
