"""The kernels on a GPU: are they right, how fast are they, against what the device can do and what else there is.

    python benchmarks/gpu.py --output runs/gpu                  # less than nine minutes on one H200
    TRITON_INTERPRET=1 python benchmarks/gpu.py --dry-run ...   # the same on a CPU in tiny sizes: are there typos

First every path of the kernels is compared with float64; the command exits with 1 where one is wrong. Then the rows
that matter most are timed first, and what the minutes no longer allow is skipped and said to be. Every section is a
process of its own: a fault, or a kernel that hangs, cannot take the others along. Rows are kept as they come.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Share of the minutes that a section may take at most; what it leaves over is the next ones'.
SECTIONS = {"check": 0.35, "ceiling": 0.1, "step": 0.25, "time": 0.6, "yardsticks": 0.6, "peers": 1.0}
_GRACE = 45.0  # seconds that a process may take to start, and to stop by itself, before it is ended


class Plan(NamedTuple):
    """Sizes and seconds: of a measurement, or of a dry run."""

    shapes: tuple[tuple[int, int], ...]  # of the check
    precisions: tuple[str, ...]  # of the check
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    once: tuple[int, int]
    products: tuple[tuple[int, int, int], ...]
    seconds: float
    least: int


MEASURED = Plan(
    # one per path: few rows, tiles, a ragged width, sorted rows through the workspace, narrow rows in registers
    shapes=((33, 64), (200, 1024), (300, 100), (1500, 768), (5000, 300), (9000, 256), (20000, 64), (20000, 768)),
    precisions=("float32", "tf32", "float16", "bfloat16"),
    sizes=(65536, 16384, 4096, 256, 32),
    widths=(768, 256, 1024),
    once=(1_000_000, 768),
    products=((8192, 8192, 8192), (16384, 768, 16384), (6144, 65536, 768)),
    seconds=0.5,
    least=5,
)
DRY = Plan(
    shapes=((12, 16), (40, 20)),
    precisions=("float32", "float16"),
    sizes=(48, 8),
    widths=(16,),
    once=(64, 16),
    products=((32, 32, 32),),
    seconds=0.0,
    least=1,
)


def rows_of(section: str, part: str, plan: Plan, dry: bool) -> Iterator[tuple[str, float, Callable[[], Any]]]:
    """What there is to do, the most important first: its name, the seconds to expect, and what makes its rows."""
    import gpu_check as check
    import gpu_step
    import gpu_time
    import torch

    device = torch.device("cpu" if dry else "cuda")
    half = "float32" if dry else "bfloat16"
    if section == "check":
        yield "poison", 1, lambda: [check.check_poison(device)]
        for N, D in plan.shapes:
            yield f"operator {N} x {D} {part}", 5, lambda N=N, D=D: check.check_operator(N, D, part, device)
            yield f"methods {N} x {D} {part}", 5, lambda N=N, D=D: check.check_methods(N, D, part, device)
    elif section == "ceiling":
        for dtype in gpu_time.DTYPES:
            yield dtype, 5, lambda dtype=dtype: [gpu_time.ceiling(dtype, device, plan.seconds, plan.products)]
    elif section == "step":
        yield (
            "loss and memory",
            60,
            lambda: gpu_step.step_rows(*((8, 3, 16) if dry else (32, 7, 1024)), torch.float32, device, plan.seconds),
        )
    elif section == "time":
        for dtype in dict.fromkeys((half, "tf32", "float32")):
            for N in plan.sizes:
                for D in plan.widths:
                    yield (
                        f"{N} x {D} {dtype}",
                        4 + 12 * N * N * D / (2e13 if dtype == "float32" else 2e14),
                        lambda N=N, D=D, dtype=dtype: [gpu_time.ours(N, D, dtype, device, plan.seconds, plan.least)],
                    )
            if dtype == half:
                yield f"{plan.once} once", 30, lambda: [gpu_time.once(*plan.once, half, device)]
                N = plan.sizes[0]
                for D in plan.widths:
                    yield (
                        f"variants {N} x {D}",
                        10,
                        lambda N=N, D=D: gpu_time.variants(N, D, half, device, plan.seconds),
                    )
    elif section == "yardsticks":
        for dtype in dict.fromkeys((half, "float32")):
            for N in plan.sizes:
                for D in plan.widths:
                    yield (
                        f"{N} x {D} {dtype}",
                        10 + 60 * N * N * D / 2e13,
                        lambda N=N, D=D, dtype=dtype: gpu_time.yardsticks(N, D, dtype, device, plan.seconds),
                    )
    else:
        yield "which are there", 0, gpu_time.absent_peers
        for N in plan.sizes:
            for D in plan.widths:
                yield f"{N} x {D}", 15, lambda N=N, D=D: gpu_time.peers(N, D, half, device, plan.seconds)


def run_section(section: str, part: str, plan: Plan, dry: bool, deadline: float, path: Path) -> None:
    """Appends a line of JSON for every row; a row that fails is one that says so."""
    if dry:
        _narrow_paths()
    with path.open("a") as file:

        def put(row: dict[str, Any]) -> None:
            file.write(json.dumps({"section": section, **row}) + "\n")
            file.flush()

        for name, seconds, make in rows_of(section, part, plan, dry):
            if time.time() + seconds > deadline:
                put({"skipped row": name, "why": f"no time left: {seconds:.0f} s expected"})
                continue
            try:
                for row in make():
                    put(row)
            except Exception as error:
                put({"failed row": name, "why": f"{type(error).__name__}: {str(error)[:500]}"})


def _narrow_paths() -> None:
    """A dry run's sizes go through all paths too."""
    from spcl_loss._similarity import launch

    launch.SMALL_ROWS, launch.SORTED_ROWS, launch.NARROW_ROWS, launch.STRIP_ROWS = 16, 32, 32, 32
    launch.NARROW = 8


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a process that was ended may have left half of one."""
    rows = []
    for line in path.read_text().split("\n") if path.exists() else []:
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            rows.append({"failed row": "a row that was not written to its end", "why": line[:80]})
    return rows


def measure(options: argparse.Namespace, sections: list[str]) -> list[dict[str, Any]]:
    """Runs every section in its process, within its share of the time."""
    path = options.output / "gpu.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    end = time.time() + 60 * options.minutes
    for section in sections:
        left = end - time.time() - _GRACE
        if left <= 0:
            with path.open("a") as file:
                file.write(json.dumps({"section": section, "skipped row": "all", "why": "no time left"}) + "\n")
            continue
        limit = left * SECTIONS[section]
        deadline = time.time() + limit
        command = [sys.executable, __file__, "--section", section, "--deadline", str(deadline)]
        command += ["--output", str(options.output)] + ["--dry-run"] * options.dry_run
        print(f"{section}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        # Most of the check is spent in the compiler, and nothing is timed in it: its parts run side by side.
        parts = (DRY if options.dry_run else MEASURED).precisions if section == "check" else ("",)
        processes = {part: subprocess.Popen([*command, "--part", part]) for part in parts}
        for part, process in processes.items():
            try:
                ended = process.wait(max(0.0, deadline + _GRACE - time.time()))
                why = f"exit status {ended}" if ended else None
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                why = "did not end in time"
            if why:
                fault = {"section": section, "failed row": f"the section {part}".strip(), "why": why}
                with path.open("a") as file:
                    file.write("\n" + json.dumps(fault) + "\n")
    return read_rows(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU; wants TRITON_INTERPRET=1")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        plan = DRY if options.dry_run else MEASURED
        run_section(
            options.section, options.part, plan, options.dry_run, options.deadline, options.output / "gpu.jsonl"
        )
        return 0
    rows = measure(options, options.sections)
    import gpu_report

    return gpu_report.write(rows, options.output, options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
