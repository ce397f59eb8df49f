"""The kernels on a GPU, on one page: whether they are right, then how fast they are and what else there is.

    python benchmarks/gpu.py --output runs/gpu                       # eight minutes on one H100
    python benchmarks/gpu.py --quick --impl strips --device cpu      # the same in tiny sizes, to see that it works

The check compares the five methods with float64, in four precisions. The command exits with 1 where one is wrong.
Every part is a process of its own. One that crashes or hangs loses the job at hand: a new process goes on behind it.
What the minutes do not allow is skipped, and the page says so.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # a result names this checkout: measure it, installed or not

import gpu_check
import gpu_time
import torch
from measure import machine, save, table

DTYPES = ("bfloat16", "float32")
MEASURED = ("launches", *DTYPES)  # the parts that check nothing
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
JOB_SHARE = 1 / 5  # of the minutes; a job that takes longer hangs
GRACE = 20.0  # seconds in which a process may finish its job before it is ended

Row = dict[str, Any]
# What a job is about, the same in every process, and a function that gives its results.
Job = tuple[Row, Callable[[], Iterable[Row]]]


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
    plan, path = QUICK if options.quick else PLAN, options.output / "gpu.jsonl"
    if options.part:
        gc.freeze()  # what the imports made will stay: collecting between two jobs is quick without it
        run_jobs(path, options.part, jobs(options, plan), options.deadline, 60 * options.minutes * JOB_SHARE)
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; to try the benchmark out, pass --quick --impl strips --device cpu")
    rows = run_all(options, plan)
    return report(rows, options.output, torch.device(options.device))


def jobs(options: argparse.Namespace, plan: Row) -> Iterator[Job]:
    """Jobs of one part: "poison", a shape to check, "launches", or a dtype to time."""
    device = torch.device(options.device)
    if options.part == "poison":
        yield {"what": "unwritten memory is NaN"}, lambda: [gpu_check.check_poison(device)]
    elif options.part == "launches":
        yield from gpu_time.count_jobs(options.impl, device, plan)
    elif options.part in DTYPES:
        yield from gpu_time.time_jobs(getattr(torch, options.part), options.impl, device, plan)
    else:
        yield from gpu_check.check_jobs(*map(int, options.part.split("x")), options.impl, device)


def run_jobs(path: Path, part: str, todo: Iterable[Job], deadline: float, seconds: float) -> None:
    """Writes that a job begins, then its results. Passes over jobs that an earlier process of this part has begun.

    A job that takes `seconds` hangs. It ends the process, which prints where it stood.
    """
    guard = partial(faulthandler.dump_traceback_later, seconds, exit=True, file=sys.__stderr__)
    begun = [about for whose, about, _ in lines(path) if whose == part]
    guard()  # what comes between two jobs can hang too
    try:
        for about, run in todo:
            if about in begun:
                continue
            if time.time() > deadline:
                append(path, part, about, [{"skipped": "no time left, nor for what would follow"}])
                break
            append(path, part, about)
            guard()
            run_job(path, part, about, run)
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_job(path: Path, part: str, about: Row, run: Callable[[], Iterable[Row]]) -> None:
    """Writes the results, or why there are none. Raises where no later job could run in this process."""
    gc.collect()  # what a failed job held would be counted against this one
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        append(path, part, about, list(run()))
    except Exception as error:
        traceback.print_exc()
        append(path, part, about, [{"skipped": f"{type(error).__name__}: {error}"[:300]}])
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # raises where the GPU's context is broken
        if isinstance(error, getattr(torch, "AcceleratorError", ())):  # since PyTorch 2.8
            raise  # a failed capture leaves the allocator in disorder


def append(path: Path, part: str, about: Row, results: list[Row] | None = None) -> None:
    """Writes a line of JSON. It begins with a line break, because a process that is killed may leave half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps([part, about, results]))


def lines(path: Path) -> Iterator[tuple[str, Row, list[Row] | None]]:
    """Part, job and results of every line that is whole."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            yield tuple(json.loads(line))


def read_rows(path: Path) -> list[Row]:
    """A row for every result, and for every job without one."""
    results: dict[str, list[Row]] = {}
    for part, about, found in lines(path):
        results.setdefault(json.dumps({"part": part, **about}), []).extend(found or [])
    ended = [{"skipped": "its process ended"}]
    return [json.loads(about) | row for about, found in results.items() for row in found or ended]


def run_all(options: argparse.Namespace, plan: Row) -> list[Row]:
    """Checks and counts side by side, since they mostly wait for the compiler; times one after the other."""
    path = options.output / "gpu.jsonl"
    path.unlink(missing_ok=True)
    end = time.time() + 60 * options.minutes
    checks = [] if options.only == "time" else ["poison", *(f"{N}x{D}" for N, D in plan["shapes"])]
    if options.only == "check":
        run_parts(checks, end, options)
    else:
        run_parts([*checks, "launches"], time.time() + CHECK_SHARE * (end - time.time()), options)
        for index, dtype in enumerate(DTYPES):
            run_parts([dtype], time.time() + (end - time.time()) / (len(DTYPES) - index), options)
    return read_rows(path)


def run_parts(parts: list[str], deadline: float, options: argparse.Namespace) -> None:
    """Starts all. Starts one that fails again, behind the job it failed at, as long as that leads further."""
    path = options.output / "gpu.jsonl"
    command = [sys.executable, __file__, "--output", options.output, "--impl", options.impl, "--device", options.device]
    command += ["--deadline", str(deadline), "--minutes", str(options.minutes), *["--quick"] * options.quick]
    processes = {part: subprocess.Popen([*command, "--part", part]) for part in parts}
    for part, process in processes.items():
        reached = 0
        while why := failure(process, deadline + GRACE):
            append(path, part, {}, [{"failed": why}])
            begun = sum(whose == part and about != {} for whose, about, _ in lines(path))
            if begun == reached or time.time() > deadline:
                break
            reached, process = begun, subprocess.Popen([*command, "--part", part])


def failure(process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """Waits for the process, and ends it at the deadline. Returns why it failed, None where it did not."""
    try:
        status = process.wait(max(0.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "did not end in time"
    return f"exit status {status}" if status else None


def report(rows: list[Row], output: Path, device: torch.device) -> int:
    """Writes the page and the tables, prints the page, and returns the exit status."""
    checks = [row for row in rows if "right" in row]
    wrong = [row for row in checks if not row["right"]]
    failed = [row for row in rows if "failed" in row or ("skipped" in row and row["part"] not in MEASURED)]
    unchecked = any(row["part"] not in MEASURED for row in failed)
    measured = [{key: row[key] for key in row if key != "part"} for row in rows if row["part"] in MEASURED]
    launches = [row for row in measured if "launches" in row]
    times = [row for row in measured if "both ms" in row or "TFLOP/s" in row]
    skipped = [row for row in measured if "skipped" in row]
    page = [f"# {machine(device)}"]
    if checks:
        page += [f"{len(checks)} comparisons with float64, {len(wrong)} wrong. The closest to its tolerance:"]
        page += [table(closest(checks))]
    titled = {"Wrong": wrong, "Failed": failed, "Times": times, "Launches": launches, "Skipped": skipped}
    for title, part in titled.items():
        if part:
            page += [f"## {title}", table(part)]
    text = "\n\n".join(page) + "\n"
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.md").write_text(text, encoding="utf-8")
    if times or launches:
        save(output / "gpu.csv", times + launches, device)
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
