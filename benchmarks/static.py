"""What the Triton kernels compile to, on any machine: every configuration the launcher can pick, without a GPU.

    python benchmarks/static.py [--architectures sm_90] [--precisions half] [--output FOLDER]

Reads from the machine code: tensor-core instructions, registers, spills, shared memory, and how often each unit of a
multiprocessor is asked per tile; against the published rates of the architecture that gives the unit that bounds the
kernel. This is a prediction: it knows no latency, no cache and no clock. It exits with 1 where a kernel spills
registers or wants more shared memory than the architecture has.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are defined for the compiler
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spcl_loss._similarity import backward_kernels, forward_kernels, launch
from spcl_loss._similarity.launch import Tile
from spcl_loss._similarity.tile_kernels import SIZES


class Rates(NamedTuple):
    """Of one multiprocessor a clock: product operations, then lanes of the other units; and its memories."""

    half: int
    tf32: int
    float32: int
    special: int
    shuffle: int
    shared_bytes: int
    registers: int


# NVIDIA's architecture whitepapers (A100, H100, Blackwell) and the CUDA programming guide's throughput table. sm_80
# stands for 8.6 and 8.9 too, so its shared memory is theirs.
RATES = {
    "sm_80": Rates(2048, 1024, 64, 16, 32, 99 << 10, 65536),
    "sm_90": Rates(4096, 2048, 128, 16, 32, 227 << 10, 65536),
    "sm_100": Rates(8192, 4096, 128, 16, 32, 227 << 10, 65536),
}
_TENSOR = ("HGMMA", "HMMA", "UTCHMMA")
_FLOAT = ("FADD", "FFMA", "FMUL", "FSEL", "FADD2", "FFMA2", "FMUL2", "FSETP")
_WIDTHS = (256, 768, 1024)


def configurations(architecture: str, precision: str) -> list[tuple[str, Any, Tile, bool]]:
    """Name, kernel, tile and whether exponentials are plain, of everything that can be launched."""
    tiles = launch.TILES[architecture][precision]
    found = []
    for name, tile in tiles.items():
        if name == "small":
            for steep in (False, True):
                suffix = "_steep" if steep else ""
                found.append((f"small_forward{suffix}", forward_kernels.statistics_of_rows, tile, not steep))
                found.append((f"small_backward{suffix}", backward_kernels.gradient_of_slices, tile, not steep))
        elif name.startswith("narrow"):
            found.append((name, backward_kernels.gradient_of_rows, tile, True))
        else:
            forward = name.startswith("forward")
            kernel = forward_kernels.statistics_of_tiles if forward else backward_kernels.h_of_tiles
            found.append((name, kernel, tile, not name.endswith("steep")))
    return found


def compile_kernel(architecture: str, precision: str, name: str, kernel: Any, tile: Tile, plain: bool) -> Any:
    """The kernel as the launcher would have it compiled."""
    small, narrow = name.startswith("small"), name.startswith("narrow")
    descriptors = launch.has_tensor_descriptors(architecture) and not small
    held = int(name.removeprefix("narrow_")) if narrow else tile.part
    constants = {
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth,
        "BD": held,
        "PART": tile.part,
        "TMA": descriptors,
        "DTYPE": tl.bfloat16 if precision == "half" else tl.float32,
        "PRECISION": "ieee" if precision == "ieee" else "tf32",
        "PLAIN": plain,
        "HALF": precision == "half",
    }
    depth = held if narrow else tile.depth
    shapes = {"left": (tile.rows, depth), "right": (tile.columns, depth), "workspace": (tile.rows, tile.part)}
    element = "bf16" if precision == "half" else "fp32"
    signature, attributes = {}, {}
    for position, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        if argument in shapes and descriptors:
            rows, columns = shapes[argument]
            signature[argument] = f"tensordesc<{element}[{rows},{columns}]>"
        elif argument in shapes:
            signature[argument] = f"*{element}"
        elif argument == "labels":
            signature[argument] = "*i64" if small else "*i32"
        elif argument in ("scale", "log2_scale"):
            signature[argument] = "fp32"
        elif argument in (*SIZES, "width", "stride", "workspace_stride"):
            signature[argument] = "i32"
        else:
            signature[argument] = "*fp32"
        if signature[argument][0] == "*" or argument in ("width", "stride", "workspace_stride"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    used = {key: value for key, value in constants.items() if key in kernel.arg_names}
    source = ASTSource(kernel, signature, used, attributes)
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})


def machine_code(compiled: Any) -> tuple[int, int, list[tuple[int, str, str]]]:
    """Registers, bytes of stack and (address, operation, operands) of each instruction."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        usage, listing = (
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, option, binary.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)([^;]*);"
    code = [(int(address, 16), name, rest) for address, name, rest in re.findall(pattern, listing)]
    return registers, stack, code


def main_loop(code: list[tuple[int, str, str]]) -> tuple[Counter[str], Counter[str]]:
    """Operations inside the shortest loop that holds a product (empty where none does), and outside of it."""
    best: tuple[int, int] | None = None
    for address, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if target is None or int(target[1], 16) >= address:
            continue
        span = (int(target[1], 16), address)
        holds = any(span[0] <= at <= span[1] and operation in (*_TENSOR, "FFMA") for at, operation, _ in code)
        if holds and (best is None or span[1] - span[0] < best[1] - best[0]):
            best = span
    inside = Counter(operation for at, operation, _ in code if best and best[0] <= at <= best[1])
    return inside, Counter(operation for _, operation, _ in code) - inside


def predict(
    architecture: str, precision: str, name: str, tile: Tile, inside: Counter[str], outside: Counter[str], width: int
) -> dict[str, Any]:
    """Clocks a tile occupies each unit of a multiprocessor, the largest of them, and the products' share of it.

    Both sides of every branch count as executed, so the other units' figures are upper bounds.
    """
    rates = RATES[architecture]
    products = 2 if name.startswith("narrow") else 1
    steps = 1 if products == 2 else -(-width // tile.depth)
    # The narrow kernel's loop is over tiles, what stands outside of it runs once for hundreds of them.
    executed = inside if products == 2 else Counter({k: n * steps for k, n in inside.items()}) + outside
    lanes = tile.warps * 32
    multiplied = products * 2 * tile.rows * tile.columns * width
    speed = {"half": rates.half, "tf32": rates.tf32, "ieee": 2 * rates.float32}[precision]
    clocks = {
        "products": multiplied / speed,
        "float": sum(executed[k] for k in _FLOAT) * lanes / rates.float32 if precision != "ieee" else 0.0,
        "special": executed["MUFU"] * lanes / rates.special,
        "shuffle": executed["SHFL"] * lanes / rates.shuffle,
        "issue": sum(executed.values()) * tile.warps / 4,
    }
    bound = max(clocks, key=lambda unit: clocks[unit])
    return {
        "clocks": {k: round(v) for k, v in clocks.items()},
        "bound": bound,
        "share": clocks["products"] / clocks[bound],
    }


def examine(architecture: str, precision: str, name: str, kernel: Any, tile: Tile, plain: bool) -> dict[str, Any]:
    """One line of the table."""
    compiled = compile_kernel(architecture, precision, name, kernel, tile, plain)
    registers, stack, code = machine_code(compiled)
    inside, outside = main_loop(code)
    everything = inside + outside
    rates = RATES[architecture]
    shared = compiled.metadata.shared
    blocks = min(rates.registers // (registers * tile.warps * 32), (rates.shared_bytes + 1024) // (shared + 1024))
    copies = next((k for k in ("UTMALDG", "LDGSTS") if everything[k]), "LDG")
    tensor = next((k for k in _TENSOR if everything[k]), "FFMA")
    line = {
        "architecture": architecture,
        "precision": precision,
        "kernel": name,
        "tile": list(tile),
        "tensor": f"{inside[tensor] or everything[tensor]} {tensor}",
        "copies": f"{inside[copies]} {copies}",
        "barriers": inside["BAR"],
        "registers": registers,
        "spills": stack + everything["STL"] + everything["LDL"],
        "shared": shared,
        "fits": shared <= rates.shared_bytes,
        "blocks": blocks,
    }
    if not name.startswith("small"):
        held = int(name.removeprefix("narrow_")) if name.startswith("narrow") else None
        line["predicted"] = {
            str(width): predict(architecture, precision, name, tile, inside, outside, width)
            for width in ((held,) if held else _WIDTHS)
        }
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--precisions", nargs="+", choices=("half", "tf32", "ieee"), default=("half", "tf32", "ieee"))
    parser.add_argument("--output", type=Path, help="folder for static.json")
    options = parser.parse_args()
    print("Predicted from machine code, nothing is measured. share: products' clocks over the busiest unit's, by width")
    print("| kernel | tensor core | copies | barriers in loop | registers | spills | shared | blocks | bound, share |")
    print("|---|---|---|---:|---:|---:|---:|---:|---|")
    lines = []
    for architecture in options.architectures:
        for precision in options.precisions:
            for configuration in configurations(architecture, precision):
                line = examine(architecture, precision, *configuration)
                lines.append(line)
                shares = "; ".join(
                    f"{width}: {found['bound']} {found['share']:.2f}"
                    for width, found in line.get("predicted", {}).items()
                )
                print(
                    f"| {architecture} {precision} {line['kernel']} | {line['tensor']} | {line['copies']} | "
                    f"{line['barriers']} | {line['registers']} | {line['spills']} | {line['shared'] / 1024:.0f} KiB | "
                    f"{line['blocks']} | {shares} |",
                    flush=True,
                )
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "static.json").write_text(
            json.dumps({"triton": triton.__version__, "kernels": lines}, indent=1)
        )
    faults = [line for line in lines if line["spills"] or not line["fits"]]
    for line in faults:
        print(f"{line['architecture']} {line['precision']} {line['kernel']} spills or does not fit", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
