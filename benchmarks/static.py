"""What the Triton kernels compile to, on any machine: every configuration the launcher can pick, without a GPU.

    python benchmarks/static.py [--architectures sm_90] [--precisions half] [--output FOLDER]

Reads from the machine code: tensor-core instructions, registers, spills, shared memory, and how often each unit of a
multiprocessor is asked per tile; `cost_model` makes of it which unit bounds the kernel, and at what share of the
time of its matrix products. That is a prediction, nothing here is measured. It exits with 1 where a kernel spills
registers or wants more shared memory than the architecture has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are defined for the compiler
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
import triton.language as tl
from cost_model import RATES, Work, operations, per_tile, predict, resident_blocks
from machine_code import count, disassemble, loop_way
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spcl_loss._similarity.kernels import backward, forward
from spcl_loss._similarity.kernels import config as launch
from spcl_loss._similarity.kernels.config import Tile
from spcl_loss._similarity.kernels.tiles import SIZES

_WIDTHS = (256, 768, 1024)
_HEAD = (
    "kernel", "tile", "tensor core", "copies", "barriers", "registers", "spills", "shared", "programs",
    "instructions a pair", "width: bound, share",
)  # fmt: skip


def configurations(architecture: str, precision: str) -> list[tuple[str, Any, Tile, bool]]:
    """Name, kernel, tile and whether exponentials are plain, of everything that can be launched."""
    tiles = launch.TILES[architecture][precision]
    found = []
    for name, tile in tiles.items():
        if name == "small":
            for steep in (False, True):
                suffix = "_steep" if steep else ""
                found.append((f"small_forward{suffix}", forward.statistics_of_few_rows, tile, not steep))
                found.append((f"small_backward{suffix}", backward.gradient_of_slices, tile, not steep))
        else:
            kernel = forward.statistics_of_tiles if name.startswith("forward") else backward.h_of_tiles
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
        "with_sum": 0,  # what "outside" adds is left out
    }
    depth = held if narrow else tile.depth
    shapes = {
        "left": (tile.rows, depth),
        "right": (tile.columns, depth),
        "workspace": (tile.rows, tile.part),
        "workspace_twice": (tile.rows, min(2 * tile.part, tile.columns)),
    }
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
        elif argument == "ranges":
            signature[argument] = "*i32"
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


def examine(architecture: str, precision: str, name: str, kernel: Any, tile: Tile, plain: bool) -> dict[str, Any]:
    """One line of the table."""
    compiled = compile_kernel(architecture, precision, name, kernel, tile, plain)
    code = disassemble(compiled.asm["cubin"])
    rates, shared = RATES[architecture], compiled.metadata.shared
    loop = loop_way(code.instructions)
    executed = count(code.instructions)
    copies = next((k for k in ("UTMALDG", "LDGSTS") if executed[k]), "LDG")
    line = {
        "architecture": architecture,
        "precision": precision,
        "kernel": name,
        "tile": list(tile),
        "tensor": operations(loop),
        "copies": f"{count(loop)[copies]} {copies}",
        "barriers": count(loop)["BAR"],
        "registers": code.registers,
        "spills": code.spills,
        "shared": shared,
        "fits": shared <= rates.shared_bytes,
        "blocks": resident_blocks(code, tile, shared, rates),
    }
    if not name.startswith("small"):
        narrow = name.startswith("narrow")
        widths = (int(name.removeprefix("narrow_")),) if narrow else _WIDTHS
        line["predicted"] = {}
        for width in widths:
            work = Work(precision, tile, width, narrow)
            line["predicted"][str(width)] = {
                way: {
                    "product operations": work.operations,
                    "instructions": per_tile(code, work, choose),
                    **predict(architecture, name, code, work, line["blocks"], choose),
                }
                for way, choose in (("fewest", min), ("most", max))
            }
    return line


def row(line: dict[str, Any]) -> str:
    tile = Tile(*line["tile"])
    shape = f"{tile.rows} x {tile.columns} x {tile.depth}, {tile.warps} warps"
    threads_a_pair = tile.warps * 32 / (tile.rows * tile.columns)
    shares, instructions = [], "-"
    for width, found in line.get("predicted", {}).items():
        fewest, most = found["fewest"], found["most"]
        shares.append(f"{width}: {fewest['bound']} {fewest['share']:.2f}")
        if most["share"] < fewest["share"] - 0.005:
            shares[-1] += f" ({most['bound']} {most['share']:.2f})"
        if instructions == "-":
            instructions = " to ".join(f"{way['instructions']['all'] * threads_a_pair:.0f}" for way in (fewest, most))
    cells = [
        f"{line['architecture']} {line['precision']} {line['kernel']}", shape, line["tensor"], line["copies"],
        line["barriers"], line["registers"], line["spills"], f"{line['shared'] / 1024:.0f} KiB", line["blocks"],
        instructions, "; ".join(shares) or "-",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--precisions", nargs="+", choices=("half", "tf32", "ieee"), default=("half", "tf32", "ieee"))
    parser.add_argument("--output", type=Path, help="folder for static.json")
    options = parser.parse_args()
    print("Predicted from machine code, nothing is measured. Tensor core, copies and barriers: in the main loop.")
    print("Share: of the products' time, where a tile goes the way of fewest instructions (and of most).")
    print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}")
    lines = []
    for architecture in options.architectures:
        for precision in options.precisions:
            for configuration in configurations(architecture, precision):
                lines.append(examine(architecture, precision, *configuration))
                print(row(lines[-1]), flush=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "static.json").write_text(
            json.dumps({"predicted": True, "triton": triton.__version__, "kernels": lines}) + "\n"
        )
    faults = [line for line in lines if line["spills"] or not line["fits"]]
    for line in faults:
        print(f"{line['architecture']} {line['precision']} {line['kernel']} spills or does not fit", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
