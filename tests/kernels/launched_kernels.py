"""Prints, as JSON, every kernel that the launchers compile for the GPU named by `sm_90` or the like; needs no GPU.

A process of its own, because kernels are defined either for the interpreter or for the compiler. The launchers run
unchanged on CPU tensors, but every launch ends after compiling. So the compiled kernels are those that a GPU would get,
down to the argument types and the alignment that Triton infers.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from spcl_loss._similarity.comparison import Comparison, Upstream
from spcl_loss._similarity.kernels import config, dispatch, tiles

WIDTH = 1000  # no multiple of 16: the launchers pad the operands, so this compiles what an aligned width compiles


def compile_only(architecture, compiled):
    """From here on every launch ends with a kernel compiled for this architecture."""
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
        )
    )
    config.architecture = lambda device: architecture
    launch = JITFunction.run

    def compile_kernel(kernel, *args, grid, warmup, **options):
        found = launch(kernel, *args, grid=grid, warmup=True, **options)
        compiled[found.hash] = kernel.fn.__name__, options, found

    JITFunction.run = compile_kernel


def check_descriptors():
    """What cuTensorMapEncodeTiled demands, asserted on every descriptor that a launcher makes."""
    from_tensor = tiles.TensorDescriptor.from_tensor

    def checked(matrix, block_shape):
        assert matrix.data_ptr() % 16 == 0, "the base address is not aligned"
        assert matrix.stride(1) == 1 and matrix.stride(0) * matrix.itemsize % 16 == 0, matrix.stride()
        assert 0 < matrix.stride(0) * matrix.itemsize < 2**40 and all(0 < size <= 2**32 for size in matrix.shape)
        assert all(0 < size <= 256 for size in block_shape), block_shape
        assert block_shape[1] * matrix.itemsize % 16 == 0, block_shape
        return from_tensor(matrix, block_shape)

    tiles.TensorDescriptor = SimpleNamespace(from_tensor=checked)


def run_paths(dtype, sizes):
    config.SORTED_ROWS = 0
    for num_rows, scale in itertools.product(sizes, (10.0, 100.0)):
        rows, labels = torch.randn(num_rows, WIDTH), torch.randint(5, (num_rows,), dtype=torch.int32)
        comparison = Comparison(labels, None, scale, 90, 95, True, dtype)
        found = dispatch.statistics(rows, comparison)
        dispatch.gradient(rows, comparison, Upstream(*found[:2], torch.randn(3, 90)))


def stack_bytes(cubin):
    """Bytes of stack and local memory per thread: none unless registers are spilled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.search(r"STACK:(\d+).* LOCAL:(\d+)", usage).groups()))


def products_in_32_bits(ttir):
    """Integer products of two run-time values that are computed in 32 bits. Each value fits, their product may not."""
    constant = set(re.findall(r"(%\w+) = arith\.constant", ttir))
    views = r"(%\w+) = tt\.(?:splat|expand_dims|broadcast) (%\w+)"
    for name, source in re.findall(views, ttir):
        if source in constant:
            constant.add(name)
    products = re.findall(r"arith\.muli (%\w+), (%\w+) (?:overflow<\w+> )?: (?:tensor<[\dx]+xi32>|i32)", ttir)
    return [f"{a} * {b}" for a, b in products if a not in constant and b not in constant]


def described(name, options, kernel):
    ttir, ptx = kernel.asm["ttir"], kernel.asm["ptx"]
    return {
        "kernel": name,
        "precision": options.get("PRECISION"),
        "plain": options["PLAIN"],
        "stack": stack_bytes(kernel.asm["cubin"]),
        "shared": kernel.metadata.shared,
        "scratch": kernel.metadata.global_scratch_size,
        "products_in_32_bits": products_in_32_bits(ttir),
        "products_in_64_bits": len(re.findall(r"arith\.muli.* : .*i64", ttir)),
        "atomics": re.findall(r"\b(?:tt\.atomic\w+|atom\.\S+|red\.\S+)", ttir + ptx),
        "products": sorted(set(re.findall(r"\b(mma\.sync|wgmma|tcgen05\.mma)\b", ptx))),
        "copies": sorted(
            set(re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, (0x\w+)", ptx))
            | set(re.findall(r"cp\.async\.bulk\.tensor", ptx))
        ),
    }


def main(architecture):
    compiled = {}
    compile_only(architecture, compiled)
    check_descriptors()
    few, many = config.SMALL_ROWS, 600
    run_paths(torch.bfloat16, (few, many))
    torch.set_float32_matmul_precision("high")
    run_paths(torch.float32, (few, many))
    torch.set_float32_matmul_precision("highest")
    # All architectures share most tiles of full float32; one of them compiles each.
    run_paths(torch.float32, {"sm_80": (few, many), "sm_90": (), "sm_100": (few,)}[architecture])
    print(json.dumps([described(*entry) for entry in compiled.values()]))


if __name__ == "__main__":
    main(sys.argv[1])
