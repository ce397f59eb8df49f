"""What the benchmarks share: interleaved timing, peak memory, yardsticks, result tables.

Every result is a CSV file. Each of its rows names the commit, the date, the machine and the command that produced it.
"""

from __future__ import annotations

import csv
import ctypes
import gc
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CPU = torch.device("cpu")
# A function to time, or a pair: what to prepare without timing it, and a function of what was prepared.
Contestant = Callable[[], Any] | tuple[Callable[[], Any], Callable[[Any], Any]]


def interleaved(
    contestants: dict[str, Contestant], seconds: float, least: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Times of each contestant in turn, round by round, so that a change of the machine's speed meets all of them.

    The first round does not count. At least `least` rounds follow, and more until `seconds` are over.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        _time(contestant, device)
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, contestant in contestants.items():
            times[name].append(_time(contestant, device))
    return times


def _time(contestant: Contestant, device: torch.device) -> float:
    """Seconds of one run. On a GPU they are taken by its own events, beginning with an idle device."""
    prepare, run = contestant if isinstance(contestant, tuple) else (lambda: None, lambda _: contestant())
    prepared = prepare()
    if device.type != "cuda":
        begin = time.perf_counter()
        run(prepared)
        return time.perf_counter() - begin
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run(prepared)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def median_ratio(times: list[float], yardstick: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, yardstick, strict=True))


def extra_peak_bytes(run: Callable[[], Any], device: torch.device = CPU) -> int | None:
    """How far the memory in use rises during a run: the GPU's, or the process's. None where this is not known."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        return None
    before = _resident_bytes("VmRSS")
    run()
    return max(0, _resident_bytes("VmHWM") - before)


def _resident_bytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def dense_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """SPCL over a batch in plain dense PyTorch, as one writes it without a library."""
    rows = F.normalize(embeddings, dim=1)
    scores = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    denominator = scores.masked_fill(itself, float("-inf")).logsumexp(1)
    numerator = scores.masked_fill(~positive, -1e30).logsumexp(1) - count.clamp_min(1).log()
    counted = count > 0
    return (denominator - numerator).masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)


def three_products(embeddings: Tensor) -> None:
    """The floor of the dense computation: scores, and the two products of their gradient."""
    for _ in range(3):
        embeddings @ embeddings.T


def machine(device: torch.device = CPU) -> str:
    """What the figures are measured on, in one line."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device.type == "cuda":
        triton = metadata.version("triton") if importlib.util.find_spec("triton") else "none"
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, Triton {triton}, {versions}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{names[0] if names else platform.processor()}, {threads}, {versions}"


def save(path: Path, rows: list[dict[str, Any]], device: torch.device = CPU) -> None:
    """Writes the rows, each with its provenance."""
    about = {
        "commit": _commit(),
        "date": date.today().isoformat(),
        "machine": machine(device),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    head = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*head, *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value, "") for key, value in {**row, **about}.items()} for row in rows)


def _commit() -> str:
    """The commit that is checked out, with a plus sign where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return asked.stdout.strip() or "unknown"


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the keys of all rows."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    lines = [head, ["---"] * len(head), *([_cell(row.get(key), "-") for key in head] for row in rows)]
    # A message may hold line breaks and bars, which would end its row or its cell.
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cell(value: Any, absent: str) -> str:
    if value is None:
        return absent
    return f"{value:.4g}" if isinstance(value, float) else str(value)
