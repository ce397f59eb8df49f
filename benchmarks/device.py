"""What the GPU benchmarks share: the device's clock, its peak memory and name, memory that is poisoned before a run.

On a CPU, where they are only tried out, the clock is the wall's.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import measure
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def interleaved(
    device: torch.device, runs: dict[str, Callable[[], Any]], seconds: float, least: int
) -> dict[str, list[float]]:
    """`measure.interleaved` by the GPU's own events: seconds of each contestant, in turn, round by round."""
    if device.type == "cpu":
        return measure.interleaved(runs, seconds, least)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    torch.cuda.synchronize()
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, run in runs.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            stop.synchronize()
            times[name].append(start.elapsed_time(stop) / 1e3)
    return times


def medians(
    device: torch.device, runs: dict[str, Callable[[], Any]], seconds: float, least: int = 5
) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in interleaved(device, runs, seconds, least).items()}


def extra_peak_bytes(device: torch.device, run: Callable[[], Any]) -> int | None:
    """How far the memory in use rises above what it was."""
    if device.type == "cpu":
        return measure.extra_peak_bytes(run)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def free(device: torch.device) -> None:
    """Gives cached memory back, so that one contestant's does not stand in the next one's way."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def poisoned(device: torch.device) -> Iterator[None]:
    """New tensors hold NaN until they are written: an element that a kernel forgets cannot pass for a zero."""
    if device.type == "cuda":
        # All bits set is a NaN in every floating dtype. Freed, the blocks wait in the allocator for the next to ask.
        torch.cuda.empty_cache()
        small = [torch.full((1 << 19,), 255, dtype=torch.uint8, device=device) for _ in range(256)]
        most = min(8 << 30, torch.cuda.mem_get_info()[0] // 4)
        large = [torch.full((most,), 255, dtype=torch.uint8, device=device)]
        torch.cuda.synchronize()
        del small, large
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)  # on a CPU this fills new tensors
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def launches(device: torch.device, run: Callable[[], Any], repeats: int = 5) -> float | None:
    """Kernels, copies and fills that one run starts; on a CPU, calls of PyTorch operators. None where none are seen."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    run()
    with profile(activities=[activity]) as profiled:
        for _ in range(repeats):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    seen = sum(event.device_type == kind for event in profiled.events())
    return seen / repeats if seen else None


def name(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    described = {**measure.machine(), "triton": version}
    if device.type == "cpu":
        return {"dry run": "on a CPU, kernels interpreted: no figure here means anything", **described}
    properties = torch.cuda.get_device_properties(device)
    query = "driver_version,clocks.max.sm,power.limit"
    try:
        asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = None
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": properties.total_memory / 2**30,
        "cuda": torch.version.cuda,
        query: driver,
        **described,
    }
