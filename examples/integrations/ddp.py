"""Plain PyTorch with DistributedDataParallel. The first command runs one process, the second runs two.

python examples/integrations/ddp.py
torchrun --nproc-per-node 2 examples/integrations/ddp.py

Name a folder as an argument to save checkpoints there, and to continue from the last one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
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
    device = join_group()
    data = Points()
    model = DistributedDataParallel(make_model().to(device))
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True).to(device)
    # The difficulty is not known yet: start with equal scores, which the training steps replace. The sampler gives each
    # rank of the process group its own part of an epoch.
    sampler = DifficultyCurriculumSampler(torch.zeros(len(data)), num_epochs=EPOCHS)
    loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    parts = {"model": model, "loss": loss_fn, "sampler": sampler, "optimizer": optimizer}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        for name, state in torch.load(checkpoint, map_location="cpu", weights_only=True).items():
            parts[name].load_state_dict(state)

    step = 0
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        for batch in loader:
            index, inputs, labels = (batch[name].to(device) for name in ("index", "inputs", "labels"))
            embeddings = model(inputs)
            # All ranks must observe the same samples, because each draws the next epoch from these scores.
            # They do so before the loss puts the samples into the centroids.
            seen = [gather(rows) for rows in (index, embeddings.detach(), labels)]
            sampler.observe(*seen, *loss_fn.memory.centroids())
            optimizer.zero_grad()
            loss_fn(embeddings, labels).backward()
            optimizer.step()
            step += 1
            if step % SAVE_EVERY == 0 and dist.get_rank() == 0:
                save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    return model.module, loss_fn


def join_group() -> torch.device:
    """Joins torchrun's processes, or makes a group of one under plain python. Returns this process's device."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        alone = {} if dist.is_torchelastic_launched() else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group("nccl" if cuda else "gloo", **alone)
    return device


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks. Every rank has equally many: the sampler gives each the same number of samples."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def save(state: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)  # a reader sees the old file or the new one, never half of one


@torch.no_grad()
def accuracy(model: nn.Module, loss_fn: SupervisedPrototypicalContrastiveLoss) -> float:
    """The share of new points whose nearest prototype is that of their class."""
    data, device = Points(seed=1), loss_fn.memory.queue.device
    predicted = loss_fn.predict(model.eval()(data.inputs.to(device)))
    return (predicted.cpu() == data.labels).float().mean().item()


if __name__ == "__main__":
    model, loss_fn = train(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    if dist.get_rank() == 0:
        print(f"accuracy on new points: {accuracy(model, loss_fn):.2f}")
    dist.destroy_process_group()
