"""A training loop with Hugging Face Accelerate.

torchrun --nproc-per-node 2 examples/integrations/accelerate_loop.py runs/accelerate

On GPUs accelerate launch does the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from toy import BATCH_SIZE, CLASSES, EPOCHS, SAVE_EVERY, WIDTH, Points, Record, main, network

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss


def train(folder: Path, record: Record) -> tuple[nn.Module, nn.Module]:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    world, rank = accelerator.num_processes, accelerator.process_index
    data = Points()
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=world > 1).to(accelerator.device)
    sampler = DifficultyCurriculumSampler(torch.zeros(len(data)), num_epochs=EPOCHS, num_replicas=world, rank=rank)
    # Not for accelerator.prepare: it would share the ranks' own samples among the ranks once more, repeat some of them
    # where they do not divide, and read a batch ahead.
    loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler)
    model = network()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))

    accelerator.register_for_checkpointing(loss_fn, sampler)  # save_state and load_state include them
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))

    step = 0
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        for batch in loader:
            record(epoch, batch["index"])
            batch = {name: values.to(accelerator.device) for name, values in batch.items()}
            embeddings = model(batch["inputs"])
            optimizer.zero_grad()
            accelerator.backward(loss_fn(embeddings, batch["labels"]))
            optimizer.step()
            # All ranks have to observe the same samples: they draw the next epoch from these scores.
            seen = accelerator.gather((batch["index"], embeddings.detach(), batch["labels"]))
            sampler.observe(*seen, *loss_fn.memory.centroids())
            step += 1
            if step % SAVE_EVERY == 0:
                accelerator.save_state(str(checkpoint))
    return accelerator.unwrap_model(model), loss_fn


if __name__ == "__main__":
    main(train)
