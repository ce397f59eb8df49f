"""The figures of the comparison of arms on one dataset."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .arms import METHODS
from .collect import Arm, confusion, prototype_cosines
from .figures import COLORS, MARKERS, NAMES, draw_confusion, draw_map, map_legend
from .published import Quote

STRONG = (COLORS[4], COLORS[3], COLORS[5], COLORS[1], COLORS[6], COLORS[2], COLORS[7], COLORS[0])


def ranking(arms: Sequence[Arm], quotes: Sequence[Quote]) -> Figure:
    """Test weighted-F1 of each arm: every seed, mean and standard deviation, and what others report."""
    figure = Figure(figsize=(7.6, 1.1 + 0.34 * len(arms)), layout="constrained")
    axes = figure.add_subplot()
    for row, arm in enumerate(arms):
        scores = [100 * score for score in arm.scores("test", arm.head, "weighted_f1")]
        mean = statistics.fmean(scores)
        axes.plot(scores, [row] * len(scores), "o", color=STRONG[0], alpha=0.35, markersize=5, zorder=2)
        if len(scores) > 1:
            axes.errorbar(mean, row, xerr=statistics.stdev(scores), color=STRONG[0], capsize=3, zorder=3)
        axes.plot(mean, row, "D", color=STRONG[0], markersize=6, zorder=4)
    for number, quote in enumerate(quotes[:2]):  # the paper and its re-run
        style: dict[str, Any] = {"color": STRONG[1], "linestyle": ("-", "--")[number], "linewidth": 1.2, "zorder": 1}
        axes.axvline(quote.weighted_f1, label=f"{quote.method} ({quote.encoder}): {quote.weighted_f1:.2f}", **style)
    axes.set_yticks(range(len(arms)), [_lines(f"{arm.label} (n={len(arm.runs)})") for arm in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("test weighted-F1, percent (diamond: mean, bar: ± 1 sd)")
    axes.grid(axis="x", color="0.9")
    _plain(axes)
    if quotes:
        figure.legend(loc="outside upper center", frameon=False, fontsize=8)
    return figure


def curves(arms: Sequence[Arm]) -> Figure:
    """Dev weighted-F1 by the number of updates, mean over the seeds; of the first arms if there are many."""
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, arm in enumerate(arms[: len(STRONG)]):
        lines = [[line["dev"][arm.head]["weighted_f1"] * 100 for line in run.history] for run in arm.runs]
        length = min(map(len, lines))  # a run that stopped early ends the mean
        updates = [line["updates"] for line in arm.runs[0].history[:length]]
        values = np.array([line[:length] for line in lines])
        style: dict[str, Any] = {"color": STRONG[number], "marker": MARKERS[number], "markersize": 4}
        axes.plot(updates, values.mean(0), label=_lines(arm.label), **style)
        if len(values) > 1:
            axes.fill_between(updates, values.min(0), values.max(0), color=STRONG[number], alpha=0.12, linewidth=0)
    axes.set(xlabel="updates", ylabel="dev weighted-F1, percent (band: all seeds)")
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _plain(axes)
    return figure


def class_scores(arms: Sequence[Arm], classes: Sequence[str]) -> Figure:
    """Mean test F1 of each class by arm."""
    values = np.array(
        [[statistics.fmean(arm.class_scores(arm.head)[name]) for name in classes] for arm in arms]
    )  # (arms, C)
    figure = Figure(figsize=(2.6 + 0.85 * len(classes), 1.1 + 0.36 * len(arms)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=max(0.8, float(values.max())), aspect="auto")
    for row, column in np.ndindex(*values.shape):
        color = "black" if values[row, column] > 0.5 else "white"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8.5, color=color)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(arms)), [_lines(arm.label) for arm in arms], fontsize=8)
    figure.colorbar(image, ax=axes, label="test F1")
    return figure


def confusions(arms: Sequence[Arm], classes: Sequence[str]) -> Figure:
    """Test confusion of some arms, the seeds added up."""
    figure = Figure(figsize=(5.4 * len(arms), 5.0), layout="constrained")
    for axes, arm in zip(figure.subplots(1, len(arms), squeeze=False)[0], arms, strict=True):
        draw_confusion(axes, confusion(arm.runs, arm.head, classes), classes)
        seeds = f"{len(arm.runs)} seed" + "s" * (len(arm.runs) > 1)
        axes.set(title=f"{arm.label} ({seeds})", xlabel=f"predicted by the {NAMES[arm.head]}", ylabel="true emotion")
    return figure


def cosines(arms: Sequence[Arm], classes: Sequence[str]) -> Figure:
    """Cosine of each pair of prototypes, of the seed that dev selects."""
    figure = Figure(figsize=(4.6 * len(arms) + 0.8, 4.3), layout="constrained")
    panels = figure.subplots(1, len(arms), squeeze=False)[0]
    for axes, arm in zip(panels, arms, strict=True):
        values = prototype_cosines(arm.best)
        image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        for row, column in np.argwhere(~np.isnan(values)):  # a class without a prototype has no cosine
            color = "white" if abs(values[row, column]) > 0.6 else "black"
            axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), classes)
        axes.set_title(f"{arm.label}, seed {arm.best.settings.seed}")
    figure.colorbar(image, ax=list(panels), shrink=0.8, label="cosine")
    return figure


def maps(named: Sequence[tuple[str, dict[str, np.ndarray]]], classes: Sequence[str]) -> Figure:
    """Test representations before training, and after it in each of the arms."""
    figure = Figure(figsize=(4.6 * (len(named) + 1) + 1.4, 4.4), layout="constrained")
    first, *others = figure.subplots(1, len(named) + 1, squeeze=False)[0]
    before = named[0][1]
    draw_map(first, before["before"], before["truth"], np.array([], dtype=int), classes, size=7)
    first.set_title("before training")
    for axes, (label, places) in zip(others, named, strict=True):
        draw_map(axes, places["after"], places["truth"], places["prototypes"], classes, size=7)
        axes.set(title=f"after: {label}", xlabel="large, outlined: prototypes")
    map_legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sweep(arms: Sequence[Arm], setting: str, across: str) -> Figure:
    """Test weighted-F1 against a setting, a line for each value of `across`."""
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    lines = sorted({getattr(arm.settings, across) for arm in arms})
    for number, line in enumerate(lines):
        members = [arm for arm in arms if getattr(arm.settings, across) == line]
        members.sort(key=lambda arm: float(getattr(arm.settings, setting)))
        values = [getattr(arm.settings, setting) for arm in members]
        scores = [[100 * score for score in arm.scores("test", arm.head, "weighted_f1")] for arm in members]
        means = [statistics.fmean(score) for score in scores]
        error = [statistics.stdev(score) if len(score) > 1 else 0.0 for score in scores]
        style: dict[str, Any] = {"color": STRONG[number], "marker": MARKERS[number], "capsize": 3}
        places = [value * 1.02 ** (number - (len(lines) - 1) / 2) for value in values]  # side by side
        label = METHODS.get(line, f"{across.replace('_', ' ')} {line}")
        axes.errorbar(places, means, yerr=error, label=label, **style)
    ticks = sorted({getattr(arm.settings, setting) for arm in arms})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=setting.replace("_", " "), ylabel="test weighted-F1, percent (± 1 sd)")
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _plain(axes)
    return figure


def _lines(label: str) -> str:
    """A label that leaves room for what it labels."""
    return textwrap.fill(label, 42)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
