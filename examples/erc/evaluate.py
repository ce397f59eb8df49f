"""Scoring: encoding a split, the heads that classify it, their scores, and intervals of differences between arms."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import normalize
from tqdm import tqdm

from .batches import longest_first
from .files import InputError
from .inputs import Sample, collate

Array = np.ndarray[Any, np.dtype[Any]]
Head = Callable[[Array, Array, Array], Array]
Guesses = dict[str, dict[str, Array]]  # by split and head: the predicted class of each sample


@dataclass(frozen=True)
class Encoded:
    """The representations of n samples, in the order of the samples."""

    features: Array  # (n, D)
    labels: Array  # (n,)


def encode(
    model: torch.nn.Module, samples: Sequence[Sample], accelerator: Accelerator, *, padding: int, batch_size: int,
    what: str,
) -> Encoded:  # fmt: skip
    """Encodes `samples` in evaluation mode. The processes share the work, and each gets all representations."""
    batches = longest_first(samples, batch_size)
    # With more processes than batches, the surplus processes repeat the last batch.
    own = batches[accelerator.process_index :: accelerator.num_processes] or batches[-1:]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        bar = progress_bar(own, desc=f"encoding {what}", unit="batch", shown=accelerator.is_main_process)
        inputs = (collate([samples[i] for i in batch], padding).to(accelerator.device) for batch in bar)
        features = [model(batch)[0].cpu() for batch in inputs]
    model.train(was_training)
    everyones = gather_object(list(zip(own, features, strict=True)))
    ordered = torch.empty(len(samples), features[0].shape[1])
    for batch, rows in everyones:
        ordered[batch] = rows
    if not bool(ordered.isfinite().all()):
        raise InputError("training diverged: representations are not finite; lower --encoder-rate or try fp32")
    return Encoded(ordered.double().numpy(), np.array([sample.label for sample in samples]))


def progress_bar(*arguments: Any, shown: bool, **options: Any) -> tqdm[Any]:
    """A bar that clears when it is full. Off a terminal it prints a line every ten seconds."""
    timing = {"mininterval": 0.2} if sys.stderr.isatty() else {"mininterval": 10, "delay": 10}
    return tqdm(*arguments, leave=False, disable=not shown, **timing, **options)


def reference_samples(labels: Sequence[int], per_class: int | None, seed: int) -> list[int]:
    """The places of at most `per_class` random samples of each class. The same seed gives the same places."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.array(labels) == label)
        chosen += generator.permutation(members)[:per_class].tolist()
    return sorted(chosen)


def heads(weight: Array, bias: Array, counts: Array, temperature: float) -> dict[str, Head]:
    """Every head by its name: a function of train features (m, D), train labels (m,) and features (n, D).

    It returns scores (n, C). `weight` (C, D) and `bias` (C,) belong to the trained linear head. `counts` (C,) are the
    class sizes of the training set. The train features may be a part of it with other class sizes, so fitted heads take
    the true sizes as weights or priors.
    """
    classes = len(counts)
    with np.errstate(divide="ignore"):
        log_prior = np.log(counts / counts.sum())

    def all_classes(scores: Array, present: Array) -> Array:
        """Scores (n, C) in which a class without train features has -inf."""
        full = np.full((len(scores), classes), -np.inf)
        full[:, present] = scores
        return full

    def linear(train: Array, labels: Array, features: Array) -> Array:
        return features @ weight.T + bias

    def linear_adjusted(train: Array, labels: Array, features: Array) -> Array:
        # Menon et al., ICLR 2021: without the prior, all classes count the same.
        return linear(train, labels, features) - np.where(counts > 0, log_prior, 0)

    def prototype(train: Array, labels: Array, features: Array) -> Array:
        present = np.unique(labels)
        means = np.stack([train[labels == label].mean(0) for label in present])
        return all_classes((1 + normalize(features) @ normalize(means).T) / 2 / temperature, present)

    def prototype_prior(train: Array, labels: Array, features: Array) -> Array:
        return prototype(train, labels, features) + log_prior

    def fitted(classifier: Any, train: Array, labels: Array, features: Array) -> Array:
        present = np.unique(labels)
        if len(present) == 1:  # nothing to tell apart
            return prototype(train, labels, features)
        scores = classifier.fit(normalize(train), labels).predict_log_proba(normalize(features))
        return all_classes(scores, present)

    def logistic(train: Array, labels: Array, features: Array) -> Array:
        present, sizes = np.unique(labels, return_counts=True)
        weights = dict(zip(present.tolist(), counts[present] / sizes, strict=True))
        return fitted(LogisticRegression(C=10.0, class_weight=weights, max_iter=2000), train, labels, features)

    def lda(train: Array, labels: Array, features: Array) -> Array:
        sizes = counts[np.unique(labels)]
        classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=sizes / sizes.sum())
        return fitted(classifier, train, labels, features)

    return {head.__name__: head for head in (linear, linear_adjusted, prototype, prototype_prior, logistic, lda)}


def predict(every_head: dict[str, Head], train: Encoded, split: Encoded) -> dict[str, Array]:
    """(n,) predicted classes of a split by each head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, where a class has a single sample
        return {name: head(train.features, train.labels, split.features).argmax(1) for name, head in every_head.items()}


def score(gold: Array, predicted: Array, labels: Sequence[str]) -> dict[str, Any]:
    """Weighted-F1, macro-F1, accuracy and per-class F1; a class neither present nor predicted has an F1 of 0."""
    classes = list(range(len(labels)))
    per_class = f1_score(gold, predicted, labels=classes, average=None, zero_division=0)
    return {
        "weighted_f1": float(f1_score(gold, predicted, labels=classes, average="weighted", zero_division=0)),
        "macro_f1": float(per_class.mean()),
        "accuracy": float(accuracy_score(gold, predicted)),
        "per_class_f1": dict(zip(labels, map(float, per_class), strict=True)),
    }


def weighted_f1_of_counts(counts: Array) -> Array:
    """Weighted-F1 of confusion counts (..., C, C), true class by predicted class."""
    true, predicted, right = counts.sum(-1), counts.sum(-2), np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = 2 * right / np.maximum(true + predicted, 1)
    return (f1 * true).sum(-1) / np.maximum(true.sum(-1), 1)


def paired_bootstrap(
    gold: Array, one: Array, other: Array, dialogues: Sequence[str], num_classes: int, draws: int = 10_000
) -> dict[str, float]:
    """The difference of two arms' weighted-F1, mean over seeds, with its 95% interval over dialogues and seeds.

    Every draw takes as many dialogues and seeds as there are, with replacement, and the same ones for both arms. `gold`
    is (n,); `one` and `other` are an arm's predictions (S, n), by the same seeds; `dialogues` names those of the turns.
    A prediction that is no class leaves the turn out.
    """
    names, place = np.unique(np.asarray(dialogues), return_inverse=True)
    seeds = len(one)

    def counts(predicted: Array) -> Array:
        table, scored = np.zeros((len(names), num_classes, num_classes)), predicted < num_classes
        np.add.at(table, (place[scored], gold[scored], predicted[scored]), 1)
        return table

    arms = [np.stack([counts(guess) for guess in arm]) for arm in (one, other)]  # (S, dialogues, C, C) each
    generator = np.random.default_rng(0)
    times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)  # (draws, dialogues)
    differences = np.stack(
        [np.subtract(*(weighted_f1_of_counts(np.tensordot(times, arm[s], 1)) for arm in arms)) for s in range(seeds)], 1
    )
    drawn = np.take_along_axis(differences, generator.integers(seeds, size=(draws, seeds)), 1).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    point = np.mean([np.subtract(*(weighted_f1_of_counts(arm[s].sum(0)) for arm in arms)) for s in range(seeds)])
    return {"difference": float(point), "low": float(low), "high": float(high)}
