"""From run folders to one table: the runs of an arm become mean, deviation and best seed."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .arms import labels, without_seed
from .evaluation import HEADS
from .run_folder import RunFolder
from .settings import Settings

SPLITS, METRICS = ("dev", "test"), ("weighted_f1", "macro_f1", "accuracy")


@dataclass(frozen=True)
class Run:
    """A finished run as its folder holds it."""

    path: Path
    settings: Settings
    result: dict[str, Any]
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed alone, in the order of the seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def settings(self) -> Settings:
        return self.runs[0].settings

    @property
    def head(self) -> str:
        """The head that dev selects by, and that the arm is judged by."""
        return self.settings.selects_by

    @property
    def best(self) -> Run:
        """The seed with the best dev score; test has no say."""
        return max(self.runs, key=lambda run: float(run.result["dev"][self.head]["weighted_f1"]))

    def scores(self, split: str, head: str, metric: str) -> list[float]:
        return [float(run.result[split][head][metric]) for run in self.runs]

    def class_scores(self, head: str) -> dict[str, list[float]]:
        """Test F1 of each class by seed."""
        per_class = [run.result["test"][head]["per_class_f1"] for run in self.runs]
        return {name: [scores[name] for scores in per_class] for name in per_class[0]}

    def seconds_per_epoch(self) -> list[float]:
        """All of an epoch: training, the encoding of the training set and the scoring of dev."""
        return [run.history[-1]["seconds"] / len(run.history) for run in self.runs]


def collect(roots: Iterable[Path]) -> list[Run]:
    """All finished runs in the folders or below them."""
    folders = {path.parent.resolve() for root in roots for path in sorted(root.rglob("result.json"))}
    return [run for folder in sorted(folders) if (run := _read(folder)) is not None]


def _read(path: Path) -> Run | None:
    folder = RunFolder(path)
    settings, result = folder.stored_settings(), folder.stored_result()
    if settings is None or result is None:
        return None
    history = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    return Run(path, settings, result, history)


def by_dataset(runs: Sequence[Run]) -> dict[tuple[str, str], list[Arm]]:
    """Arms by dataset and encoder, the best on dev first."""
    groups: dict[tuple[str, str], dict[tuple[tuple[str, Any], ...], dict[int, Run]]] = {}
    for run in runs:
        arms = groups.setdefault((run.settings.dataset, encoder_name(run.settings)), {})
        arms.setdefault(without_seed(run.settings), {})[run.settings.seed] = run  # the same run twice counts once
    return {key: _arms(list(arms.values())) for key, arms in sorted(groups.items())}


def _arms(groups: Sequence[dict[int, Run]]) -> list[Arm]:
    names = labels([next(iter(runs.values())).settings for runs in groups])
    arms = [Arm(name, tuple(runs[seed] for seed in sorted(runs))) for name, runs in zip(names, groups, strict=True)]
    return sorted(arms, key=lambda arm: -statistics.fmean(arm.scores("dev", arm.head, "weighted_f1")))


def encoder_name(settings: Settings) -> str:
    """The encoder without the folders that lead to it, unless it is a name on the Hugging Face hub."""
    path = Path(settings.encoder)
    return path.name if path.is_absolute() or path.is_dir() else settings.encoder


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value does not have."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def confusion(runs: Sequence[Run], head: str, classes: Sequence[str]) -> np.ndarray:
    """(C, C) test counts, true class by predicted class, of all runs together."""
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for run in runs:
        with RunFolder(run.path).predictions.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                counts[classes.index(row["gold"]), classes.index(row[head])] += 1
    return counts


def prototype_cosines(run: Run) -> np.ndarray:
    """(C, C) cosine of each pair of centroids in the run's memory; NaN where a class has none."""
    from safetensors.torch import load_file

    from spcl_loss import PrototypeMemory

    state = {
        name.removeprefix("memory."): value
        for name, value in load_file(RunFolder(run.path).best).items()
        if name.startswith("memory.")
    }
    classes, size, width = state["queue"].shape
    memory = PrototypeMemory(classes, width, queue_size=size, support_size=min(run.settings.support_size, size))
    memory.load_state_dict(state)
    centroids, exists = memory.centroids()
    unit = centroids / centroids.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    cosines[~exists] = math.nan
    cosines[:, ~exists] = math.nan
    return np.asarray(cosines.numpy())


def shared_settings(arm: Arm) -> dict[str, Any]:
    """All settings but the seed; of an encoder in a folder only the folder's name."""
    values = asdict(arm.settings) | {"encoder": encoder_name(arm.settings)}
    return {name: value for name, value in values.items() if name != "seed"}


def summary(arm: Arm) -> dict[str, Any]:
    """An arm as results.json holds it."""
    best, classes = arm.best, list(arm.class_scores(arm.head))
    cosines = prototype_cosines(best)
    return {
        "arm": arm.label,
        "settings": shared_settings(arm),
        "seeds": [run.settings.seed for run in arm.runs],
        "selected_by": arm.head,
        "causal": arm.settings.future_turns == 0,
        "scores": {
            split: {head: {m: _seeds(arm, arm.scores(split, head, m)) for m in METRICS} for head in HEADS}
            for split in SPLITS
        },
        "best_seed_by_dev": {
            "seed": best.settings.seed,
            "test_weighted_f1": {head: best.result["test"][head]["weighted_f1"] for head in HEADS},
        },
        "per_class_f1": {head: {k: spread(v) for k, v in arm.class_scores(head).items()} for head in HEADS},
        "confusion": {"classes": classes, "counts": confusion(arm.runs, arm.head, classes).tolist()},
        "prototype_cosine": [[None if math.isnan(value) else value for value in row] for row in cosines.tolist()],
        "best_epoch": [run.result["best_epoch"] for run in arm.runs],
        "epochs": [run.result["epochs"] for run in arm.runs],
        "seconds_per_epoch": _seeds(arm, arm.seconds_per_epoch()),
        "environments": unique([run.result.get("environment") for run in arm.runs]),
        "precision": sorted({run.result["precision"] for run in arm.runs}),
    }


def unique(values: Iterable[Any]) -> list[Any]:
    """Without repetition, in order; the values need no hash."""
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _seeds(arm: Arm, values: Sequence[float]) -> dict[str, Any]:
    by_seed = {str(run.settings.seed): value for run, value in zip(arm.runs, values, strict=True)}
    return {**spread(values), "by_seed": by_seed}
