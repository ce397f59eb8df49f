"""Figures of one or several arms. Okabe and Ito's colours stay apart under colour blindness, and shapes repeat them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

if TYPE_CHECKING:
    from .report import Arm

COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999", "#F0E442")
CURVES = (
    "After each epoch: dev weighted-F1, and the contrastive loss above its smallest possible value. "
    "Lines are means over seeds, bands go from the lowest to the highest."
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "h")


def draw(arms: Sequence[Arm]) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of everything that there is to show; every figure shows all arms."""
    yield "curves", CURVES, curves(arms)
    yield "confusion", "Test turns, selecting head, all seeds: percent of the true class.", confusion(arms)


def curves(arms: Sequence[Arm]) -> Figure:
    # Runs of earlier versions have no diagnostics.
    measured = any("diagnostics" in line for arm in arms for run in arm.runs for line in run.history)
    figure = Figure(figsize=(10, 3.4 + 0.2 * len(arms)), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 1 + measured, squeeze=False)[0]
    for number, arm in enumerate(arms):
        length = min(len(run.history) for run in arm.runs)  # a run that stopped early ends the mean
        updates = [line["updates"] for line in arm.runs[0].history[:length]]
        histories = [run.history[:length] for run in arm.runs]
        f1 = [[100 * line["dev"][arm.head]["weighted_f1"] for line in history] for history in histories]
        loss = [[line.get("diagnostics", {}).get("loss_above_floor") for line in history] for history in histories]
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        for panel, rows in zip(panels, (f1, loss), strict=False):
            values = np.array(rows, float)
            panel.plot(
                updates, values.mean(0), color=color, marker=marker, markersize=5, label=_literal(arm.label, 120)
            )
            panel.fill_between(updates, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
    for panel, what in zip(panels, ("dev weighted-F1, percent", "contrastive loss above its floor"), strict=False):
        panel.set(xlabel="updates", ylabel=what)
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=panels[0].lines, frameon=False, fontsize=8, loc="outside lower center")
    return figure


def confusion(arms: Sequence[Arm]) -> Figure:
    classes = arms[0].classes
    columns = min(len(arms), 3)
    rows = -(-len(arms) // columns)
    size = columns * (1.6 + 0.62 * len(classes)), rows * (1.6 + 0.5 * len(classes))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    counts = [arm.confusion() for arm in arms]
    all_shares = [count / np.maximum(count.sum(1, keepdims=True), 1) for count in counts]
    colours = {"vmin": 0, "vmax": np.max(all_shares)}  # the same in all panels
    for number, (arm, shares) in enumerate(zip(arms, all_shares, strict=True), start=1):
        panel = figure.add_subplot(rows, columns, number)
        display = ConfusionMatrixDisplay(shares, display_labels=[*map(_literal, classes)])
        display.plot(cmap="Blues", im_kw=colours, values_format=".0%", xticks_rotation=40, colorbar=False, ax=panel)
        panel.set(title=_literal(arm.label, 8 * len(classes)), xlabel="predicted", ylabel="true")
    return figure


def _literal(text: str, width: int = 60) -> str:
    """Text in lines of that many characters. Text between dollars would be drawn as mathematics, or be an error."""
    return textwrap.fill(text.replace("$", r"\$"), width)
