"""What finished runs leave to read: predictions, and a page of tables and figures for one run or for many."""

from __future__ import annotations

import csv
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import sklearn
import torch
import transformers
from sklearn.metrics import confusion_matrix

import spcl_loss

from . import figures
from .data import plain_markdown, table
from .evaluate import Guesses, paired_bootstrap
from .folder import RunFolder, atomically, write_json, write_text
from .inputs import Sample
from .settings import HEADS, NAMES, Settings

METRICS = ("weighted_f1", "macro_f1", "accuracy")
METHODS = {
    "spcl": "SPCL", "spdcl": "SPDCL", "supcon": "SupCon", "bcl": "BCL", "eacl": "EACL-style", "ce": "cross-entropy",
}  # fmt: skip
CURRICULA = {"on": ", curriculum", "all": "", "half": ", random half"}


@dataclass(frozen=True)
class Run:
    """A finished run as its folder holds it."""

    folder: RunFolder
    settings: Settings
    result: dict[str, Any]
    history: list[dict[str, Any]]

    @cached_property
    def test(self) -> list[dict[str, str]]:
        """The rows of predictions.csv that are about the test set."""
        with self.folder.predictions.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if row["split"] == "test"]


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
    def classes(self) -> list[str]:
        return list(self.runs[0].result["test"][self.head]["per_class_f1"])

    def scores(self, split: str, head: str, metric: str) -> list[float]:
        return [float(run.result[split][head][metric]) for run in self.runs]

    def class_scores(self, name: str) -> list[float]:
        """Test F1 of a class by seed."""
        return [float(run.result["test"][self.head]["per_class_f1"][name]) for run in self.runs]

    def confusion(self) -> np.ndarray:
        """(C, C) test counts, true class by predicted class, of all seeds together."""
        rows = [row for run in self.runs for row in run.test]
        gold, guess = [row["gold"] for row in rows], [row[self.head] for row in rows]
        return confusion_matrix(gold, guess, labels=self.classes)


def collect(roots: Iterable[Path]) -> list[Run]:
    """All finished runs in the folders or below them."""
    paths = sorted({path.parent.resolve() for root in roots for path in root.rglob("result.json")})
    stored = [(folder, folder.stored_settings(), folder.stored_result()) for folder in map(RunFolder, paths)]
    return [Run(f, settings, result, f.history()) for f, settings, result in stored if settings and result]


def by_dataset(runs: Sequence[Run]) -> dict[tuple[str, str], list[Arm]]:
    """Arms by dataset and encoder, the best on dev first."""
    groups: dict[tuple[str, str], dict[Settings, dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: run.settings.seed):
        group = groups.setdefault((run.settings.dataset, encoder_name(run.settings)), {})
        group.setdefault(replace(run.settings, seed=0), {})[run.settings.seed] = run
    found = {}
    for key, group in groups.items():
        arms = [Arm(label(settings, group), tuple(by_seed.values())) for settings, by_seed in group.items()]
        found[key] = sorted(arms, key=lambda arm: -statistics.fmean(arm.scores("dev", arm.head, "weighted_f1")))
    return found


def label(settings: Settings, all_settings: Iterable[Settings]) -> str:
    """A name for an arm among others: method, curriculum, and the other settings in which the arms differ."""
    weight = settings.contrastive_weight
    name = METHODS[settings.objective] + ("" if weight is None else f" x {weight:g} + cross-entropy")
    said = ("dataset", "objective", "contrastive_weight", "curriculum", "seed")
    differing = [n for n in NAMES if n not in said and len({getattr(other, n) for other in all_settings}) > 1]
    return name + CURRICULA[settings.curriculum] + "".join(f", {n} {getattr(settings, n)}" for n in differing)


def encoder_name(settings: Settings) -> str:
    """The encoder without the folders that lead to it, unless it is a name on the Hugging Face hub."""
    path = Path(settings.encoder)
    return path.name if path.is_absolute() or path.is_dir() else settings.encoder


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Writes report.md with its figures, for one run or for many."""
    lines = [
        "# Emotion recognition in conversation with SPCL",
        "",
        "Scores are in percent. The best epoch has the best dev weighted-F1 of the head in `selected by`. Test is",
        "scored once, with that epoch's weights. All arms have the same heads. ± is the standard deviation over seeds.",
        "",
    ]
    groups = by_dataset(runs)
    for number, ((dataset, encoder), arms) in enumerate(groups.items()):
        lines += [f"## {dataset}, {plain_markdown(encoder)}", ""]
        if any(arm.settings.limit for arm in arms):
            lines += ["**These runs saw only part of the dataset. These are no scores on the dataset.**", ""]
        lines += [_scores(arms), "", _heads(arms), "", _class_scores(arms), ""]
        if len(arms) > 1:
            lines += [_differences(arms), ""]
        for name, caption, figure in figures.draw(arms):
            file = f"{name}.png" if len(groups) == 1 else f"{name}-{number + 1}.png"
            atomically(output / file, partial(figure.savefig, dpi=150))
            lines += [f"![{caption}]({file})", "", caption, ""]
    write_text(output / "report.md", "\n".join(lines))


def _scores(arms: Sequence[Arm]) -> str:
    rows = [("arm", "seeds", "selected by", "dev", "test", "test macro-F1", "test accuracy", "best epoch", "seconds")]
    for arm in arms:
        picked = [("dev", "weighted_f1"), *(("test", metric) for metric in METRICS)]
        values = [spread(arm.scores(split, arm.head, metric)) for split, metric in picked]
        epochs = ", ".join(f"{run.result['best_epoch']} of {run.result['epochs']}" for run in arm.runs)
        seconds = statistics.fmean(run.result["seconds"] for run in arm.runs)
        rows.append((arm.label, str(len(arm.runs)), arm.head, *values, epochs, f"{seconds:.0f}"))
    return table(rows)


def _heads(arms: Sequence[Arm]) -> str:
    rows = [("weighted-F1 by head, dev / test", *HEADS)]
    for arm in arms:
        pairs = [[arm.scores(split, head, "weighted_f1") for split in ("dev", "test")] for head in HEADS]
        means = (f"{100 * statistics.fmean(dev):.2f} / {100 * statistics.fmean(test):.2f}" for dev, test in pairs)
        rows.append((arm.label, *means))
    return table(rows)


def _class_scores(arms: Sequence[Arm]) -> str:
    classes = arms[0].classes
    rows = [(arm.label, *(spread(arm.class_scores(name)) for name in classes)) for arm in arms]
    return table([("test F1 by class", *classes), *rows])


def _differences(arms: Sequence[Arm]) -> str:
    """Every arm against cross-entropy, or against the best on dev where there is none, on the seeds that both have."""
    base = next((arm for arm in arms if arm.settings.objective == "ce"), arms[0])
    rows = [(f"test weighted-F1 minus that of {base.label}", "seeds", "difference", "95% interval")]
    for arm in arms:
        if arm is not base and (found := difference(arm, base)) is not None:
            interval = f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
            rows.append((arm.label, f"{found['seeds']:.0f}", f"{100 * found['difference']:+.2f}", interval))
    return f"{table(rows)}\n\nThe interval is a paired bootstrap over dialogues and seeds." if len(rows) > 1 else ""


def difference(one: Arm, other: Arm) -> dict[str, float] | None:
    """`paired_bootstrap` of two arms on test, each with its own head; None without a common seed or test set."""
    others = {run.settings.seed: run for run in other.runs}
    pairs = [(run, others[run.settings.seed]) for run in one.runs if run.settings.seed in others]
    test_sets = {tuple((row["dialogue"], row["utterance"]) for row in run.test) for pair in pairs for run in pair}
    if len(test_sets) != 1:
        return None

    def column(run: Run, name: str) -> list[int]:
        return [one.classes.index(row[name]) for row in run.test]

    gold = np.array(column(pairs[0][0], "gold"))
    ours = np.array([column(run, one.head) for run, _ in pairs])
    theirs = np.array([column(run, other.head) for _, run in pairs])
    dialogues = [row["dialogue"] for row in pairs[0][0].test]
    return {"seeds": len(pairs), **paired_bootstrap(gold, ours, theirs, dialogues, len(one.classes))}


def results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One record for each run: its arm, its folder and what result.json holds."""
    return [
        {"arm": arm.label, "folder": run.folder.path.name, **run.result, "encoder": encoder_name(run.settings)}
        for arms in by_dataset(runs).values()
        for arm in arms
        for run in arm.runs
    ]


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation in percent; a single value has no deviation."""
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def write_run(run: Run, labels: Sequence[str], splits: dict[str, list[Sample]], guesses: Guesses) -> None:
    """Writes all files of a finished run. result.json comes last, so that its presence means that all is there."""
    folder, result = run.folder, run.result
    atomically(folder.predictions, lambda path: write_predictions(path, labels, splits, guesses))
    write_report([run], folder.path)
    atomically(folder.best, partial(shutil.copyfile, folder.best_of(result["best_epoch"])))
    write_json(folder.result, result)
    folder.drop_checkpoints()


def write_predictions(path: Path, labels: Sequence[str], splits: dict[str, list[Sample]], guesses: Guesses) -> None:
    """Writes a line for each dev and test utterance: where it is found, its emotion, and what each head predicts."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "dialogue", "utterance", "gold", *HEADS])
        for split, samples in splits.items():
            for sample, *predicted in zip(samples, *(guesses[split][head] for head in HEADS), strict=True):
                emotions = (labels[label] for label in (sample.label, *predicted))
                writer.writerow([split, sample.dialogue, sample.turn, *emotions])


def summary(folder: str | Path) -> str:
    """The scores of the run that a folder holds, in a few lines."""
    ((arm,),) = by_dataset(collect([Path(folder)])).values()
    return "\n\n".join([_scores([arm]), _heads([arm]), _class_scores([arm])])


def environment() -> dict[str, Any]:
    """Versions, machine and, in a checkout, the commit, with a plus where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    return {
        "commit": commit or None,
        "spcl-loss": spcl_loss.__version__,
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in (torch, transformers, accelerate, sklearn)},
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
