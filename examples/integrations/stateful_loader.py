"""torchdata's StatefulDataLoader: its state holds the sampler's, so that worker processes may read ahead.

torchrun --nproc-per-node 2 examples/integrations/stateful_loader.py runs/stateful
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from ddp import save
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader
from toy import BATCH_SIZE, CLASSES, EPOCHS, SAVE_EVERY, WIDTH, Points, Record, main, network

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty


def train(folder: Path, record: Record) -> tuple[nn.Module, nn.Module]:
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    data = Points()
    model = DistributedDataParallel(network())
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True)
    difficulty = prototype_difficulty(data.inputs, data.labels)
    sampler = DifficultyCurriculumSampler(difficulty, num_epochs=EPOCHS, num_replicas=world, rank=rank)
    loader = StatefulDataLoader(data, batch_size=BATCH_SIZE, sampler=sampler, num_workers=1, persistent_workers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    parts = {"model": model, "loss": loss_fn, "loader": loader, "optimizer": optimizer}
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state.pop("epoch")
        for name, part in parts.items():
            part.load_state_dict(state[name])

    step = 0
    for epoch in range(first, EPOCHS):
        sampler.set_epoch(epoch)
        for batch in loader:
            record(epoch, batch["index"])
            optimizer.zero_grad()
            loss_fn(model(batch["inputs"]), batch["labels"]).backward()
            optimizer.step()
            step += 1
            if step % SAVE_EVERY == 0 and rank == 0:
                save({"epoch": epoch} | {name: part.state_dict() for name, part in parts.items()}, checkpoint)
    return model, loss_fn


if __name__ == "__main__":
    main(train)
