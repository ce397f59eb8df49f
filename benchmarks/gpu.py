"""The kernels on a GPU, on one page: whether they are right, then how fast they are and what else there is.

    python benchmarks/gpu.py --output runs/gpu                       # eight minutes on one H100
    python benchmarks/gpu.py --quick --impl strips --device cpu      # the same in tiny sizes, to see that it works

The check compares the five methods with float64, in four precisions. The command exits with 1 where one is wrong.
Every part is a process of its own: one that crashes or hangs takes no other along. What the minutes do not allow is
skipped, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_check
import gpu_time
import torch
from measure import machine, save, table

DTYPES = ("bfloat16", "float32")
PLAN = {
    "shapes": gpu_check.SHAPES,
    "sizes": gpu_time.SIZES,
    "widths": gpu_time.WIDTHS,
    "product": 8192,
    "seconds": 0.2,
    "least": 5,
}
QUICK = {"shapes": ((33, 64), (300, 64)), "sizes": (48, 8), "widths": (16,), "product": 32, "seconds": 0, "least": 1}
CHECK_SHARE = 0.5  # of the minutes, at most
GRACE = 20.0  # seconds in which a process may finish its row before it is ended

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--impl", default="triton", help="strips stand in for the kernels where there is no GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=("check", "time"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the benchmark itself work?")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    plan = QUICK if options.quick else PLAN
    if options.part:
        append(options.output / "gpu.jsonl", options.part, part_rows(options, plan))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; to try the benchmark out, pass --quick --impl strips --device cpu")
    rows = run_all(options, plan)
    return report(rows, options.output, torch.device(options.device))


def part_rows(options: argparse.Namespace, plan: Row) -> Iterator[Row]:
    """Rows of one part: "poison", a shape to check, or a dtype to time."""
    device = torch.device(options.device)
    if options.part == "poison":
        yield gpu_check.check_poison(device)
    elif options.part in DTYPES:
        dtype = getattr(torch, options.part)
        yield from gpu_time.time_rows(dtype, options.impl, device, plan, options.deadline)
    else:
        yield from gpu_check.check_shape(*map(int, options.part.split("x")), options.impl, device)


def append(path: Path, part: str, rows: Iterator[Row]) -> None:
    """A line of JSON for every row, as it comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"part": part, **row}) + "\n")
            file.flush()


def run_all(options: argparse.Namespace, plan: Row) -> list[Row]:
    """Checks side by side, since they mostly wait for the compiler; times one after the other."""
    path = options.output / "gpu.jsonl"
    path.unlink(missing_ok=True)
    end = time.time() + 60 * options.minutes
    if options.only != "time":
        share = 1.0 if options.only == "check" else CHECK_SHARE
        checks = ["poison", *(f"{N}x{D}" for N, D in plan["shapes"])]
        run_parts(checks, time.time() + share * (end - time.time()), options)
    if options.only != "check":
        for index, dtype in enumerate(DTYPES):
            deadline = time.time() + (end - time.time()) / (len(DTYPES) - index)
            run_parts([dtype], deadline, options)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def run_parts(parts: list[str], deadline: float, options: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--output", options.output, "--impl", options.impl, "--device", options.device]
    command += ["--deadline", str(deadline), *["--quick"] * options.quick]
    processes = {part: subprocess.Popen([*command, "--part", part]) for part in parts}
    for part, process in processes.items():
        try:
            status = process.wait(max(0.0, deadline + GRACE - time.time()))
            why = f"exit status {status}" if status else None
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            why = "did not end in time"
        if why:
            append(options.output / "gpu.jsonl", part, iter([{"failed": why}]))


def report(rows: list[Row], output: Path, device: torch.device) -> int:
    """Writes the page and the tables, prints the page, and returns the exit status."""
    checks = [row for row in rows if "right" in row]
    wrong = [row for row in checks if not row["right"]]
    failed = [{"part": row["part"], "why": row["failed"]} for row in rows if "failed" in row]
    unchecked = any(row["part"] not in DTYPES for row in failed)
    timed = [{key: row[key] for key in row if key != "part"} for row in rows if row["part"] in DTYPES]
    times = [row for row in timed if "both ms" in row or "TFLOP/s" in row]
    skipped = [row for row in timed if "skipped" in row]
    page = [f"# {machine(device)}"]
    if checks:
        page += [f"{len(checks)} comparisons with float64, {len(wrong)} wrong. The closest to its tolerance:"]
        page += [table(closest(checks))]
    for title, part in {"Wrong": wrong, "Failed": failed, "Times": times, "Skipped": skipped}.items():
        if part:
            page += [f"## {title}", table(part)]
    text = "\n\n".join(page) + "\n"
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.md").write_text(text, encoding="utf-8")
    if times:
        save(output / "gpu.csv", times, device)
    return int(bool(wrong) or unchecked)


def closest(checks: list[Row]) -> list[Row]:
    """For each precision and result, the comparison that came closest to its tolerance."""
    worst: dict[tuple[str, str], Row] = {}
    for row in checks:
        if "products" not in row:
            continue
        key = row["products"], row["what"]
        share = row["error"] / row["tolerance"]
        if key not in worst or not share <= worst[key]["of tolerance"]:
            worst[key] = {"products": key[0], "what": key[1], "of tolerance": share, "error": row["error"]}
            worst[key] |= {name: row[name] for name in ("N", "D", "rows", "method", "temperature")}
    return list(worst.values())


if __name__ == "__main__":
    sys.exit(main())
