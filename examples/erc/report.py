"""What finished runs leave to read: predictions, and a page of tables and figures for one run or for many."""

import csv
import platform
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import sklearn
import torch
import transformers
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

import spcl_loss

from .data import plain_markdown, table
from .evaluate import Guesses, paired_bootstrap
from .files import InputError
from .folder import RunFolder, atomically, write_json, write_text
from .inputs import Sample
from .settings import HEADS, NAMES, Settings

SELECTED = (("dev", "weighted_f1"), ("test", "weighted_f1"), ("test", "macro_f1"), ("test", "accuracy"))
METHODS = {
    "spcl": "SPCL", "spdcl": "SPDCL", "supcon": "SupCon", "bcl": "BCL", "eacl": "EACL-style", "ce": "cross-entropy",
}  # fmt: skip
CONFUSION = "Test turns, selecting head, all seeds: percent of the true class."
CURRICULA = {"on": ", curriculum", "all": "", "half": ", random half"}


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: RunFolder
    settings: Settings
    result: dict[str, Any]

    @cached_property
    def test(self) -> dict[str, list[str]]:
        """The columns of predictions.csv, of the test set."""
        with self.folder.predictions.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
        return {name: [row[name] for row in rows] for name in rows[0]}


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed alone, in the order of the seeds."""

    label: str
    settings: Settings
    runs: tuple[Run, ...]

    @property
    def head(self) -> str:
        """The head that dev selects by, and that the arm is judged by."""
        return self.settings.selects_by

    @property
    def classes(self) -> list[str]:
        return list(self.runs[0].result["test"][self.head]["per_class_f1"])

    def scores(self, *path: str) -> list[float]:
        """What the results hold at a path such as ("dev", "lda", "weighted_f1"), by seed."""
        return [float(reduce(getitem, path, run.result)) for run in self.runs]


def collect(roots: Iterable[Path]) -> list[Run]:
    """All finished runs in the folders or below them."""
    folders = map(RunFolder, sorted({path.parent.resolve() for root in roots for path in root.rglob("result.json")}))
    runs = []
    for folder in folders:
        try:
            settings, result = folder.stored_settings(), folder.stored_result()
            if settings and result:
                runs.append(Run(folder, settings, result))
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    return runs


def by_dataset(runs: Sequence[Run]) -> dict[tuple[str, str], list[Arm]]:
    """Arms by dataset and encoder, the best on dev first."""
    groups: dict[tuple[str, str], dict[Settings, dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: run.settings.seed):
        group = groups.setdefault((run.settings.dataset, Path(run.settings.encoder).name), {})
        by_seed = group.setdefault(replace(run.settings, seed=0), {})
        if former := by_seed.get(run.settings.seed):
            print(f"left out: {former.folder.path} has the settings and the seed of {run.folder.path}", file=sys.stderr)
        by_seed[run.settings.seed] = run
    found = {}
    for key, group in groups.items():
        arms = [Arm(label(settings, group), settings, tuple(by_seed.values())) for settings, by_seed in group.items()]
        found[key] = sorted(arms, key=lambda arm: -statistics.fmean(arm.scores("dev", arm.head, "weighted_f1")))
    return found


def label(settings: Settings, all_settings: Iterable[Settings]) -> str:
    """A name for an arm among others: method, curriculum, and the other settings in which the arms differ."""
    weight = settings.contrastive_weight
    name = METHODS[settings.objective] + ("" if weight is None else f" x {weight:g} + cross-entropy")
    said = ("dataset", "objective", "contrastive_weight", "curriculum", "seed")
    differing = [n for n in NAMES if n not in said and len({getattr(other, n) for other in all_settings}) > 1]
    return name + CURRICULA[settings.curriculum] + "".join(f", {n} {getattr(settings, n)}" for n in differing)


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Writes report.md with its figures, for one run or for many."""
    paragraphs = [
        "# Emotion recognition in conversation with SPCL",
        "Scores are in percent. The best epoch has the best dev weighted-F1 of the head in `selected by`. Test is\n"
        "scored once, with that epoch's weights. All arms have the same heads. ± is the standard deviation over seeds.",
    ]
    groups = by_dataset(runs)
    for number, ((dataset, encoder), arms) in enumerate(groups.items()):
        paragraphs.append(f"## {dataset}, {plain_markdown(encoder)}")
        if any(arm.settings.limit for arm in arms):
            paragraphs.append("**These runs saw only part of the dataset. These are no scores on the dataset.**")
        paragraphs += [tables(arms), *_differences(arms)]
        file = "confusion.png" if len(groups) == 1 else f"confusion-{number + 1}.png"
        atomically(output / file, partial(confusion(arms).savefig, dpi=150))
        paragraphs += [f"![{CONFUSION}]({file})", CONFUSION]
    write_text(output / "report.md", "\n\n".join(paragraphs) + "\n")


def tables(arms: Sequence[Arm]) -> str:
    """The scores of the selecting head, of every head, and of every class."""
    classes = arms[0].classes
    by_arm = [("arm", "seeds", "selected by", "dev", "test", "test macro-F1", "test accuracy", "best epoch", "seconds")]
    by_head = [("weighted-F1 by head, dev / test", *HEADS)]
    by_class = [("test F1 by class", *classes)]
    for arm in arms:
        values = [spread(arm.scores(split, arm.head, metric)) for split, metric in SELECTED]
        epochs = ", ".join(f"{run.result['best_epoch']} of {run.result['epochs']}" for run in arm.runs)
        seconds = statistics.fmean(arm.scores("seconds"))
        by_arm.append((arm.label, str(len(arm.runs)), arm.head, *values, epochs, f"{seconds:.0f}"))
        pairs = [[arm.scores(split, head, "weighted_f1") for split in ("dev", "test")] for head in HEADS]
        means = (f"{100 * statistics.fmean(dev):.2f} / {100 * statistics.fmean(test):.2f}" for dev, test in pairs)
        by_head.append((arm.label, *means))
        f1s = (spread(arm.scores("test", arm.head, "per_class_f1", name)) for name in classes)
        by_class.append((arm.label, *f1s))
    return "\n\n".join(map(table, (by_arm, by_head, by_class)))


def _differences(arms: Sequence[Arm]) -> list[str]:
    """Every arm against cross-entropy, or against the best on dev where there is none, on the seeds that both have."""
    base = next((arm for arm in arms if arm.settings.objective == "ce"), arms[0])
    rows = [(f"test weighted-F1 minus that of {base.label}", "seeds", "difference", "95% interval")]
    for arm in arms:
        if arm is not base and (found := difference(arm, base)) is not None:
            interval = f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
            rows.append((arm.label, f"{found['seeds']:.0f}", f"{100 * found['difference']:+.2f}", interval))
    return [table(rows), "The interval is a paired bootstrap over dialogues and seeds."] if len(rows) > 1 else []


def difference(one: Arm, other: Arm) -> dict[str, float] | None:
    """`paired_bootstrap` of two arms on test, each with its own head; None without a common seed or test set."""
    others = {run.settings.seed: run for run in other.runs}
    pairs = [(run.test, others[run.settings.seed].test) for run in one.runs if run.settings.seed in others]
    test_sets = [[test[name] for name in ("dialogue", "utterance", "gold")] for pair in pairs for test in pair]
    if not pairs or any(turns != test_sets[0] for turns in test_sets):
        return None
    index = np.vectorize(one.classes.index)
    ours, theirs = index([test[one.head] for test, _ in pairs]), index([test[other.head] for _, test in pairs])
    dialogues, _, gold = test_sets[0]
    found = paired_bootstrap(index(gold), ours, theirs, dialogues, len(one.classes))
    return {"seeds": len(pairs), **found["weighted"]}


def confusion(arms: Sequence[Arm]) -> Figure:
    classes = arms[0].classes
    columns = min(len(arms), 3)
    rows = -(-len(arms) // columns)
    size = columns * (1.6 + 0.62 * len(classes)), rows * (1.6 + 0.5 * len(classes))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    for number, arm in enumerate(arms, start=1):
        panel = figure.add_subplot(rows, columns, number)
        gold, guess = ([one for run in arm.runs for one in run.test[column]] for column in ("gold", arm.head))
        shares = confusion_matrix(gold, guess, labels=classes, normalize="true")
        display = ConfusionMatrixDisplay(shares, display_labels=[*map(_literal, classes)])
        colors = {"cmap": "Blues", "im_kw": {"vmin": 0, "vmax": 1}, "colorbar": False}
        display.plot(values_format=".0%", xticks_rotation=40, ax=panel, **colors)
        panel.set(title=_literal(arm.label, 8 * len(classes)), xlabel="predicted", ylabel="true")
    return figure


def _literal(text: str, width: int = 60) -> str:
    """Text in lines of that many characters. Text between dollars would be drawn as mathematics, or be an error."""
    return textwrap.fill(text.replace("$", r"\$"), width)


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


def environment() -> dict[str, Any]:
    """Versions, machine and, in a checkout, the commit, with a plus where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    return {
        "commit": (shutil.which("git") and subprocess.run(git, capture_output=True, text=True).stdout.strip()) or None,
        "spcl-loss": spcl_loss.__version__,
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in (torch, transformers, accelerate, sklearn)},
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
