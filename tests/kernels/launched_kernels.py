"""Prints, as JSON, what the launchers would compile on the GPU named by `sm_90` or the like: run on any machine.

A process of its own, without the interpreter. The launchers run as they are, on CPU tensors, but every launch stops
after compiling; so what is compiled is what a GPU would get, down to the argument types and what is known of them.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from spcl_loss._similarity.contrast import Contrast, Upstream
from spcl_loss._similarity.kernels import config, dispatch

# For widths that are no multiple of 16 Triton makes kernels of their own.
WIDTHS = 1000, 1024


def compile_only(capability: int, compiled: dict[tuple[str, ...], Any]) -> None:
    """From here on launches end with a compiled kernel, for a GPU of this compute capability."""
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
    )
    launch_kernel = JITFunction.run

    def compile_kernel(kernel, *args, grid, warmup, **options):
        found = launch_kernel(kernel, *args, grid=grid, warmup=True, **options)
        compiled[kernel.fn.__name__, options.get("PRECISION", ""), found.hash] = found

    JITFunction.run = compile_kernel


def run_every_path(width: int, dtype: torch.dtype) -> None:
    config.SORTED_ROWS = 0
    for num_rows, scale in itertools.product((config.SMALL_ROWS, 600), (10.0, 100.0)):
        rows, labels = torch.randn(num_rows, width), torch.randint(5, (num_rows,))
        contrast = Contrast(labels, None, scale, 90, 95, True, dtype)
        found = dispatch.statistics(rows, contrast)
        dispatch.gradient(rows, contrast, Upstream(*found[:2], torch.randn(3, 90)))


def spilled(cubin: bytes) -> int:
    """Bytes of stack and local memory a thread uses: none where all it needs fits in registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.search(r"STACK:(\d+).* LOCAL:(\d+)", usage).groups()))


def products_in_32_bits(ttir: str) -> list[str]:
    """Integer products of two values of run time that are computed in 32 bits. Each value fits; a product may not."""
    constant = set(re.findall(r"(%\w+) = arith\.constant", ttir))
    views = r"(%\w+) = tt\.(?:splat|expand_dims|broadcast) (%\w+)"
    for name, source in re.findall(views, ttir):
        if source in constant:
            constant.add(name)
    products = re.findall(r"arith\.muli (%\w+), (%\w+) (?:overflow<\w+> )?: (?:tensor<[\dx]+xi32>|i32)", ttir)
    return [f"{a} * {b}" for a, b in products if a not in constant and b not in constant]


def described(kernel: Any) -> dict[str, Any]:
    ttir, ptx = kernel.asm["ttir"], kernel.asm["ptx"]
    return {
        "spilled": spilled(kernel.asm["cubin"]),
        "shared": kernel.metadata.shared,
        "products_in_32_bits": products_in_32_bits(ttir),
        "products_in_64_bits": len(re.findall(r"arith\.muli.* : .*i64", ttir)),
        "atomics": re.findall(r"\b(?:tt\.atomic\w+|atom\.\S+|red\.\S+)", ttir + ptx),
        "tensor_cores": sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|\bmma\.sync", ptx))),
        "copies": sorted(set(re.findall(r"cp\.async\.bulk\.tensor|cp\.async\.c[ag]\.shared\.global", ptx))),
    }


def main(architecture: str) -> None:
    compiled: dict[tuple[str, ...], Any] = {}
    compile_only(int(architecture.removeprefix("sm_")), compiled)
    config.architecture = lambda device: architecture
    lines = []
    for width in WIDTHS:
        compiled.clear()
        run_every_path(width, torch.float16)
        for setting in ("highest", "high"):
            torch.set_float32_matmul_precision(setting)
            run_every_path(width, torch.float32)
        lines += [
            {"kernel": name, "precision": precision, "width": width, **described(kernel)}
            for (name, precision, _), kernel in compiled.items()
        ]
    print(json.dumps(lines))


if __name__ == "__main__":
    main(sys.argv[1])
