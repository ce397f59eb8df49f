"""What a finished run leaves to read: predictions, figures, a page, and the result in a few lines of text."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spcl_loss

from .folder import RunFolder, atomically, write_json
from .inputs import Sample

BINS = 40


def difficulty_counts(difficulty: Tensor, drawn: Tensor) -> dict[str, list[float]]:
    """Histograms of the difficulty (n,) of all samples and of those that an epoch draws."""
    low, high = float(difficulty.min()), float(difficulty.max())
    edges = torch.linspace(low, max(high, low + 1e-6), BINS + 1)
    everything, kept = (torch.histogram(part.float(), edges).hist for part in (difficulty, difficulty[drawn]))
    return {"edges": edges.tolist(), "all": everything.tolist(), "drawn": kept.tolist()}


def write_run(
    folder: RunFolder,
    result: dict[str, Any],
    history: list[dict[str, Any]],
    labels: Sequence[str],
    splits: dict[str, list[Sample]],
    guesses: dict[str, dict[str, np.ndarray]],
) -> None:
    """Writes all files of a finished run; result.json comes last, so that its presence means that all is there."""
    atomically(folder.predictions, lambda path: write_predictions(path, labels, splits, guesses))
    write_json(folder.result, result)


def write_predictions(
    path: Path, labels: Sequence[str], splits: dict[str, list[Sample]], guesses: dict[str, dict[str, np.ndarray]]
) -> None:
    """A line for each dev and test utterance: where it is found, its emotion, and what each head says."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for number, (split, samples) in enumerate(splits.items()):
            if number == 0:
                writer.writerow(["split", "dialogue", "utterance", "gold", *guesses[split]])
            for i, sample in enumerate(samples):
                said = [labels[int(guess[i])] for guess in guesses[split].values()]
                writer.writerow([split, sample.dialogue, sample.turn, labels[sample.label], *said])


def result_table(result: dict[str, Any]) -> str:
    """The result in a few lines of text."""
    weight = result["contrastive_weight"]
    objective = result["objective"] + ("" if weight is None else f" at weight {weight:g} beside cross-entropy")
    chosen = result["selected_by"]
    lines = [
        f"{result['dataset']}, {objective}, curriculum {result['curriculum']}, seed {result['seed']}: "
        f"best epoch {result['best_epoch']} of {result['epochs']} by {chosen}; {result['seconds']:.0f} s",
        "",
        f"{'':26}{'weighted-F1':>12}{'macro-F1':>12}{'accuracy':>12}",
    ]
    for split in ("dev", "test"):
        for head, scores in result[split].items():
            columns = "".join(f"{scores[name]:>12.4f}" for name in ("weighted_f1", "macro_f1", "accuracy"))
            lines.append(f"{f'{split}, {head}' + ' *' * (head == chosen):<26}{columns}")
    per_class = result["test"][chosen]["per_class_f1"]
    lines += ["", f"* the result: the head that dev selects by. Test F1 by class, {chosen}: "]
    lines[-1] += ", ".join(f"{name} {f1:.3f}" for name, f1 in per_class.items())
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Versions, machine and, in a checkout, the commit."""
    return {
        "commit": _commit(),
        "spcl-loss": spcl_loss.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "scikit-learn")},
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    """The checkout's commit, with a plus where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
