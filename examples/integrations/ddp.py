"""Plain PyTorch with DistributedDataParallel.

torchrun --nproc-per-node 2 examples/integrations/ddp.py runs/ddp
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from toy import BATCH_SIZE, CLASSES, EPOCHS, SAVE_EVERY, WIDTH, Points, Record, main, network

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss


def train(folder: Path, record: Record) -> tuple[nn.Module, nn.Module]:
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    data = Points()
    model = DistributedDataParallel(network())
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True)
    # Nothing is known of the difficulty yet: equal scores, which training steps replace.
    sampler = DifficultyCurriculumSampler(torch.zeros(len(data)), num_epochs=EPOCHS, num_replicas=world, rank=rank)
    loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    parts = {"model": model, "loss": loss_fn, "sampler": sampler, "optimizer": optimizer}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        for name, state in torch.load(checkpoint, weights_only=True).items():
            parts[name].load_state_dict(state)

    step = 0
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        for batch in loader:
            record(epoch, batch["index"])
            embeddings = model(batch["inputs"])
            optimizer.zero_grad()
            loss_fn(embeddings, batch["labels"]).backward()
            optimizer.step()
            # All ranks have to observe the same samples: they draw the next epoch from these scores.
            seen = [gather(part) for part in (batch["index"], embeddings.detach(), batch["labels"])]
            sampler.observe(*seen, *loss_fn.memory.centroids())
            step += 1
            if step % SAVE_EVERY == 0 and rank == 0:
                save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    return model, loss_fn


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks; every rank has as many, since the sampler gives each the same number of samples."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def save(state: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)  # a reader sees the old file or the new one, never half of one


if __name__ == "__main__":
    main(train)
