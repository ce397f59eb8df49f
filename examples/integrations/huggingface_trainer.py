"""Hugging Face Trainer: a subclass for the loss and the sampler, a callback for epochs and checkpoints.

python examples/integrations/huggingface_trainer.py
torchrun --nproc-per-node 2 examples/integrations/huggingface_trainer.py

Name a folder as an argument to save checkpoints there, and to continue from the last one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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


class CurriculumTrainer(Trainer):
    def __init__(self, loss_fn: nn.Module, sampler: DifficultyCurriculumSampler, **options: Any) -> None:
        super().__init__(callbacks=[CurriculumCallback(loss_fn, sampler)], **options)
        self.loss_fn, self.sampler = loss_fn.to(self.args.device), sampler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """A plain loader: Accelerate would divide each rank's samples among the ranks a second time."""
        return DataLoader(self.train_dataset, batch_size=self.args.per_device_train_batch_size, sampler=self.sampler)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        return self.loss_fn(model(inputs["inputs"]), inputs["labels"])


class CurriculumCallback(TrainerCallback):
    """Sets the sampler's epochs. Saves and restores the loss and the sampler with the trainer's checkpoints."""

    def __init__(self, loss_fn: nn.Module, sampler: DifficultyCurriculumSampler) -> None:
        self.loss_fn, self.sampler = loss_fn, sampler

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step > 0:
            saved = torch.load(self._path(args, state), map_location="cpu", weights_only=True)
            self.loss_fn.load_state_dict(saved["loss"])
            self.sampler.load_state_dict(saved["sampler"])

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes files of its own
        if state.is_world_process_zero:
            # Position 0, because the trainer itself skips the batches that this epoch has trained on.
            saved = {"loss": self.loss_fn.state_dict(), "sampler": self.sampler.state_dict(position=0)}
            unfinished = self._path(args, state).with_suffix(".part")
            torch.save(saved, unfinished)
            unfinished.replace(self._path(args, state))

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "curriculum.pt"


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint. `curriculum.pt` is its last file: a kill while saving leaves a folder without it."""
    numbers = [path.parent.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*/curriculum.pt")]
    steps = [int(number) for number in numbers if number.isdecimal()]  # another may be a copy that someone keeps
    return str(folder / f"checkpoint-{max(steps)}") if steps else None


def train(folder: Path) -> tuple[nn.Module, SupervisedPrototypicalContrastiveLoss]:
    data = Points()
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=0.01,
        save_steps=SAVE_EVERY,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True)
    sampler = DifficultyCurriculumSampler(prototype_difficulty(data.inputs, data.labels), num_epochs=EPOCHS)
    trainer = CurriculumTrainer(loss_fn, sampler, model=make_model(), args=args, train_dataset=data)
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    return trainer.model, loss_fn


@torch.no_grad()
def accuracy(model: nn.Module, loss_fn: SupervisedPrototypicalContrastiveLoss) -> float:
    """The share of new points whose nearest prototype is that of their class."""
    data, device = Points(seed=1), loss_fn.memory.queue.device
    predicted = loss_fn.predict(model.eval()(data.inputs.to(device)))
    return (predicted.cpu() == data.labels).float().mean().item()


if __name__ == "__main__":
    model, loss_fn = train(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(f"accuracy on new points: {accuracy(model, loss_fn):.2f}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
