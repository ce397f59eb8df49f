"""Forward and backward of the loss over batch size and width, against the floor and what one would use instead.

    python benchmarks/loss.py

Compares, in one run and interleaved: three N x N x D products (the floor of a dense computation), plain dense PyTorch,
the same under torch.compile, pytorch-metric-learning's SupConLoss, and ours with impl="dense" and impl="strips".
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import dense_loss, extra_peak_bytes, interleaved, median_ratio, save, table, three_products

from spcl_loss import supervised_prototypical_contrastive_loss as spcl

FLOOR = "3 products"
STRIPS = "ours, strips"
# Copies of the N x N matrix that a contestant holds at its peak, roughly: what does not fit is left out and said so.
MATRICES = {FLOOR: 1, STRIPS: 0, "plain": 6, "plain, compiled": 4, "pytorch-metric-learning": 14, "ours, dense": 10}


def contestants(embeddings: torch.Tensor, labels: torch.Tensor, memory_gib: float) -> dict[str, Callable[[], Any]]:
    from pytorch_metric_learning.losses import SupConLoss

    supcon, compiled = SupConLoss(temperature=0.1), torch.compile(dense_loss)
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: dense_loss(embeddings, labels),
        "plain, compiled": lambda: compiled(embeddings, labels),
        "pytorch-metric-learning": lambda: supcon(embeddings, labels),
        "ours, dense": lambda: spcl(embeddings, labels, impl="dense"),
        STRIPS: lambda: spcl(embeddings, labels, impl="strips"),
    }
    fits = memory_gib * 2**30 / (4 * len(embeddings) ** 2)
    runs: dict[str, Callable[[], Any]] = {FLOOR: lambda: three_products(embeddings.detach())}
    for name, loss in losses.items():
        if MATRICES[name] <= fits:
            runs[name] = lambda loss=loss: torch.autograd.grad(loss(), embeddings)
    return runs


def measure(N: int, D: int, classes: int, seconds: float, memory_gib: float) -> list[dict[str, Any]]:
    torch._dynamo.reset()  # else the second size would be compiled for all sizes to come, which is slower
    torch.manual_seed(N + D)
    embeddings = torch.randn(N, D, requires_grad=True)
    runs = contestants(embeddings, torch.randint(classes, (N,)), memory_gib)
    times = interleaved(runs, seconds, least=3)
    rows = []
    for name in MATRICES:
        measured = name in runs
        peak = extra_peak_bytes(runs[name]) if measured else None
        rows.append(
            {
                "N": N,
                "D": D,
                "what": name,
                "milliseconds": 1e3 * statistics.median(times[name]) if measured else None,
                "ratio to floor": median_ratio(times[name], times[FLOOR]) if measured else None,
                "extra peak MiB": None if peak is None else peak / 2**20,
            }
        )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widths = sorted({row["D"] for row in rows})
    figure, axes = pyplot.subplots(2, len(widths), figsize=(4 * len(widths), 6.5), sharex=True, squeeze=False)
    colours = dict(zip(MATRICES, ["#666666", "#E69F00", "#F0E442", "#CC79A7", "#56B4E9", "#0072B2"], strict=True))
    for column, D in enumerate(widths):
        for axis, key in zip(axes[:, column], ["milliseconds", "extra peak MiB"], strict=True):
            for name in MATRICES:
                points = [(r["N"], r[key]) for r in rows if r["D"] == D and r["what"] == name and r[key]]
                style = {"color": colours[name], "linewidth": 2.5 if name == STRIPS else 1.5, "marker": "."}
                if points:
                    axis.plot(*zip(*points, strict=True), label=name, **style)
            axis.set(xscale="log", yscale="log", ylabel=key)
            axis.grid(alpha=0.3)
        axes[0, column].set_title(f"D = {D}")
        axes[1, column].set_xlabel("batch size N")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Loss and gradient, {torch.get_num_threads()} CPU threads, float32")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512, 2048, 4096, 8192, 16384])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 768, 1024])
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="at least, for each size and width")
    parser.add_argument("--memory-gib", type=float, default=12.0, help="leave out what would take more")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for N in options.sizes:
        for D in options.widths:
            rows += measure(N, D, options.classes, options.seconds, options.memory_gib)
            save(options.output / "loss.csv", rows)
            print(table(rows[-len(MATRICES) :]), flush=True)
    draw(rows, options.output / "loss.png")


if __name__ == "__main__":
    main()
