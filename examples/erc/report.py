"""What a finished run leaves: result, predictions, figures, and the table on the screen."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from spcl_loss import SupervisedPrototypicalContrastiveLoss

from . import figures
from .dialogues import Corpus
from .evaluation import HEADS, Encoded, predictions
from .inputs import Sample
from .run_folder import RunFolder, atomically, write_json

BINS = 40


def difficulty_counts(difficulty: Tensor, drawn: Tensor) -> dict[str, list[float]]:
    """A histogram of the difficulty (n,) of all samples and of those that an epoch draws."""
    low, high = float(difficulty.min()), float(difficulty.max())
    edges = torch.linspace(low, max(high, low + 1e-6), BINS + 1)
    everything, kept = (torch.histogram(part.float(), edges).hist for part in (difficulty, difficulty[drawn]))
    return {"edges": edges.tolist(), "all": everything.tolist(), "drawn": kept.tolist()}


def write_report(
    folder: RunFolder,
    result: dict[str, Any],
    history: list[dict[str, Any]],
    corpus: Corpus,
    samples: Sequence[Sample],
    encoded: Encoded,
    criterion: SupervisedPrototypicalContrastiveLoss,
) -> None:
    """Writes all files of a finished run; result.json comes last, so that its presence means that all is there."""
    guesses = predictions(criterion, encoded)
    atomically(folder.predictions, lambda path: write_predictions(path, samples, corpus.labels, guesses))
    drawings = draw(result, history, corpus.labels, encoded, guesses["prototype"], criterion)
    for name, drawing in drawings.items():
        atomically(folder.path / name, partial(drawing.savefig, format="png", dpi=200))
    write_json(folder.result, result)


def draw(
    result: dict[str, Any],
    history: list[dict[str, Any]],
    labels: Sequence[str],
    encoded: Encoded,
    guess: Tensor,
    criterion: SupervisedPrototypicalContrastiveLoss,
) -> dict[str, Figure]:
    """The figures by their file names."""
    gold = encoded.labels.cpu()
    centroids, exists = criterion.memory.centroids()
    centroids, exists = centroids[exists].cpu(), exists.cpu()
    return {
        "f1_by_epoch.png": figures.f1_by_epoch(history, result),
        "confusion_matrix.png": figures.confusion_matrix(gold, guess, labels, result),
        "representation_map.png": figures.representation_map(
            encoded.features.cpu(), gold, centroids, exists, labels, result
        ),
        "difficulty.png": figures.difficulty(history, result),
    }


def write_predictions(path: Path, samples: Sequence[Sample], labels: Sequence[str], guesses: dict[str, Tensor]) -> None:
    """A line a test utterance: where it is found, its emotion, and what each head says."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dialogue", "utterance", "gold", *HEADS])
        for i, sample in enumerate(samples):
            heads = [labels[int(guesses[head][i])] for head in HEADS]
            writer.writerow([sample.dialogue, sample.turn, labels[sample.label], *heads])


def result_table(result: dict[str, Any]) -> str:
    """The result in a few lines of text."""
    lines = [
        f"{result['dataset']}, {result['objective']}, curriculum {result['curriculum']}, seed {result['seed']}: "
        f"best epoch {result['best_epoch']} of {result['epochs']} by {result['selected_by']}; "
        f"{result['seconds']:.0f} s",
        "",
        f"{'':24}{'weighted-F1':>12}{'macro-F1':>12}{'accuracy':>12}",
    ]
    for split in ("dev", "test"):
        for head in HEADS:
            scores = result[split][head]
            columns = "".join(f"{scores[name]:>12.4f}" for name in ("weighted_f1", "macro_f1", "accuracy"))
            lines.append(f"{split + ', ' + head:<24}{columns}")
    per_class = result["test"]["prototype"]["per_class_f1"]
    lines += ["", "test F1 by class, nearest prototype: " + ", ".join(f"{k} {v:.3f}" for k, v in per_class.items())]
    return "\n".join(lines)
