"""Long-tailed data in two minutes: which loss, and which head, finds the rare classes?

    pip install scikit-learn matplotlib
    python examples/long_tail.py

Every method trains the same small network on the same rows, with equally many steps and settings. Held-out rows choose
the setting and the head; test rows choose nothing. The script prints a table for each data set and batch size and draws
a figure (long_tail_report.py). An interrupted run continues. docs/howto/imbalance.md shows ten seeds and says what
follows.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import long_tail_report
from spcl_loss import METHODS, SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss

CLASSES, WIDTH = 10, 32  # WIDTH of the embeddings
RATIO = 100  # training rows of the largest class by those of the smallest
SIZES = {"digits": (100, 20, 50), "signals": (300, 20, 100)}  # the largest class; held-out and test rows of each class
BATCHES = (8, 32, 128)
RATES = (1e-2, 3e-2)  # the grid: learning rates, and one setting of the method
TEMPERATURES = (0.05, 0.2)  # of the plain cosine; SPCL's shifted cosine takes half of them
DECAYS = (0.01, 1.0)  # weight decay, where there is no temperature


class Arm(NamedTuple):
    """What a method minimises: a cross-entropy, a contrastive term, or both."""

    cross_entropy: float = 0.0  # its weight
    contrastive: float = 0.0  # its weight
    term: str = "spcl"
    class_weights: bool = False  # all classes weigh the same in the loss
    log_prior: bool = False  # balanced softmax: adds the logarithm of the class shares to the scores, in training only
    sampler: bool = False  # draws all classes equally often, as WeightedRandomSampler does
    queue_size: int = 256
    support_size: int = 64


ARMS = {
    "cross-entropy": Arm(cross_entropy=1),
    "weighted cross-entropy": Arm(cross_entropy=1, class_weights=True),
    "balanced softmax": Arm(cross_entropy=1, log_prior=True),
    "SupCon": Arm(contrastive=1, term="supcon"),
    "BCL": Arm(contrastive=1, term="bcl"),
    "SPCL": Arm(contrastive=1),
    "cross-entropy + 0.2 SPCL": Arm(cross_entropy=1, contrastive=0.2),
    "cross-entropy + 1 SPCL": Arm(cross_entropy=1, contrastive=1),
    "cross-entropy, sampler": Arm(cross_entropy=1, sampler=True),
    "SPCL, sampler": Arm(contrastive=1, sampler=True),
    "cross-entropy + 1 SPCL, sampler": Arm(cross_entropy=1, contrastive=1, sampler=True),
}


class Run(NamedTuple):
    """One training."""

    dataset: str
    batch_size: int
    method: str
    seed: int
    rate: float
    setting: float  # temperature, or weight decay
    steps: int


def class_sizes(largest: int) -> list[int]:
    """Training rows of each class: they fall geometrically from the largest to 1 / RATIO of it."""
    return [round(largest * RATIO ** (-rank / (CLASSES - 1))) for rank in range(CLASSES)]


def split(targets: np.ndarray, rng: np.random.Generator, sizes: tuple[int, int, int]) -> dict[str, list[np.ndarray]]:
    """Draws which class is how large, then the test, held-out and training rows of each class, without overlap.

    Test and held-out rows are equally many of each class. Only the training rows are long-tailed.
    """
    largest, held_out, test = sizes
    parts: dict[str, list[np.ndarray]] = {"test": [], "held out": [], "train": []}
    for target, size in zip(rng.permutation(CLASSES), class_sizes(largest), strict=True):
        rows = rng.permutation(np.flatnonzero(targets == target))[: test + held_out + size]
        for part, chosen in zip(parts.values(), np.split(rows, [test, test + held_out]), strict=True):
            part.append(chosen)
    return parts


@lru_cache(maxsize=4)
def make_data(name: str, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs (n, F) and labels (n,) of each part, ordered by class. Class 0 is the largest in training."""
    rng = np.random.default_rng(seed)
    inputs, targets = load_digits(return_X_y=True) if name == "digits" else make_signals(rng)
    inputs = torch.tensor(inputs / inputs.std(), dtype=torch.float32)
    data = {}
    for part, chosen in split(targets, rng, SIZES[name]).items():
        labels = np.repeat(np.arange(CLASSES), [len(rows) for rows in chosen])
        data[part] = inputs[np.concatenate(chosen)], torch.from_numpy(labels)
    return data


def make_signals(rng: np.random.Generator, length: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Signals in the spirit of MNIST-1D (Greydanus, 2020): the curve of a class, moved, stretched, tilted, in noise."""
    curves = np.random.default_rng(0).normal(size=(CLASSES, 12)).cumsum(1)
    curves -= np.linspace(curves[:, 0], curves[:, -1], 12, axis=1)  # each begins and ends at zero
    curves /= curves.std(1, keepdims=True)
    targets = np.repeat(np.arange(CLASSES), sum(SIZES["signals"]))
    inputs = 0.05 * rng.normal(size=(len(targets), length))
    for row, target in zip(inputs, targets, strict=True):
        width = rng.uniform(14, 24)
        places = rng.uniform(0, length - width) + width * np.linspace(0, 1, 12)
        row += rng.uniform(0.7, 1.3) * np.interp(np.arange(length), places, curves[target])
        row += np.convolve(rng.normal(size=length + 8), np.full(9, 1 / 12), mode="valid")
        row += rng.uniform(-0.75, 0.75) * np.linspace(-1, 1, length)
    return inputs, targets


class SignalEncoder(nn.Sequential):
    """A convolution and the maximum over places. As a layer on windows it is twice as fast as Conv1d in this size."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, activation, out = self
        return out(activation(hidden(inputs.unfold(1, 16, 4))).amax(1))


def make_encoder(name: str) -> nn.Module:
    layers = nn.Linear(64 if name == "digits" else 16, 64), nn.ReLU(), nn.Linear(64, WIDTH)
    return nn.Sequential(*layers) if name == "digits" else SignalEncoder(*layers)


class Objective(nn.Module):
    """The loss of embeddings and labels; `scores` is the head that the method trains."""

    def __init__(self, arm: Arm, labels: Tensor, temperature: float) -> None:
        super().__init__()
        sizes = labels.bincount()
        self.arm, self.temperature = arm, temperature
        self.class_weights = len(labels) / (CLASSES * sizes) if arm.class_weights else None
        self.log_prior = (sizes / len(labels)).log() if arm.log_prior else 0
        self.linear = nn.Linear(WIDTH, CLASSES)
        self.learned = nn.Parameter(torch.randn(CLASSES, WIDTH))  # BCL's prototypes
        memory = {"queue_size": arm.queue_size, "support_size": arm.support_size}
        self.spcl = SupervisedPrototypicalContrastiveLoss(
            CLASSES, WIDTH, temperature=temperature / 2, class_weights=self.class_weights, **memory
        )

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        loss = torch.zeros(())
        if self.arm.cross_entropy:
            scores = self.linear(embeddings) + self.log_prior
            loss = loss + self.arm.cross_entropy * cross_entropy(scores, labels, weight=self.class_weights)
        if self.arm.contrastive:
            loss = loss + self.arm.contrastive * self.contrast(embeddings, labels)
        return loss

    def contrast(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.arm.term == "spcl":
            return self.spcl(embeddings, labels)
        prototypes = self.learned if self.arm.term == "bcl" else None
        options = {**METHODS[self.arm.term], "temperature": self.temperature}
        return supervised_prototypical_contrastive_loss(embeddings, labels, prototypes, **options)

    def scores(self, embeddings: Tensor, means: Tensor) -> Tensor:
        if self.arm.cross_entropy:
            return self.linear(embeddings)
        if self.arm.term == "spcl":
            return self.spcl.logits(embeddings)
        prototypes = self.learned if self.arm.term == "bcl" else means  # SupCon trains no head
        return normalize(embeddings) @ normalize(prototypes).T / self.temperature


def batches(labels: Tensor, batch_size: int, steps: int, balanced: bool) -> Iterator[Tensor]:
    """The rows of each step: full batches, epoch after epoch."""
    chances = 1 / labels.bincount()[labels].float()
    batch_size = min(batch_size, len(labels))
    for step in range(steps):
        place = step % (len(labels) // batch_size)
        if place == 0:
            rows = chances.multinomial(len(labels), replacement=True) if balanced else torch.randperm(len(labels))
        yield rows[place * batch_size :][:batch_size]


@torch.enable_grad()
def train(run: Run) -> tuple[nn.Module, Objective]:
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    arm, (inputs, labels) = ARMS[run.method], make_data(run.dataset, run.seed)["train"]
    encoder, objective = make_encoder(run.dataset), Objective(arm, labels, run.setting)
    decay = 0.01 if arm.contrastive else run.setting
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, run.rate, weight_decay=decay, fused=True)
    for step, batch in enumerate(batches(labels, run.batch_size, run.steps, arm.sampler)):
        optimizer.param_groups[0]["lr"] = run.rate * (1 - step / run.steps)
        loss = objective(encoder(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder, objective


def class_means(embeddings: Tensor, labels: Tensor) -> Tensor:
    """(CLASSES, WIDTH) unit prototypes."""
    return normalize(torch.stack([normalize(embeddings[labels == label]).mean(0) for label in range(CLASSES)]))


@torch.no_grad()
def score(run: Run) -> dict[str, Any]:
    """Trains, and measures the recall of each class on held-out and test rows, with every head."""
    encoder, objective = train(run)
    data = make_data(run.dataset, run.seed)
    embeddings = {part: encoder(inputs) for part, (inputs, _) in data.items()}
    labels = data["train"][1]
    means, log_prior = class_means(embeddings["train"], labels), (labels.bincount() / len(labels)).log()
    fitted = LogisticRegression(class_weight="balanced", max_iter=1000)
    fitted.fit(normalize(embeddings["train"]).numpy(), labels.numpy())
    recalls: dict[str, dict[str, list[float]]] = {}
    for part in ("held out", "test"):
        own, unit = objective.scores(embeddings[part], means), normalize(embeddings[part])
        predicted = {
            "own": own.argmax(1),
            "own, adjusted": (own - log_prior).argmax(1),  # logit adjustment after training (Menon et al., 2021)
            "class means": (unit @ means.T).argmax(1),
            "refitted linear": torch.from_numpy(fitted.predict(unit.numpy())),
        }
        for head, classes in predicted.items():
            right = (classes == data[part][1]).float()
            recalls.setdefault(head, {})[part] = right.view(CLASSES, -1).mean(1).tolist()
    return {"run": run, "recalls": recalls}


def score_all(runs: list[Run], path: Path, workers: int) -> dict[Run, Any]:
    """The recalls of all runs. Each run becomes a line of the file as soon as it ends."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]  # a kill can leave half a line at the end
    done = {Run(*line["run"]): line["recalls"] for line in map(json.loads, whole.splitlines())}
    missing = [run for run in runs if run not in done]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each process: more threads would only wait for one another
    with path.open("a") as file, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        file.truncate(len(whole))
        for count, line in enumerate(map(score, missing) if workers == 1 else pool.map(score, missing), 1):
            print(json.dumps(line), file=file, flush=True)
            done[line["run"]] = line["recalls"]
            print(f"\r{count} of {len(missing)} runs", end="\n" * (count == len(missing)), file=sys.stderr, flush=True)
    return {run: done[run] for run in runs}


def all_runs(seeds: Iterable[int], batch_sizes: Iterable[int], methods: Iterable[str], steps: int) -> list[Run]:
    """The grid. `steps` is for batches of 32; other sizes take more or fewer, by the square root."""
    runs = []
    for seed, dataset, batch_size, method in product(seeds, SIZES, batch_sizes, methods):
        for rate, setting in product(RATES, TEMPERATURES if ARMS[method].contrastive else DECAYS):
            count = round(steps * (32 / batch_size) ** 0.5)
            runs.append(Run(dataset, batch_size, method, seed, rate, setting, count))
    return runs


@torch.no_grad()
def embed_digits(rate: float, temperature: float, steps: int) -> dict[str, tuple[Tensor, ...]]:
    """Class means, embedded test rows and their labels before and after training SPCL on the digits of seed 0."""
    digits, embedded = make_data("digits", 0), {}
    for title, count in (("before training", 0), ("after training", steps)):
        encoder, _ = train(Run("digits", 32, "SPCL", 0, rate, temperature, count))
        prototypes = class_means(encoder(digits["train"][0]), digits["train"][1])
        embedded[title] = prototypes, normalize(encoder(digits["test"][0])), digits["test"][1]
    return embedded


def present(recalls: dict[Run, Any], steps: int, figure: Path) -> list[dict[str, Any]]:
    """Prints the tables, and draws the figure after `embed_digits`. Returns the rows of `long_tail_report.compare`."""
    rows = long_tail_report.compare(recalls)
    print("\n".join(long_tail_report.tables(rows)))
    places = {(row["data set"], row["batch"], row["method"], row["head"]): row for row in rows}
    best = places["digits", 32, "SPCL", "class means"]
    embedded = embed_digits(best["rate"], best["setting"], steps)
    sizes = {name: class_sizes(largest) for name, (largest, *_) in SIZES.items()}
    long_tail_report.draw(rows, sizes, embedded, figure)
    print(f"\nThe figure is {figure}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200, help="with batches of 32; smaller batches take more")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("runs/long_tail"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    runs = all_runs(options.seeds, BATCHES, ARMS, options.steps)
    recalls = score_all(runs, options.output / "runs.jsonl", options.workers)
    present(recalls, options.steps, options.output / "long_tail.png")


if __name__ == "__main__":
    main()
