"""Which unit of a multiprocessor bounds a kernel, from the instructions of its machine code and published rates.

A prediction: it knows no latency, no cache, no clock that falls under load. Sources of the rates:

* multiprocessors, tensor-core operations and memory bandwidth: NVIDIA's A100 (80 GB SXM), H200 (SXM) and B200 data
  sheets, 312, 989 and 2250 TFLOP/s dense in half precision, half of it in TF32; 2.0, 4.8 and 8 TB/s;
* other units: the table of native arithmetic throughput in the CUDA C++ Programming Guide, compute capability 8.0, 9.0
  and 10.0; shared memory has 32 banks of 4 bytes a clock there too;
* four schedulers issue an instruction of one warp each a clock: NVIDIA's A100 and H100 white papers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from machine_code import TENSOR, Code, Instruction, count, loop_way, other_way

from spcl_loss._similarity.kernels.config import STRIP_ROWS, Tile


class Rates(NamedTuple):
    """Of one multiprocessor a clock: product operations, lanes of the other units, bytes; and its memories."""

    half: int
    tf32: int
    float32: int
    integer: int
    special: int
    shuffle: int
    shared: int
    device_memory: float
    shared_bytes: int
    registers: int


# The entry sm_80 serves 8.6 and 8.9 too, so the limit of its shared memory is theirs.
RATES = {
    "sm_80": Rates(2048, 1024, 64, 64, 16, 32, 128, 2.04e12 / (108 * 1.41e9), 99 << 10, 65536),
    "sm_90": Rates(4096, 2048, 128, 64, 16, 32, 128, 4.8e12 / (132 * 1.83e9), 227 << 10, 65536),
    "sm_100": Rates(8192, 4096, 128, 64, 16, 32, 128, 8e12 / (148 * 1.86e9), 227 << 10, 65536),
}
_FLOAT = {"FADD": 1, "FFMA": 1, "FMUL": 1, "FADD2": 2, "FFMA2": 2, "FMUL2": 2}
# Comparisons, selections, conversions, logic and addresses.
_INTEGER = (
    "ISETP", "FSETP", "FSEL", "SEL", "FMNMX", "FMNMX3", "VIMNMX", "IMNMX", "LOP3", "PLOP3", "IADD3", "VIADD", "LEA",
    "SHF", "PRMT", "P2R", "R2P", "F2FP", "IMAD", "I2FP", "IABS", "ISCADD", "VIADDMNMX",
)  # fmt: skip
MEMORY = (
    "LDG", "STG", "LDS", "STS", "LDSM", "STSM", "LDGSTS", "UTMALDG", "UTMASTG", "LDTM", "STTM", "SYNCS",
)  # fmt: skip


def resident_blocks(code: Code, tile: Tile, shared: int, rates: Rates) -> int:
    """Programs a multiprocessor holds at a time; each takes 1 KiB of shared memory for the system."""
    by_registers = rates.registers // (-(-code.registers // 8) * 8 * tile.warps * 32)
    return min(by_registers, (rates.shared_bytes + 1024) // (shared + 1024))


class Work(NamedTuple):
    """One tile: what its main loop does how often, and the size of its product."""

    precision: str
    tile: Tile
    width: int
    narrow: bool  # the loop is over tiles and holds two products; else it is over the width and holds one

    @property
    def steps(self) -> int:
        return 1 if self.narrow else -(-self.width // self.tile.depth)

    @property
    def operations(self) -> int:
        return (4 if self.narrow else 2) * self.tile.rows * self.tile.columns * self.width

    @property
    def element_bytes(self) -> int:
        return 2 if self.precision == "half" else 4


def per_tile(code: Code, work: Work, choose: Any) -> dict[str, int]:
    """Instructions of a warp over a tile, on the way with the fewest of them or the most (min, max)."""
    executed = Counter({name: n * work.steps for name, n in count(loop_way(code.instructions)).items()})
    if not work.narrow:
        executed += count(other_way(code.instructions, choose))
    return {
        "tensor": sum(executed[name] for name in TENSOR),
        "exponentials and logarithms": executed["MUFU"],
        "float": sum(n * executed[name] for name, n in _FLOAT.items()),
        "comparisons, selections, integers": sum(executed[name] for name in _INTEGER),
        "shuffles": executed["SHFL"],
        "memory": sum(executed[name] for name in MEMORY),
        "barriers": executed["BAR"],
        "all": sum(executed.values()),
    }


def predict(architecture: str, kernel: str, code: Code, work: Work, blocks: int, choose: Any) -> dict[str, Any]:
    """Clocks that a tile occupies each unit, those it takes, the unit that bounds it, and the products' share.

    Where several programs share a multiprocessor one multiplies while another finishes its tile, and the busiest unit
    counts. A single one does so in turn: what cannot run beside the products is added to them.
    """
    rates = RATES[architecture]
    loop = _clocks(loop_way(code.instructions), work, rates)
    loop = {unit: clocks * work.steps for unit, clocks in loop.items()}
    loop["shared"] += _copied_bytes(work) / rates.shared
    rest = _clocks([] if work.narrow else other_way(code.instructions, choose), work, rates)
    rest["device memory"] = _device_bytes(kernel, work) / rates.device_memory
    loop["device memory"] = 0.0
    products = 0.0
    if work.precision != "ieee":
        products = work.operations / {"half": rates.half, "tf32": rates.tf32}[work.precision]
        loop["products"], rest["products"] = products, 0.0
    total = {unit: loop[unit] + rest[unit] for unit in loop}
    bound = max(total, key=total.__getitem__)
    if blocks > 1:
        clocks = total[bound]
    elif work.narrow:  # the second product waits for what is made of the first
        clocks = products + max(n for unit, n in total.items() if unit != "products")
    else:
        clocks = max(loop.values()) + max(rest.values())
    floor = products or work.operations / (2 * rates.float32)
    return {
        "clocks": {unit: round(n) for unit, n in sorted(total.items())},
        "together": round(clocks),
        "bound": bound,
        "share": floor / clocks,
    }


def _clocks(instructions: list[Instruction], work: Work, rates: Rates) -> dict[str, float]:
    """Of all warps, for each unit but the tensor cores."""
    executed, lanes = count(instructions), work.tile.warps * 32
    return {
        "float": sum(n * executed[name] for name, n in _FLOAT.items()) * lanes / rates.float32,
        "integer": sum(executed[name] for name in _INTEGER) * lanes / rates.integer,
        "special": executed["MUFU"] * lanes / rates.special,
        "shuffle": executed["SHFL"] * lanes / rates.shuffle,
        "shared": sum(_shared_bytes(instruction, work) for instruction in instructions) / rates.shared,
        "issue": len(instructions) * work.tile.warps / 4,
    }


def _shared_bytes(instruction: Instruction, work: Work) -> float:
    """What one instruction moves to or from shared memory, over all warps."""
    name, modifiers = instruction.name, instruction.rest.split(" ")[0].split(".")
    if name in ("LDS", "STS"):
        return work.tile.warps * 32 * (16 if "128" in modifiers else 8 if "64" in modifiers else 4)
    if name in ("LDSM", "STSM"):
        return work.tile.warps * 32 * 4 * next((int(m) for m in modifiers if m in ("2", "4")), 1)
    if name == "HGMMA":  # by four warps: 32 bytes of each row of B, and of A unless registers hold it
        columns = int(next(m for m in modifiers if "x" in m).split("x")[1])
        from_registers = not instruction.rest.split(",")[1].strip().startswith("gdesc")
        return work.tile.warps / 4 * 32 * (columns + (0 if from_registers else 64))
    if name == "UTCHMMA":  # by one thread for all; the narrow kernel's second product has H in tensor memory
        if instruction.rest.startswith("tmem"):
            return 32 * work.width
        return 32 * (min(128, work.tile.rows) + work.tile.columns)
    return 0.0


def _copied_bytes(work: Work) -> int:
    """Operands that a tile brings to shared memory."""
    rows = work.tile.columns if work.narrow else work.tile.rows + work.tile.columns
    return rows * work.width * work.element_bytes


def _device_bytes(kernel: str, work: Work) -> float:
    """What a tile moves to and from the device's memory: its columns, once for all rows of a strip, and its results."""
    columns = work.tile.columns * work.width * work.element_bytes / (STRIP_ROWS / work.tile.rows)
    if kernel.startswith("forward"):
        return columns + 2 * 4 * (work.tile.rows + work.tile.columns)
    if kernel.startswith("backward"):
        return columns + work.tile.rows * work.tile.columns * work.element_bytes
    return columns


def operations(instructions: Iterable[Instruction]) -> str:
    """The tensor-core instructions among them, as in "8 HGMMA"."""
    executed = count(instructions)
    name = next((name for name in (*TENSOR, "FFMA2") if executed[name]), "FFMA")
    return f"{executed[name]} {name}"
