"""The tables and the figure of long_tail.py: what held-out rows choose, and how well it does on test rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from torch import Tensor
from torch.linalg import svd

GROUPS = {"head": slice(0, 3), "middle": slice(3, 7), "tail": slice(7, 10)}  # of the classes, the largest first
REFERENCE = "cross-entropy"  # all methods are compared with it
CURVES = {  # the figure's: method, head, colour (Okabe and Ito's stay apart under colour blindness), marker
    ("cross-entropy", "own"): ("#999999", "s"),
    ("cross-entropy", "own, adjusted"): ("#e69f00", "D"),
    ("weighted cross-entropy", "own, adjusted"): ("#009e73", "o"),
    ("SPCL", "class means"): ("#56b4e9", "*"),
    ("cross-entropy + 1 SPCL", "own, adjusted"): ("#d55e00", "^"),
    ("SPCL, sampler", "own, adjusted"): ("#0072b2", "P"),
}


def compare(recalls: dict[Any, Any]) -> list[dict[str, Any]]:
    """A row for every data set, batch size, method and head, at the setting with the best held-out recall."""
    table: list[dict[str, Any]] = []
    for key in dict.fromkeys(run[:3] for run in recalls):
        runs = [run for run in recalls if run[:3] == key]
        settings = list(dict.fromkeys((run.rate, run.setting) for run in runs))
        rows = []
        for head in recalls[runs[0]]:
            of_runs = np.array([[recalls[run][head][part] for run in runs] for part in ("held out", "test")])
            held_out, test = of_runs.reshape(2, -1, len(settings), of_runs.shape[-1])  # (seeds, settings, classes)
            by_setting = held_out.mean((0, 2))
            best = by_setting.argmax()
            row = dict(zip(("data set", "batch", "method"), key, strict=True))
            rows.append(row | {
                "head": head, "rate": settings[best][0], "setting": settings[best][1], "held out": by_setting[best],
                "held out by setting": by_setting, "by seed": test[:, best].mean(1), "by class": test[:, best].mean(0),
            })  # fmt: skip
        chosen = max(rows, key=lambda row: row["held out"])
        table += [row | {"chosen": row is chosen} for row in rows]
    return table


def interval(values: np.ndarray, sign: str = "") -> str:
    """The mean over seeds and half the width of its 95% interval, by Student's distribution."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else np.nan
    return f"{values.mean():{sign}.3f} ± {half:.3f}"


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table for each data set and batch size. The head that held-out rows choose is in bold."""
    heads = list(dict.fromkeys(row["head"] for row in rows))
    for place in dict.fromkeys((row["data set"], row["batch"]) for row in rows):
        here = [row for row in rows if (row["data set"], row["batch"]) == place]
        chosen = {row["method"]: row for row in here if row["chosen"]}
        yield f"\n{place[0]}, batches of {place[1]}: balanced accuracy on test rows, 95% interval over seeds\n"
        yield f"| method | {' | '.join(heads)} | {' / '.join(GROUPS)} | over {REFERENCE} |"
        yield "|---" * (len(heads) + 3) + "|"
        for method, best in chosen.items():
            numbers = [interval(row["by seed"]) for row in here if row["method"] == method]
            numbers[heads.index(best["head"])] = f"**{interval(best['by seed'])}**"
            groups = " / ".join(f"{best['by class'][classes].mean():.2f}" for classes in GROUPS.values())
            pairs = zip(best["by seed"], chosen[REFERENCE]["by seed"], strict=True)
            over = interval(np.array([ours - theirs for ours, theirs in pairs]), "+") if method != REFERENCE else ""
            yield f"| {' | '.join([method, *numbers, groups, over])} |"


def draw(
    rows: list[dict[str, Any]], sizes: dict[str, list[int]], embedded: dict[str, tuple[Tensor, ...]], path: Path
) -> None:
    """Recall of a class by its training rows, for each data set. Below, embedded digits and their prototypes."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 9.5), layout="constrained")
    recalls = {(row["data set"], row["batch"], row["method"], row["head"]): row["by class"] for row in rows}
    for axis, (dataset, of_classes) in zip(axes[0], sizes.items(), strict=True):
        for (method, head), (color, marker) in CURVES.items():
            recall = recalls[dataset, 32, method, head]
            axis.plot(of_classes, recall, color=color, marker=marker, label=f"{method} ({head})")
        axis.set(title=dataset, xlabel="training rows of the class", ylabel="recall on test rows", ylim=(-0.03, 1.03))
        axis.set_xscale("log")
        axis.set_xticks(of_classes, of_classes)
        axis.minorticks_off()
    axes[0, 0].legend(title="method (head)", fontsize=8, loc="lower right")
    star = {"s": 200, "marker": "*", "edgecolor": "black", "zorder": 3}
    for axis, (title, (prototypes, points, labels)) in zip(axes[1], embedded.items(), strict=True):
        plane = svd(prototypes - prototypes.mean(0)).Vh[:2].T  # the directions in which they differ most
        for label, size in enumerate(sizes["digits"]):
            color = plt.get_cmap("tab10")(label)
            axis.scatter(*(points[labels == label] @ plane).T, s=8, alpha=0.6, color=color)
            axis.scatter(*(prototypes[label] @ plane), color=color, label=size, **star)
        axis.set(title=f"digits {title} with SPCL", xticks=[], yticks=[], aspect="equal", xlim=(-1, 1), ylim=(-1, 1))
    axes[1, 0].legend(title="test rows and prototype of the class with ... training rows", fontsize=8, ncols=5, loc=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
