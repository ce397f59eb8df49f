"""Long-tailed data in two minutes: which loss, and which head, finds the rare classes?

    pip install scikit-learn matplotlib
    python examples/long_tail.py

Every method trains the same small network on the same rows, in as many steps and with as many settings tried. Held-out
rows choose the setting and the head; test rows choose nothing. It prints a table for each data set and batch size and
draws a figure. It goes on where it was stopped. docs/howto/imbalance.md shows ten seeds and says what follows.
"""

from __future__ import annotations

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
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from spcl_loss import METHODS, SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss

CLASSES, WIDTH = 10, 32  # WIDTH of the embeddings
RATIO = 100  # training rows of the largest class by those of the smallest
SIZES = {"digits": (100, 20, 50), "signals": (300, 20, 100)}  # the largest class; held-out and test rows of each class
GROUPS = {"head": slice(0, 3), "middle": slice(3, 7), "tail": slice(7, 10)}  # of the classes, the largest first
BATCHES = (8, 32, 128)
RATES = (1e-2, 3e-2)  # the grid: learning rates, and of each method one setting of its own
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
REFERENCE = "cross-entropy"
SHOWN = (  # the figure's curves: method and head
    ("cross-entropy", "own"),
    ("cross-entropy", "own, adjusted"),
    ("weighted cross-entropy", "own, adjusted"),
    ("SPCL", "class means"),
    ("cross-entropy + 1 SPCL", "own, adjusted"),
    ("SPCL, sampler", "own, adjusted"),
)


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
        sizes_of_memory = {"queue_size": arm.queue_size, "support_size": arm.support_size}
        self.spcl = SupervisedPrototypicalContrastiveLoss(
            CLASSES, WIDTH, temperature=temperature / 2, class_weights=self.class_weights, **sizes_of_memory
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
        options = METHODS[self.arm.term]
        return supervised_prototypical_contrastive_loss(
            embeddings, labels, prototypes, temperature=self.temperature, **options
        )

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
    with torch.enable_grad():
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
    lines = path.read_text().splitlines() if path.exists() else []
    done = {Run(*line["run"]): line["recalls"] for line in map(json.loads, lines)}
    missing = [run for run in runs if run not in done]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each process: more threads would only wait for one another
    with path.open("a") as file, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for count, line in enumerate(map(score, missing) if workers == 1 else pool.map(score, missing), 1):
            print(json.dumps(line), file=file, flush=True)
            done[line["run"]] = line["recalls"]
            print(f"\r{count} of {len(missing)} runs", end="\n" * (count == len(missing)), file=sys.stderr, flush=True)
    return {run: done[run] for run in runs}


def compare(recalls: dict[Run, Any]) -> list[dict[str, Any]]:
    """A row for every data set, batch size, method and head, at the setting with the best held-out recall."""
    table: list[dict[str, Any]] = []
    for key in dict.fromkeys(run[:3] for run in recalls):
        runs = [run for run in recalls if run[:3] == key]
        settings = list(dict.fromkeys((run.rate, run.setting) for run in runs))
        rows = []
        for head in recalls[runs[0]]:
            held_out, test = (
                np.array([recalls[run][head][part] for run in runs]).reshape(-1, len(settings), CLASSES)
                for part in ("held out", "test")
            )  # (seeds, settings, classes)
            by_setting = held_out.mean((0, 2))
            best = by_setting.argmax()
            row = dict(zip(("data set", "batch", "method"), key, strict=True)) | {"head": head}
            row |= {"rate": settings[best][0], "setting": settings[best][1], "held out": by_setting[best]}
            row |= {
                "held out by setting": by_setting,
                "by seed": test[:, best].mean(1),
                "by class": test[:, best].mean(0),
            }
            rows.append(row)
        chosen = max(rows, key=lambda row: row["held out"])
        table += [row | {"chosen": row is chosen} for row in rows]
    return table


def interval(values: np.ndarray, sign: str = "") -> str:
    """The mean over seeds and half the width of its 95% interval, by Student's distribution."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else np.nan
    return f"{values.mean():{sign}.3f} ± {half:.3f}"


def report(table: list[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table for each data set and batch size. The head with the best held-out recall is in bold."""
    heads = list(dict.fromkeys(row["head"] for row in table))
    for place in dict.fromkeys((row["data set"], row["batch"]) for row in table):
        here = [row for row in table if (row["data set"], row["batch"]) == place]
        chosen = {row["method"]: row for row in here if row["chosen"]}
        yield f"\n{place[0]}, batches of {place[1]}: balanced accuracy on test rows, 95% interval over seeds\n"
        yield f"| method | {' | '.join(heads)} | {' / '.join(GROUPS)} | over {REFERENCE} |"
        yield "|---" * (len(heads) + 3) + "|"
        for method, best in chosen.items():
            numbers = [interval(row["by seed"]) for row in here if row["method"] == method]
            numbers[heads.index(best["head"])] = f"**{interval(best['by seed'])}**"
            groups = " / ".join(f"{best['by class'][classes].mean():.2f}" for classes in GROUPS.values())
            pairs = zip(best["by seed"], chosen[REFERENCE]["by seed"], strict=False)  # one may have more seeds
            over = interval(np.array([ours - theirs for ours, theirs in pairs]), "+") if method != REFERENCE else ""
            yield f"| {' | '.join([method, *numbers, groups, over])} |"


def draw(table: list[dict[str, Any]], steps: int, path: Path) -> None:
    """Recall of a class by its training rows, and the digits' embeddings before and after training with SPCL."""
    from matplotlib import pyplot as plt

    rows = {(row["data set"], row["batch"], row["method"], row["head"]): row for row in table}
    figure, axes = plt.subplots(2, 2, figsize=(10, 9.5), layout="constrained")
    colors = "#999999", "#e69f00", "#009e73", "#56b4e9", "#d55e00", "#0072b2"  # Okabe and Ito's: safe to tell apart
    for axis, dataset in zip(axes[0], SIZES, strict=True):
        sizes = class_sizes(SIZES[dataset][0])
        for curve, color, marker in zip(SHOWN, colors, "sDo*^P", strict=True):
            recall = rows[(dataset, 32, *curve)]["by class"]
            axis.plot(sizes, recall, color=color, marker=marker, label=f"{curve[0]} ({curve[1]})")
        axis.set(title=dataset, xlabel="training rows of the class", ylabel="recall on test rows", ylim=(-0.03, 1.03))
        axis.set_xscale("log")
        axis.set_xticks(sizes, sizes)
        axis.minorticks_off()
    axes[0, 0].legend(title="method (head)", fontsize=8, loc="lower right")
    best, data = rows["digits", 32, "SPCL", "class means"], make_data("digits", 0)
    for axis, title, count in zip(axes[1], ("before training", "after training"), (0, steps), strict=True):
        encoder, _ = train(Run("digits", 32, "SPCL", 0, best["rate"], best["setting"], count))
        with torch.no_grad():
            prototypes = class_means(encoder(data["train"][0]), data["train"][1])
            points = normalize(encoder(data["test"][0]))
        plane = torch.linalg.svd(prototypes - prototypes.mean(0)).Vh[:2].T  # the directions in which they differ most
        for label, size in enumerate(class_sizes(SIZES["digits"][0])):
            color = plt.get_cmap("tab10")(label)
            axis.scatter(*(points[data["test"][1] == label] @ plane).T, s=8, alpha=0.6, color=color)
            star = {"s": 200, "marker": "*", "edgecolor": "black", "zorder": 3}
            axis.scatter(*(prototypes[label] @ plane), color=color, label=size, **star)
        axis.set(title=f"digits {title} with SPCL", xticks=[], yticks=[], aspect="equal", xlim=(-1, 1), ylim=(-1, 1))
    axes[1, 0].legend(title="test rows and prototype of the class with ... training rows", fontsize=8, ncols=5, loc=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def all_runs(seeds: Iterable[int], batch_sizes: Iterable[int], methods: Iterable[str], steps: int) -> list[Run]:
    """The grid. `steps` is for batches of 32; other sizes take more or fewer, by the square root."""
    runs = []
    for seed, dataset, batch_size, method in product(seeds, SIZES, batch_sizes, methods):
        for rate, setting in product(RATES, TEMPERATURES if ARMS[method].contrastive else DECAYS):
            count = round(steps * (32 / batch_size) ** 0.5)
            runs.append(Run(dataset, batch_size, method, seed, rate, setting, count))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200, help="with batches of 32; smaller batches take more")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("runs/long_tail"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    runs = all_runs(options.seeds, BATCHES, ARMS, options.steps)
    table = compare(score_all(runs, options.output / "runs.jsonl", options.workers))
    print("\n".join(report(table)))
    draw(table, options.steps, options.output / "long_tail.png")
    print(f"\nThe figure is {options.output / 'long_tail.png'}")


if __name__ == "__main__":
    main()
