"""Several processes against one: the loss, the gradients after DDP's averaging, and the memories."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from spcl_loss import SupervisedPrototypicalContrastiveLoss

NUM_CLASSES, WIDTH, STEPS = 3, 6, 3
OPTIONS = [
    {"easy_threshold": 0.1},
    {"positives": "outside", "contrast": "negatives", "easy_threshold": 0.0},
    {"similarity": "cosine", "positives": "outside", "contrast": "class_balanced", "impl": "strips"},
    {"prototype_anchors": True, "class_weights": torch.tensor([0.5, 1.0, 2.0])},
]
SIZES = {2: [[4, 4], [7, 2], [5, 0]], 3: [[3, 3, 3], [1, 6, 0], [2, 4, 5]]}


def problem(options):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, WIDTH)).double()
    criterion = SupervisedPrototypicalContrastiveLoss(
        NUM_CLASSES, WIDTH, temperature=0.2, queue_size=8, support_size=3, gather_distributed=True, **options
    ).double()
    return model, criterion


def batches(world_size):
    """For each step the rows of all ranks, and where each rank's begin."""
    generator = torch.Generator().manual_seed(world_size)
    for sizes in SIZES[world_size][:STEPS]:
        total = sum(sizes)
        labels = torch.randint(NUM_CLASSES, (total,), generator=generator)
        labels[0] = -100
        inputs = torch.randn(total, 4, generator=generator, dtype=torch.float64)
        yield inputs, labels, torch.rand(total, generator=generator, dtype=torch.float64) + 0.5, sizes


def train(model, criterion, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for inputs, labels, weights in steps:
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels, sample_weight=weights)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), [p.detach().clone() for p in model.parameters()], criterion.state_dict()


def run_rank(rank, world_size, folder, options):
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    model, criterion = problem(options)
    own = [
        tuple(part.split(sizes)[rank] for part in (inputs, labels, weights))
        for inputs, labels, weights, sizes in batches(world_size)
    ]
    torch.save(train(DistributedDataParallel(model), criterion, own), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_ranks_together_do_what_one_process_does(world_size, options, tmp_path):
    expected = train(*problem(options), [step[:3] for step in batches(world_size)])
    mp.start_processes(run_rank, (world_size, str(tmp_path), options), nprocs=world_size, start_method="fork")
    for rank in range(world_size):
        losses, parameters, state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close((losses, parameters, state), expected, rtol=1e-9, atol=1e-12)
