"""Training with every method, in one process and on ranks: what test_distributed.py compares."""

import itertools
from contextlib import nullcontext
from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel

from spcl_loss import METHODS, SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss

NUM_CLASSES, WIDTH = 3, 6
OPTIONS = {
    "SPCL": {**METHODS["spcl"], "easy_threshold": 0.5},
    "SPDCL": METHODS["spdcl"],
    "SupCon": METHODS["supcon"],
    "BCL": METHODS["bcl"],
    "EACL": METHODS["eacl"],
}
FROM_MEMORY, LEARNED = ("SPCL", "SPDCL"), ("BCL", "EACL")
CASES = ["-".join(case) for case in itertools.product(OPTIONS, ("plain", "weighted"), ("dense", "strips"))]
# Rows of each rank, step by step: equal, uneven, one batch empty.
SIZES = {
    1: [[9], [7], [5]],
    2: [[6, 6], [9, 2], [7, 0]],
    3: [[4, 4, 4], [1, 6, 2], [5, 0, 6]],
    4: [[4, 4, 4, 4], [2, 7, 1, 3], [0, 5, 3, 6]],
}


class Learner(torch.nn.Module):
    """What is trained: an encoder, and prototypes where the method learns them."""

    def __init__(self, method):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, WIDTH))
        self.prototypes = torch.nn.Parameter(torch.randn(NUM_CLASSES, WIDTH)) if method in LEARNED else None

    def forward(self, inputs):
        return self.encoder(inputs), self.prototypes


class Objective:
    """The loss of a case, with its memory where the method has one."""

    def __init__(self, case, entries=0, **options):
        method, weighted, impl = case.split("-")
        self.entries = entries  # of the memory, so many a class, as further candidates
        self.weighted, self.memory = weighted == "weighted", None
        options = {"temperature": 0.2, "impl": impl, "gather_distributed": True} | OPTIONS[method] | options
        if self.weighted:
            options["class_weights"] = torch.tensor([0.5, 1.0, 2.0])
        self.loss = partial(supervised_prototypical_contrastive_loss, **options)
        if method in FROM_MEMORY:
            self.loss = SupervisedPrototypicalContrastiveLoss(
                NUM_CLASSES, WIDTH, queue_size=8, support_size=3, **options
            )
            self.memory = self.loss.memory

    def __call__(self, outputs, labels, weights):
        embeddings, prototypes = outputs
        arguments = (embeddings, labels) if self.memory is not None else (embeddings, labels, prototypes)
        further = {}
        if self.entries:
            further["candidates"], further["candidate_labels"] = self.memory.entries(self.entries)
        return self.loss(*arguments, sample_weight=weights if self.weighted else None, **further)


def batches(world_size, sizes=None):
    """Step by step (inputs, labels, weights) of all ranks, and how many rows each rank has."""
    generator = torch.Generator().manual_seed(world_size)
    for counts in sizes or SIZES[world_size]:
        total = sum(counts)
        labels = torch.randint(NUM_CLASSES, (total,), generator=generator)
        labels[1] = -100
        inputs = torch.randn(total, 4, generator=generator)
        yield (inputs, labels, torch.rand(total, generator=generator) + 0.5), counts


def part(batch, counts, rank):
    return tuple(tensor.split(counts)[rank] for tensor in batch)


def train(learner, objective, steps, accumulate=1):
    """Losses, gradients before each update, and the memory in the end."""
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    losses, gradients = [], []
    for step, (inputs, labels, weights) in enumerate(steps):
        update = step % accumulate == accumulate - 1
        with nullcontext() if update or not hasattr(learner, "no_sync") else learner.no_sync():
            loss = objective(learner(inputs), labels, weights)
            (loss / accumulate).backward()
        losses.append(loss.detach())
        if update:
            gradients.append([whole(parameter.grad).clone() for parameter in learner.parameters()])
            optimizer.step()
            optimizer.zero_grad()
    result = {"losses": torch.stack(losses), "gradients": gradients}
    if objective.memory is None:
        return result | {"memory": {}, "fingerprint": torch.tensor(0)}
    return result | {"memory": objective.memory.state_dict(), "fingerprint": objective.memory.fingerprint()}


def whole(tensor):
    """A sharded tensor, put together; another as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def in_one_process(world_size, case, sizes=None, entries=0, accumulate=1):
    steps = [batch for batch, _ in batches(world_size, sizes)]
    return train(Learner(case.split("-")[0]), Objective(case, entries), steps, accumulate)


def on_a_rank(rank, world_size, case, sizes=None, entries=0, accumulate=1):
    steps = [part(batch, counts, rank) for batch, counts in batches(world_size, sizes)]
    return train(DistributedDataParallel(Learner(case.split("-")[0])), Objective(case, entries), steps, accumulate)
