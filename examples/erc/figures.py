"""Figures of one or several arms. Okabe and Ito's colours stay apart under colour blindness, and shapes repeat them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .report import Arm

COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999", "#F0E442")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "h")


def draw(arms: Sequence[Arm], classes: Sequence[str]) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of everything that there is to show; every figure shows all arms."""
    if len(arms) > 1:
        yield "scores", "Test weighted-F1 of the selecting head. Dot: a seed. Diamond: mean.", scores(arms)
    yield "curves", "Dev weighted-F1 of the selecting head after each epoch. Band: all seeds.", curves(arms)
    yield "classes", "Test F1 by class, selecting head, mean over seeds.", class_scores(arms, classes)
    caption = "Test turns, selecting head, all seeds: share of the true class, and count."
    yield "confusion", caption, confusion(arms, classes)
    caption = "Test turns of the first seed, projected linearly. Large: class means of the training set."
    yield "map", caption, maps(arms, classes)
    if curricula := [arm for arm in arms if arm.settings.curriculum == "on"]:
        caption = "Grey: all samples of the first seed. Colour: those that the epoch draws."
        yield "difficulty", caption, difficulty(curricula)


def panels(count: int, width: float, height: float, columns: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows; the rest of the last row stays empty."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **options).flatten().tolist()
    for empty in axes[count:]:
        empty.set_visible(False)
    return figure, axes[:count]


def scores(arms: Sequence[Arm]) -> Figure:
    figure, (axes,) = panels(1, 7.6, 1.0 + 0.4 * len(arms))
    for row, arm in enumerate(arms):
        values = [100 * value for value in arm.scores("test", arm.head, "weighted_f1")]
        axes.plot(values, [row] * len(values), "o", color=COLORS[0], alpha=0.4, markersize=5)
        axes.plot(statistics.fmean(values), row, "D", color=COLORS[0], markersize=7)
    axes.set_yticks(range(len(arms)), [f"{arm.label} (n={len(arm.runs)})" for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("test weighted-F1, percent")
    axes.grid(axis="x", color="0.9")
    return _plain(figure)


def curves(arms: Sequence[Arm]) -> Figure:
    figure, (axes,) = panels(1, 7.6, 3.4 + 0.12 * len(arms))
    for number, arm in enumerate(arms):
        length = min(len(run.history) for run in arm.runs)  # a run that stopped early ends the mean
        updates = [line["updates"] for line in arm.runs[0].history[:length]]
        values = np.array(
            [[100 * line["dev"][arm.head]["weighted_f1"] for line in run.history[:length]] for run in arm.runs]
        )
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        axes.plot(updates, values.mean(0), color=color, marker=marker, markersize=5, label=arm.label)
        axes.fill_between(updates, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
    axes.set(xlabel="updates", ylabel="dev weighted-F1, percent")
    axes.grid(axis="y", color="0.9")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return _plain(figure)


def class_scores(arms: Sequence[Arm], classes: Sequence[str]) -> Figure:
    values = np.array([[statistics.fmean(arm.class_scores(name)) for name in classes] for arm in arms])  # (arms, C)
    figure, (axes,) = panels(1, 3.4 + 0.85 * len(classes), 1.1 + 0.4 * len(arms))
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=max(0.8, float(values.max())), aspect="auto")
    for row, column in np.ndindex(*values.shape):
        color = "black" if values[row, column] > 0.5 else "white"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8.5, color=color)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    figure.colorbar(image, ax=axes, label="test F1")
    return figure


def confusion(arms: Sequence[Arm], classes: Sequence[str]) -> Figure:
    figure, axes = panels(len(arms), 1.6 + 0.62 * len(classes), 1.6 + 0.5 * len(classes))
    for panel, arm in zip(axes, arms, strict=True):
        counts = arm.confusion(classes)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in zip(*counts.nonzero(), strict=True):
            text = f"{shares[row, column]:.0%}\n{counts[row, column]}"
            color = "white" if shares[row, column] > 0.55 else "black"
            panel.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
        panel.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(classes)), classes)
        panel.set(title=arm.label, xlabel="predicted", ylabel="true")
    return figure


def maps(arms: Sequence[Arm], classes: Sequence[str]) -> Figure:
    figure, axes = panels(len(arms), 4.4, 4.0)
    for panel, arm in zip(axes, arms, strict=True):
        places = arm.runs[0].map
        by_size = np.argsort(-np.bincount(places["labels"], minlength=len(classes)))  # rare classes on top
        for label in by_size.tolist():
            style: dict[str, Any] = {"color": COLORS[label % 9], "marker": MARKERS[label % 9]}
            own = places["points"][places["labels"] == label]
            panel.scatter(*own.T, s=8, alpha=0.5, linewidths=0, **style)
            mean = places["prototypes"][places["prototype_labels"] == label]
            panel.scatter(*mean.T, s=150, edgecolors="black", linewidths=1.3, zorder=3, label=classes[label], **style)
        panel.set(title=arm.label, xticks=[], yticks=[])
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def difficulty(arms: Sequence[Arm]) -> Figure:
    figure, axes = panels(2 * len(arms), 3.8, 2.6, columns=2, sharey="row")
    for number, arm in enumerate(arms):
        history = arm.runs[0].history
        for panel, line in zip(axes[2 * number :], (history[0], history[-1]), strict=False):
            edges, everything, drawn = (np.array(line["difficulty"][name]) for name in ("edges", "all", "drawn"))
            panel.stairs(everything, edges, fill=True, color="0.8")
            panel.stairs(drawn, edges, fill=True, color=COLORS[0], alpha=0.8)
            panel.set(title=f"{arm.label}, epoch {line['epoch']}", xlabel="difficulty", ylabel="samples")
            panel.title.set_fontsize(9)
    return _plain(figure)


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
