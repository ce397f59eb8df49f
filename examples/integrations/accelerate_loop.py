"""A training loop with Hugging Face Accelerate. On GPUs `accelerate launch` does what torchrun does here.

python examples/integrations/accelerate_loop.py
torchrun --nproc-per-node 2 examples/integrations/accelerate_loop.py

Name a folder as an argument to save checkpoints there, and to continue from the last one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

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


def train(folder: Path) -> tuple[nn.Module, SupervisedPrototypicalContrastiveLoss]:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    data = Points()
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True).to(device)
    # The difficulty is not known yet: start with equal scores, which the training steps replace. The sampler gives each
    # rank of the process group its own part of an epoch.
    sampler = DifficultyCurriculumSampler(torch.zeros(len(data)), num_epochs=EPOCHS)
    # Keep the loader out of accelerator.prepare. It would divide each rank's samples among the ranks once more, repeat
    # those that are left over, and read one batch ahead.
    loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler)
    model = make_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))

    accelerator.register_for_checkpointing(loss_fn, sampler)  # save_state and load_state include them
    checkpoint, former = folder / "checkpoint", folder / "checkpoint.former"
    if saved := next(filter(Path.exists, (checkpoint, former)), None):
        accelerator.load_state(str(saved))

    step = 0
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        for batch in loader:
            index, inputs, labels = (batch[name].to(device) for name in ("index", "inputs", "labels"))
            embeddings = model(inputs)
            # All ranks must observe the same samples, because each draws the next epoch from these scores.
            # They do so before the loss puts the samples into the centroids.
            seen = accelerator.gather((index, embeddings.detach(), labels))
            sampler.observe(*seen, *loss_fn.memory.centroids())
            optimizer.zero_grad()
            accelerator.backward(loss_fn(embeddings, labels))
            optimizer.step()
            step += 1
            if step % SAVE_EVERY == 0:
                save(accelerator, checkpoint, former)
    return accelerator.unwrap_model(model), loss_fn


def save(accelerator: Accelerator, checkpoint: Path, former: Path) -> None:
    """Saves beside the last checkpoint, then replaces it. After a kill, `checkpoint` or else `former` is whole."""
    accelerator.save_state(str(unfinished := checkpoint.with_suffix(".part")))
    accelerator.wait_for_everyone()  # each process writes files of its own
    if accelerator.is_main_process:
        if checkpoint.exists():
            shutil.rmtree(former, ignore_errors=True)
            checkpoint.rename(former)
        unfinished.rename(checkpoint)
    accelerator.wait_for_everyone()


@torch.no_grad()
def accuracy(model: nn.Module, loss_fn: SupervisedPrototypicalContrastiveLoss) -> float:
    """The share of new points whose nearest prototype is that of their class."""
    data, device = Points(seed=1), loss_fn.memory.queue.device
    predicted = loss_fn.predict(model.eval()(data.inputs.to(device)))
    return (predicted.cpu() == data.labels).float().mean().item()


if __name__ == "__main__":
    model, loss_fn = train(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    accelerator = Accelerator()  # the processes' shared state again
    accelerator.print(f"accuracy on new points: {accuracy(model, loss_fn):.2f}")
    accelerator.end_training()
