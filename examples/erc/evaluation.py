"""Encoding whole splits, and scoring the two heads on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from spcl_loss import SupervisedPrototypicalContrastiveLoss

from .batches import longest_first
from .inputs import Sample, collate
from .progress import progress_bar

if TYPE_CHECKING:
    from accelerate import Accelerator

HEADS = ("prototype", "linear")


@dataclass(frozen=True)
class Encoded:
    """A split's n samples as the model sees them, in their own order."""

    features: Tensor  # (n, D)
    scores: Tensor  # (n, C), of the linear head
    labels: Tensor  # (n,)


def encode(
    model: torch.nn.Module,
    samples: Sequence[Sample],
    accelerator: Accelerator,
    *,
    padding: int,
    batch_size: int,
    what: str,
) -> Encoded:
    """One pass without gradients over `samples`, shared among the processes; every process gets all of it."""
    batches = longest_first(samples, batch_size)
    # with more processes than batches the surplus ones repeat the last
    own = batches[accelerator.process_index :: accelerator.num_processes] or batches[-1:]
    features, scores, places = [], [], []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in progress_bar(own, desc=what, unit="batch", shown=accelerator.is_main_process):
            feature, score = model(collate([samples[i] for i in batch], padding).to(accelerator.device))
            features.append(feature)
            scores.append(score)
            places.append(torch.tensor(batch, device=accelerator.device))
    model.train(was_training)
    place = _everyones(places, accelerator)
    labels = torch.tensor([sample.label for sample in samples], device=accelerator.device)
    return Encoded(_put(_everyones(features, accelerator), place), _put(_everyones(scores, accelerator), place), labels)


def _put(rows: Tensor, place: Tensor) -> Tensor:
    """The rows in the order that `place` states; where two processes had the same one, either is right."""
    ordered = rows.new_empty(int(place.max()) + 1, rows.shape[1])
    ordered[place] = rows
    return ordered


def _everyones(parts: list[Tensor], accelerator: Accelerator) -> Tensor:
    """The rows of all processes, which may hold different numbers of them, in process order."""
    rows = torch.cat(parts)
    if accelerator.num_processes == 1:
        return rows
    counts = accelerator.gather(torch.tensor([len(rows)], device=accelerator.device)).tolist()
    blocks = accelerator.gather(accelerator.pad_across_processes(rows)).split(max(counts))
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def predictions(criterion: SupervisedPrototypicalContrastiveLoss, encoded: Encoded) -> dict[str, Tensor]:
    """(n,) predicted classes of each head: the nearest prototype, and the linear head's highest score."""
    return {"prototype": criterion.predict(encoded.features).cpu(), "linear": encoded.scores.argmax(1).cpu()}


def score(gold: Tensor, predicted: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Weighted-F1, macro-F1, accuracy and per-class F1; a class neither present nor predicted has an F1 of 0."""
    truth, guess = gold.cpu().numpy(), predicted.cpu().numpy()
    classes = list(range(len(labels)))
    per_class = f1_score(truth, guess, labels=classes, average=None, zero_division=0)
    return {
        "weighted_f1": float(f1_score(truth, guess, labels=classes, average="weighted", zero_division=0)),
        "macro_f1": float(per_class.mean()),
        "accuracy": float(accuracy_score(truth, guess)),
        "per_class_f1": dict(zip(labels, map(float, per_class), strict=True)),
    }


def evaluate(
    criterion: SupervisedPrototypicalContrastiveLoss, encoded: Encoded, labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """`score` of each head."""
    return {head: score(encoded.labels, guess, labels) for head, guess in predictions(criterion, encoded).items()}
