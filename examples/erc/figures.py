"""The figures of a run. Colours are Okabe and Ito's, which stay apart under colour blindness; shapes say it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

COLORS = ("#999999", "#E69F00", "#56B4E9", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#000000", "#F0E442")
MARKERS = ("o", "^", "s", "v", "D", "P", "X", "*", "h")
SHOWN = 2000  # points of the map; more take longer and hide one another
NAMES = {"prototype": "nearest prototype", "linear": "linear head"}


def f1_by_epoch(history: list[dict[str, Any]], result: dict[str, Any]) -> Figure:
    """Dev weighted-F1 of both heads after each epoch."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    epochs = [line["epoch"] for line in history]
    for head, color, marker in (("prototype", COLORS[4], "o"), ("linear", COLORS[3], "s")):
        scores = [line["dev"][head]["weighted_f1"] for line in history]
        axes.plot(epochs, scores, color=color, marker=marker, label=NAMES[head])
    axes.axvline(result["best_epoch"], color="0.6", linestyle=":", zorder=0, label="best epoch")
    axes.set(xlabel="epoch", ylabel="dev weighted-F1", title=_title("F1 by epoch", result))
    axes.set_xticks(epochs if len(epochs) <= 20 else epochs[:: len(epochs) // 10])
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def confusion_matrix(gold: Tensor, predicted: Tensor, labels: Sequence[str], result: dict[str, Any]) -> Figure:
    """Share of each true class by predicted class, with the counts."""
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    np.add.at(counts, (gold.numpy(), predicted.numpy()), 1)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    image = draw_confusion(axes, counts, labels)
    axes.set(
        xlabel="predicted by the nearest prototype",
        ylabel="true emotion (utterances)",
        title=_title("Test confusion", result),
    )
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true emotion")
    return figure


def draw_confusion(axes: Axes, counts: np.ndarray, labels: Sequence[str]) -> AxesImage:
    """(C, C) counts, coloured by their share of the true class."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        count, share = counts[row, column], shares[row, column]
        if count:
            color = "white" if share > 0.55 else "black"
            axes.text(column, row, f"{share:.0%}\n{count}", ha="center", va="center", fontsize=7.5, color=color)
    sizes = [f"{label} ({total})" for label, total in zip(labels, counts.sum(1), strict=True)]
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), sizes)
    return image


def representation_map(
    features: Tensor, gold: Tensor, centroids: Tensor, exists: Tensor, labels: Sequence[str], result: dict[str, Any]
) -> Figure:
    """t-SNE of test representations by cosine, the prototypes among them."""
    shown = np.sort(np.random.default_rng(0).permutation(len(features))[:SHOWN])
    places = two_dimensions(np.concatenate([features.numpy()[shown], centroids.numpy()]))
    figure = Figure(figsize=(6.6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    draw_map(axes, places, gold.numpy()[shown], np.flatnonzero(exists.numpy()), labels)
    axes.set_title(_title("Test representations (t-SNE)", result))
    axes.set_xlabel("large, outlined: the class's prototype")
    map_legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_map(
    axes: Axes, places: np.ndarray, truth: np.ndarray, prototypes: np.ndarray, labels: Sequence[str], size: float = 9
) -> None:
    """Points of the classes `truth` (n,), then the prototypes of the classes `prototypes` (P,); places (n + P, 2)."""
    points, stars = places[: len(truth)], places[len(truth) :]
    for label in np.argsort(-np.bincount(truth, minlength=len(labels))).tolist():  # rare classes on top
        style: dict[str, Any] = {"color": COLORS[label % 9], "marker": MARKERS[label % 9]}
        some = truth == label
        axes.scatter(points[some, 0], points[some, 1], s=size, alpha=0.6, linewidths=0, label=labels[label], **style)
    for label, (x, y) in zip(prototypes.tolist(), stars, strict=True):
        style = {"color": COLORS[label % 9], "marker": MARKERS[label % 9]}
        axes.scatter(x, y, s=170, edgecolors="black", linewidths=1.4, zorder=3, **style)
    axes.set(xticks=[], yticks=[])


def map_legend(axes: Axes, **place: Any) -> None:
    """The classes' colours and shapes, in full strength."""
    legend = axes.legend(frameon=False, title="true emotion", markerscale=2, **place)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def two_dimensions(rows: np.ndarray) -> np.ndarray:
    """(n, 2) by t-SNE, or by the first two principal components where neighbourhoods would be too small for it."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    rows = normalize(rows)
    if len(rows) < 30:
        return np.asarray(PCA(2, random_state=0).fit_transform(rows))
    return np.asarray(TSNE(init="pca", random_state=0, perplexity=min(30, len(rows) // 4)).fit_transform(rows))


def difficulty(history: list[dict[str, Any]], result: dict[str, Any]) -> Figure:
    """Histogram of difficulty in the first, middle and last epoch, and the share of each bin that was drawn."""
    picked = sorted({0, len(history) // 2, len(history) - 1})
    figure = Figure(figsize=(6.2, 0.8 + 1.9 * len(picked)), layout="constrained")
    panels = figure.subplots(len(picked), 1, sharex=True, squeeze=False)[:, 0]
    for axes, line in zip(panels, [history[i] for i in picked], strict=True):
        edges, everything, drawn = (np.array(line["difficulty"][name]) for name in ("edges", "all", "drawn"))
        axes.stairs(everything, edges, fill=True, color="0.85", label="all samples")
        axes.stairs(drawn, edges, fill=True, color=COLORS[2], label="drawn")
        axes.set_ylabel("samples")
        axes.set_title(f"epoch {line['epoch']}", loc="left", fontsize=9)
        axes.spines["top"].set_visible(False)
        middle, enough = (edges[:-1] + edges[1:]) / 2, everything >= 5  # a share of fewer is noise
        share = axes.twinx()
        share.plot(
            middle[enough], drawn[enough] / everything[enough], ".-", color=COLORS[3], linewidth=1, label="share drawn"
        )
        share.set(ylim=(0, 1.05), ylabel="share drawn")
        share.yaxis.label.set_color(COLORS[3])
        share.spines["top"].set_visible(False)
    panels[-1].set_xlabel("difficulty: distance to the own class mean / sum of the distances to all")
    handles = [part for axes in (panels[0], figure.axes[len(picked)]) for part in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{_title('Difficulty', result)}, curriculum {result['curriculum']}", fontsize=11)
    return figure


def _title(what: str, result: dict[str, Any]) -> str:
    return f"{what}: {result['dataset']}, {result['objective']}"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
