"""Scoring: encoding a split, the heads that classify it, their scores, and intervals of differences between arms."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import normalize
from tqdm import tqdm

from .batches import longest_first
from .files import InputError
from .inputs import Sample, collate
from .settings import HEADS

Array = np.ndarray[Any, np.dtype[Any]]
Guesses = dict[str, dict[str, Array]]  # by split and head: the predicted class of each sample


@dataclass(frozen=True)
class Encoded:
    """The representations of n samples, in the order of the samples."""

    features: Array  # (n, D)
    labels: Array  # (n,)


def encode(
    model: torch.nn.Module, samples: Sequence[Sample], accelerator: Accelerator, batch_size: int, what: str
) -> Encoded:
    """Encodes `samples` in evaluation mode. The processes share the work, and each gets all representations.

    `batch_size` is that of training; four times as many fit here, where nothing is kept for a backward pass.
    """
    batches = longest_first(samples, 4 * batch_size)
    # With more processes than batches, the surplus processes repeat the last batch.
    own = batches[accelerator.process_index :: accelerator.num_processes] or batches[-1:]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        bar = progress_bar(own, desc=f"encoding {what}", unit="batch", shown=accelerator.is_main_process)
        inputs = (send_to_device(collate([samples[i] for i in batch]), accelerator.device) for batch in bar)
        features = [model(batch)[0].cpu() for batch in inputs]
    model.train(was_training)
    everyones = gather_object(list(zip(own, features, strict=True)))
    ordered = torch.empty(len(samples), features[0].shape[1])
    for batch, rows in everyones:
        ordered[batch] = rows
    if not bool(ordered.isfinite().all()):
        raise InputError("training diverged: representations are not finite; lower --encoder-rate or try fp32")
    return Encoded(ordered.double().numpy(), np.array([sample.label for sample in samples]))


def progress_bar(*arguments: Any, shown: bool, **options: Any) -> "tqdm[Any]":
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


@dataclass(frozen=True)
class Heads:
    """The ways to classify representations; `settings.HEADS` are their names.

    All but the linear heads are fitted to some turns of the training set. Class sizes differ there, so fitted heads
    take those of the whole set as weights or priors.
    """

    linear: torch.nn.Linear  # the head that was trained beside the encoder
    counts: Array  # (C,) class sizes of the training set
    temperature: float

    def scores(self, head: str, train: Encoded, features: Array) -> Array:
        """Scores (n, C) of features (n, D). A class without train features has -inf, except by the linear heads."""
        with np.errstate(divide="ignore"):
            log_prior = np.log(self.counts / self.counts.sum())
        if head.startswith("linear"):
            weight, bias = (part.detach().double().cpu().numpy() for part in (self.linear.weight, self.linear.bias))
            scores: Array = features @ weight.T + bias
            # Menon et al., ICLR 2021: without the prior, all classes count the same.
            return scores - np.where(self.counts > 0, log_prior, 0) if head == "linear_adjusted" else scores

        present, sizes = np.unique(train.labels, return_counts=True)
        if head.startswith("prototype") or len(present) == 1:  # a single class cannot be told apart from others
            means = np.stack([train.features[train.labels == label].mean(0) for label in present])
            scores = (1 + normalize(features) @ normalize(means).T) / 2 / self.temperature
        else:
            true_sizes = self.counts[present]
            if head == "logistic":
                weights = dict(zip(present.tolist(), true_sizes / sizes, strict=True))
                classifier = LogisticRegression(C=10.0, class_weight=weights, max_iter=2000)
            else:
                priors = true_sizes / true_sizes.sum()
                classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors)
            classifier.fit(normalize(train.features), train.labels)
            scores = classifier.predict_log_proba(normalize(features))
        of_all = np.full((len(features), len(self.counts)), -np.inf)
        of_all[:, present] = scores
        return of_all + log_prior if head == "prototype_prior" else of_all

    def predict(self, train: Encoded, features: Array) -> dict[str, Array]:
        """(n,) predicted classes by each head."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, where a class has a single sample
            return {head: self.scores(head, train, features).argmax(1) for head in HEADS}


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


def f1_of_counts(counts: Array) -> dict[str, Array]:
    """F1 of confusion counts (..., C, C), true class by predicted class: its weighted and its macro average."""
    true, predicted, right = counts.sum(-1), counts.sum(-2), np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = 2 * right / np.maximum(true + predicted, 1)
    return {"weighted": (f1 * true).sum(-1) / np.maximum(true.sum(-1), 1), "macro": f1.mean(-1)}


def bootstrap_f1(
    gold: Array, guesses: Array, dialogues: Sequence[str], num_classes: int
) -> dict[str, tuple[Array, Array]]:
    """By average of F1: the mean over seeds of each of K arms, (K,), and the same in 10,000 draws, (10,000, K).

    A draw takes dialogues and seeds with replacement, and the same for all arms: as many dialogues as there are, and
    one seed fewer (at least one). Drawing n - 1 of n seeds gives their mean its unbiased variance. The seeds are drawn
    first, so they are the same for every split. `gold` is (n,), `guesses` (K, S, n) holds the predictions of K arms by
    the same S seeds, `dialogues` names each turn's. A prediction that is no class leaves the turn out.
    """
    names, place = np.unique(np.asarray(dialogues), return_inverse=True)
    generator, seeds = np.random.default_rng(0), guesses.shape[1]
    drawn_seeds = generator.integers(seeds, size=(10_000, max(1, seeds - 1)))
    times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=10_000)  # (draws, dialogues)
    found: dict[str, tuple[list[Array], list[Array]]] = {"weighted": ([], []), "macro": ([], [])}
    for arm in guesses:
        counts = np.zeros((len(names), seeds, num_classes, num_classes))
        of_a_class = np.minimum(arm, num_classes - 1)
        np.add.at(counts, (place, np.arange(seeds)[:, None], gold, of_a_class), arm < num_classes)
        in_draws = f1_of_counts(np.tensordot(times, counts, 1))  # each (draws, S)
        for average, of_seeds in f1_of_counts(counts.sum(0)).items():
            found[average][0].append(of_seeds.mean())
            found[average][1].append(np.take_along_axis(in_draws[average], drawn_seeds, 1).mean(1))
    return {average: (np.array(means), np.stack(draws, 1)) for average, (means, draws) in found.items()}


def interval(means: Array, draws: Array) -> dict[str, float]:
    """The difference of two arms of `bootstrap_f1`, (2,) and (draws, 2), with its 95% interval."""
    low, high = np.quantile(draws[:, 0] - draws[:, 1], (0.025, 0.975))
    return {"difference": float(means[0] - means[1]), "low": float(low), "high": float(high)}


def paired_bootstrap(
    gold: Array, one: Array, other: Array, dialogues: Sequence[str], num_classes: int
) -> dict[str, dict[str, float]]:
    """By average of F1: the `interval` of two arms with predictions (S, n)."""
    found = bootstrap_f1(gold, np.stack([one, other]), dialogues, num_classes)
    return {average: interval(*of_arms) for average, of_arms in found.items()}
