"""Long runs: does memory grow, do numbers drift, does a step keep its time?

    python tests/soak.py --steps 100000                       # what `make soak` runs

The loss and its memory run at a small size, eagerly and compiled, on a few batches that come again and again. Ten times
in a run the queues are compared to the bit with what plain Python has kept, the prototypes with the means of all
support sets, and loss and gradient with float64 loops. The sampler goes through its epochs and observes scores, which
plain Python keeps too.
"""

import argparse
import itertools
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import torch

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss
from support import oracle

N, C, D, M, K = 8, 4, 16, 8, 3
POOL = 97  # batches


class Training:
    """A step is a loss, its gradient and the enqueued batch."""

    def __init__(self, backend: str | None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(POOL, N, D, generator=generator)
        self.labels = torch.randint(-1, C, (POOL, N), generator=generator)
        self.rows += torch.randn(C + 1, D, generator=generator)[self.labels]
        self.labels[self.labels < 0] = -100
        self.criterion = SupervisedPrototypicalContrastiveLoss(C, D, queue_size=M, support_size=K)
        self.call = self.criterion if backend is None else torch.compile(self.criterion, backend=backend)
        self.order = torch.randint(POOL, (1009,), generator=generator).tolist()
        self.newest = [deque([torch.zeros(D)] * M, M) for _ in range(C)]
        self.entered = [0] * C

    def batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.order[number % len(self.order)]
        return self.rows[batch], self.labels[batch]

    def step(self, number: int) -> torch.Tensor:
        rows, labels = self.batch(number)
        embeddings = rows.clone().requires_grad_()
        loss = self.call(embeddings, labels)
        loss.backward()
        for row, label in zip(rows, labels.tolist(), strict=True):
            if label >= 0:
                self.newest[label].append(row)
                self.entered[label] += 1
        return torch.cat([loss.detach().view(1), embeddings.grad.flatten()])

    def checked_step(self, number: int) -> float:
        """Compares what `number` steps have left, and what one more gives. Returns the largest relative deviation."""
        memory = self.criterion.memory
        queue = [torch.stack(list(rows)).roll(n, 0) for rows, n in zip(self.newest, self.entered, strict=True)]
        assert torch.equal(memory.queue, torch.stack(queue)), f"the queues after {number} steps"
        assert memory.cursors.tolist() == self.entered, f"the cursors after {number} steps"
        assert int(memory.draws) == number, f"the draws after {number} steps"
        prototypes, _ = memory.prototypes(advance=False)
        subsets = torch.tensor(list(itertools.combinations(range(M), K)))
        means = memory.queue.double()[:, subsets].mean(2)  # (C, subsets, D)
        of_prototypes = (prototypes[:, None] - means).abs().amax(2).amin(1).max() / means.abs().max()
        rows, labels = self.batch(number)
        value, gradient, _ = oracle.value_and_gradients(oracle.loss, rows.double(), labels, prototypes.double())
        exact = torch.cat([value.view(1), gradient.flatten()])
        return max(float(of_prototypes), float((self.step(number) - exact).abs().max() / exact.abs().max()))


class Epochs:
    """A step is one sample of an epoch, and a new epoch where one ends."""

    SIZE, EPOCHS = 1000, 50

    def __init__(self) -> None:
        self.scores = torch.rand(self.SIZE, generator=torch.Generator().manual_seed(0))
        self.sampler = DifficultyCurriculumSampler(self.scores, num_epochs=self.EPOCHS)
        self.epoch, self.drawn, self.iterator = -1, [], iter(())

    def step(self, number: int) -> None:
        index = next(self.iterator, None)
        if index is None:
            self.epoch += 1
            self.sampler.set_epoch(self.epoch % self.EPOCHS)
            self.iterator, self.drawn = iter(self.sampler), []
            index = next(self.iterator)
        self.drawn.append(index)

    def checked_step(self, number: int) -> float:
        """Every sample at most once and half of them in all; an epoch that comes again has the same samples."""
        self.step(number)
        expected = DifficultyCurriculumSampler(self.scores, num_epochs=self.EPOCHS)
        expected.set_epoch(self.epoch % self.EPOCHS)
        assert self.drawn == expected.indices[: len(self.drawn)].tolist(), f"the samples after {number} steps"
        assert len(expected) == self.SIZE // 2 == len(set(expected.indices.tolist()))
        return 0.0


class Observations:
    """A step observes a batch. Every thousandth begins an epoch, which reads all scores."""

    SIZE = 1000

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sampler = DifficultyCurriculumSampler(torch.rand(self.SIZE, generator=generator), num_epochs=2)
        self.rows, self.centres = torch.randn(POOL, N, D, generator=generator), torch.randn(C, D, generator=generator)
        self.labels = torch.randint(C, (POOL, N), generator=generator)
        centres = dict(enumerate(self.centres))
        self.exact = [oracle.difficulty(r, y, centres) for r, y in zip(self.rows, self.labels, strict=True)]
        self.expected = self.sampler.difficulty.tolist()

    def step(self, number: int) -> None:
        batch, first = number % POOL, number * N
        indices = torch.arange(first, first + N) % self.SIZE
        self.sampler.observe(indices, self.rows[batch], self.labels[batch], self.centres)
        for index, score in zip(range(first, first + N), self.exact[batch], strict=True):
            self.expected[index % self.SIZE] = score
        if number % 1000 == 999:
            self.sampler.set_epoch(number // 1000 % 2)

    def checked_step(self, number: int) -> float:
        self.step(number)
        return max(abs(a - b) for a, b in zip(self.sampler.difficulty.tolist(), self.expected, strict=True))


class Outcome(NamedTuple):
    growth: float  # MiB of resident memory, from the first tenth of the steps to the end
    deviations: list[float]  # at each tenth
    times: list[float]  # microseconds of CPU per step, of each tenth


def soak(part, steps: int, warm_up: int = 200) -> Outcome:
    """Takes `steps` steps in ten parts, after a few that compile and fill what is allocated once."""
    for number in range(warm_up):
        part.step(number)
    deviations, times, resident = [], [], []
    for numbers in torch.arange(warm_up, warm_up + steps).tensor_split(10):
        began = time.process_time()
        for number in numbers[:-1].tolist():
            part.step(number)
        times.append(1e6 * (time.process_time() - began) / (len(numbers) - 1))
        deviations.append(part.checked_step(int(numbers[-1])))
        resident.append(resident_mebibytes())
    return Outcome(resident[-1] - resident[0], deviations, times)


def resident_mebibytes() -> float:
    """NaN on systems without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except FileNotFoundError:
        return math.nan
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


PARTS = {
    "eager": lambda: Training(None),
    "compiled": lambda: Training("inductor"),
    "sampler": Epochs,
    "observe": Observations,
}
GROWTH = 8.0  # MiB: 90,000 steps that leave 100 bytes each would show
DEVIATION = 1e-5


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description="Runs loss, memory and sampler for a long time at a small size.")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    args = parser.parse_args(arguments)
    if args.steps < 20:
        parser.error(f"--steps must be at least 20, two for each tenth of a run; received {args.steps}")
    torch.set_num_threads(1)
    good = True
    for name in args.parts:
        growth, deviations, times = soak(PARTS[name](), args.steps)
        good &= not growth > GROWTH and max(deviations) <= DEVIATION
        print(
            f"{name}: {args.steps} steps, {growth:+.1f} MiB of memory after the first tenth, largest deviation "
            f"{deviations[0]:.1e} in the first tenth and {deviations[-1]:.1e} in the last, {times[0]:.0f} and "
            f"{times[-1]:.0f} microseconds of CPU per step",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
