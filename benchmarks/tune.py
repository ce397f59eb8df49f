"""Regenerates the table of launch configurations on a GPU: compiles many, times those that fit, keeps the fastest.

    python benchmarks/tune.py --output runs/tune             # runs/tune/launch.py is the launcher with the new table
    TRITON_INTERPRET=1 python benchmarks/tune.py --dry-run --output ...     # the same on a CPU: are there typos

Candidates that spill registers or want more shared memory than there is are dropped before they run, and of the rest
those that `cost_model` thinks best are timed, interleaved with the present one, at several widths. What replaces it has
to give the same numbers and to be faster by two per cent over all of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import torch
from device import medians, name

from spcl_loss._similarity import launch
from spcl_loss._similarity.launch import Tile

DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
# (rows, columns, warps)
_SHAPES = {
    "small": ((16, 32, 4), (16, 64, 4), (16, 128, 4), (32, 64, 4)),
    "narrow": ((64, 64, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8), (64, 128, 4)),
    "tiles": ((64, 128, 4), (128, 128, 4), (128, 128, 8), (128, 256, 8)),
    "ieee": ((64, 64, 4), (64, 64, 8), (128, 64, 8), (128, 128, 8)),
}


def candidates(kernel: str, precision: str) -> list[Tile]:
    """Tiles worth compiling; what a step keeps in shared memory has to fit there for every stage."""
    family = "ieee" if precision == "ieee" and kernel != "small" else kernel.split("_")[0]
    size = 2 if precision == "half" else 4
    found = []
    for rows, columns, warps in _SHAPES.get(family, _SHAPES["tiles"]):
        for depth, stages in itertools.product((16, 32) if family == "ieee" else (32, 64), (2, 3, 4)):
            for part in (32, 64) if family in _SHAPES and family != "narrow" else (16, 32, 64):
                if family == "narrow":
                    depth, part = 64, columns  # of these the kernel knows nothing
                if (rows + columns) * depth * size * stages <= 228 << 10 and part <= max(columns, 64):
                    found.append(Tile(rows, columns, depth, warps, stages, part))
    return list(dict.fromkeys(found))


def examine(architecture: str, precision: str, kernel: str, tile: Tile) -> float | None:
    """The predicted share of the products' time, None where the tile is none to run. In a process of its own."""
    import static  # defines the kernels for the compiler, whatever this process was started with

    shares = []
    for found, function, _, plain in static.configurations(architecture, precision):
        if found != kernel and not (kernel == "small" and found.startswith("small")):
            continue
        try:
            line = static.examine(architecture, precision, found, function, tile, plain)
        except Exception:  # the compiler refuses what the hardware cannot do
            return None
        if line["spills"] or not line["fits"] or line["blocks"] < 1:
            return None
        shares += [way["fewest"]["share"] for way in line.get("predicted", {}).values()]
    return sum(shares) / len(shares) if shares else 0.0


def compile_all(
    architecture: str, precision: str, kernel: str, tiles: list[Tile], keep: int
) -> tuple[list[Tile], dict[str, float | None]]:
    """The most promising tiles, and what the model says of all."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(examine, architecture, precision, kernel, tile) for tile in tiles]
        shares = dict(zip(tiles, (job.result() for job in jobs), strict=True))
    fitting = sorted((tile for tile in tiles if shares[tile] is not None), key=lambda tile: -(shares[tile] or 0.0))
    return fitting[:keep], {str(list(tile)): share for tile, share in shares.items()}


def workload(kernel: str, precision: str, N: int, D: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """The pass of the operator that this kernel is in, on sorted rows of seven classes."""
    from spcl_loss._similarity import triton_kernels

    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(N, D, device=device), dim=1)
    labels = torch.randint(7, (N,), device=device).sort().values
    scale = 100.0 if kernel.endswith("steep") else 10.0
    # The interpreter multiplies no bfloat16.
    dtype = torch.float16 if device.type == "cpu" and precision == "half" else DTYPES[precision]
    statistics = triton_kernels.statistics(rows, labels, None, scale, N, False, dtype)
    grads = torch.randn(3, N, device=device)

    def forward() -> torch.Tensor:
        return torch.stack(triton_kernels.statistics(rows, labels, None, scale, N, False, dtype)[:2])

    def backward() -> torch.Tensor:
        return triton_kernels.gradient(rows, labels, None, scale, N, False, *statistics[:2], grads, dtype)

    def both() -> torch.Tensor:
        return torch.cat([forward().flatten(), backward().flatten()])

    return forward if kernel.startswith("forward") else both if kernel == "small" else backward


def time_all(
    kernel: str, precision: str, tiles: list[Tile], sizes: list[tuple[int, int]], device: torch.device, seconds: float
) -> dict[Tile, list[float]]:
    """Median seconds of each tile at every size. One that fails, or gives other numbers than the first, is left out."""
    table = launch.TILES[launch.architecture(device)][precision]
    settings = {"NARROW": 256 if kernel.startswith("narrow") else 0, "NARROW_ROWS": 0}
    if kernel != "small":
        settings["SMALL_ROWS"] = 0
    found: dict[Tile, list[float]] = {tile: [] for tile in tiles}
    for N, D in sizes:
        with patch.multiple(launch, **settings):
            run = workload(kernel, precision, N, D, device)
            expected = run()

            def use(tile: Tile, run: Callable[[], torch.Tensor] = run) -> torch.Tensor:
                with patch.dict(table, {kernel: tile}):
                    return run()

            for tile in list(found):
                try:
                    distance = float((use(tile) - expected).norm() / expected.norm())
                except Exception as error:
                    print(f"  {list(tile)}: {type(error).__name__}: {str(error)[:100]}")
                    distance = math.inf
                if not distance <= 0.01:
                    print(f"  {list(tile)} is {distance:.1e} off at {N} x {D}")
                    del found[tile]
            if tiles[0] not in found:
                raise RuntimeError(f"the present {precision} {kernel} gives no numbers to compare with")
            times = medians(device, {str(tile): lambda tile=tile: use(tile) for tile in found}, seconds, least=3)
            for tile in found:
                found[tile].append(times[str(tile)])
    return found


def choose(times: dict[Tile, list[float]], present: Tile) -> tuple[Tile, float]:
    """The fastest over all sizes by the geometric mean of the ratios to the present one, and its mean."""
    ratios = {
        tile: math.prod(a / b for a, b in zip(found, times[present], strict=True)) ** (1 / len(found))
        for tile, found in times.items()
    }
    best = min(ratios, key=ratios.__getitem__)
    return (best, ratios[best]) if ratios[best] < 0.98 else (present, 1.0)


def rewrite(source: str, architecture: str, precision: str, kernel: str, tile: Tile) -> str:
    """The launcher's source with one entry of its table replaced."""
    pattern = rf'("{architecture}": {{.*?"{precision}": {{.*?"{kernel}": )Tile\([^)]*\)'
    replaced, count = re.subn(pattern, rf"\g<1>Tile({', '.join(map(str, tile))})", source, count=1, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"launch.py holds no entry {architecture}, {precision}, {kernel}")
    return replaced


def sizes_of(kernel: str, dry: bool) -> list[tuple[int, int]]:
    if dry:
        return [(48, 16)]
    if kernel == "small":
        return [(32, 1024), (256, 768)]
    if kernel.startswith("narrow"):
        return [(32768, int(kernel.removeprefix("narrow_")))]
    return [(16384, 256), (16384, 768), (16384, 1024)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=["half", "tf32"])
    parser.add_argument("--kernels", nargs="+", help="of the table; all by default")
    parser.add_argument("--keep", type=int, default=6, help="how many candidates are timed")
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing for a kernel and a size")
    parser.add_argument("--minutes", type=float, default=9.0, help="kernels that would begin later stay as they are")
    parser.add_argument("--output", type=Path, default=Path("runs/tune"))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU; wants TRITON_INTERPRET=1")
    options = parser.parse_args()
    dry = options.dry_run
    device = torch.device("cpu" if dry else "cuda")
    architecture = "sm_90" if dry else launch.architecture(device)
    source = Path(launch.__file__).read_text()
    options.output.mkdir(parents=True, exist_ok=True)
    end, report = time.time() + 60 * options.minutes, []
    for precision, kernel in itertools.product(
        options.precisions, options.kernels or launch.TILES[architecture]["half"]
    ):
        present = launch.TILES[architecture][precision].get(kernel)
        if present is None or time.time() > end:
            print(f"{precision} {kernel}: {'no such entry' if present is None else 'no time left'}")
            continue
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        tiles = candidates(kernel, precision)[: 2 if dry else None]
        fitting, shares = compile_all(architecture, precision, kernel, tiles, options.keep)
        if dry:  # the interpreter knows no tensor core's shapes, and is slow
            present = launch.TILES["interpreter"][precision][kernel]
            fitting = [present._replace(stages=2)]
        timed = time_all(
            kernel, precision, list(dict.fromkeys([present, *fitting])), sizes_of(kernel, dry), device, options.seconds
        )
        best, ratio = choose(timed, present)
        print(f"{precision} {kernel}: {list(present)} -> {list(best)}, {ratio:.3f} of the time", flush=True)
        if best != present:
            source = rewrite(source, architecture, precision, kernel, best)
        report.append(
            {
                "architecture": architecture,
                "precision": precision,
                "kernel": kernel,
                "predicted": shares,
                "seconds": {str(list(tile)): times for tile, times in timed.items()},
                "chosen": list(best),
            }
        )
        (options.output / "tune.json").write_text(json.dumps({"machine": name(device), "kernels": report}, indent=1))
        (options.output / "launch.py").write_text(source)


if __name__ == "__main__":
    main()
