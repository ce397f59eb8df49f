"""What `gpu.py` found: JSON, a picture, and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import device
import torch
from measure import table

_TIMES = ("forward ms", "backward ms", "both ms")


def derive(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds rates and shares to the timed rows, from this GPU's own matrix products."""
    ceilings = {
        row["dtype"]: row["operations a second"]
        for row in rows
        if row.get("section") == "ceiling" and "operations a second" in row
    }
    derived = []
    for row in rows:
        if not row.get("both ms"):
            derived.append(row)
            continue
        seconds, product = row["both ms"] / 1e3, 2 * row["N"] ** 2 * row["D"]
        # Ours needs half of the scores twice and two products on half of H: 4 N^2 D. The others as they say.
        floor = 2.0 if row["what"].startswith("ours") else row["products"]
        ceiling = ceilings.get(row["dtype"])
        added = {
            "nominal TFLOP/s": 3 * product / seconds / 1e12,  # of the dense computation: scores and two products
            "executed TFLOP/s": row["products"] * product / seconds / 1e12,
            "share of floor": floor * product / ceiling / seconds if ceiling else None,
        }
        derived.append({**row, **added})
    return derived


def write(rows: list[dict[str, Any]], output: Path, dry: bool) -> int:
    """Writes gpu.json and gpu.png, prints the tables; 1 where something is wrong or was never checked."""
    rows = derive(rows)
    machine = device.name(torch.device("cpu" if dry or not torch.cuda.is_available() else "cuda"))
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    try:
        draw(rows, output / "gpu.png")
    except Exception as error:  # a picture less is no reason to lose the tables
        print(f"no picture: {type(error).__name__}: {error}")
    print(f"\n{machine}\n")
    checks = [row for row in rows if row.get("section") == "check" and "right" in row]
    wrong = [row for row in checks if not row["right"]]
    for section, head in {
        "ceiling": ("dtype", "operations a second", "n, k, m"),
        "step": ("what", "N", "C", "D", "dtype", "microseconds", "launches"),
        "yardsticks": ("what", "N", "D", "dtype", *_TIMES, "nominal TFLOP/s", "share of floor", "peak MiB"),
        "peers": ("what", "N", "D", "dtype", *_TIMES, "nominal TFLOP/s", "share of floor", "peak MiB"),
        "time": (
            *("what", "N", "D", "dtype", *_TIMES, "executed TFLOP/s", "nominal TFLOP/s"),
            *("share of floor", "peak MiB"),
        ),
    }.items():
        found = [
            {key: row.get(key) for key in head} for row in rows if row.get("section") == section and head[0] in row
        ]
        if found:
            print(f"{section}\n\n{table(found)}\n")
    for row in rows:
        for kind in ("skipped row", "failed row"):
            if kind in row:
                print(f"{row.get('section')}: {kind} {row[kind]}: {row['why']}")
        if "skipped" in row:
            print(f"{row['section']}: {row['what']} at N = {row['N']}, D = {row['D']}: {row['skipped']}")
    if wrong:
        print(f"\nwrong\n\n{table(wrong)}")
    missed = [row for row in rows if row.get("section") == "check" and "failed row" in row]
    print(f"\n{len(checks)} checks against float64, {len(wrong)} wrong, {len(missed)} failed")
    if dry:
        print("a dry run on a CPU: no time above means anything")
    checked = any(row.get("section") == "check" for row in rows)
    return int(bool(wrong or missed) or (checked and not checks))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Share of the floor over the batch size: ours, dense PyTorch, peers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [row for row in rows if row.get("share of floor")]
    widths = sorted({row["D"] for row in timed}) or [0]
    figure, axes = pyplot.subplots(1, len(widths), figsize=(4.5 * len(widths), 4), sharey=True, squeeze=False)
    for axis, width in zip(axes[0], widths, strict=True):
        lines = sorted({(row["what"], row["dtype"]) for row in timed if row["D"] == width})
        for what, dtype in lines:
            points = sorted(
                (row["N"], row["share of floor"])
                for row in timed
                if (row["what"], row["dtype"], row["D"]) == (what, dtype, width)
            )
            axis.plot(*zip(*points, strict=True), marker=".", label=f"{what}, {dtype}")
        axis.set(xscale="log", xlabel="batch size N", title=f"D = {width}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    axes[0, 0].set_ylabel("share of the floor of its own arithmetic")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
