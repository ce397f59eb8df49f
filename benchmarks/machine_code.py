"""A compiled kernel's machine code: its instructions, its main loop, and the cheapest and dearest way through it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from triton import knobs

TENSOR = ("HGMMA", "UTCHMMA", "HMMA")


class Instruction(NamedTuple):
    address: int
    predicated: bool  # or a branch on a condition of its own
    name: str  # HGMMA
    rest: str  # .64x128x16.F32.BF16 R24, gdesc[UR8], R24

    def target(self) -> int | None:
        """Where it may jump to."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.rest) if self.name == "BRA" else None
        return int(found[1], 16) if found else None


class Code(NamedTuple):
    registers: int
    stack: int
    instructions: list[Instruction]

    @property
    def spills(self) -> int:
        """Bytes of stack, and loads and stores to it."""
        return self.stack + sum(instruction.name in ("STL", "LDL") for instruction in self.instructions)


def disassemble(cubin: bytes) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(cubin)
        binary.flush()
        usage, listing = (
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, option, binary.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_]+)([^;]*);"
    instructions = [
        Instruction(int(address, 16), bool(predicate) or (name == "BRA" and "," in rest), name, rest.strip())
        for address, predicate, name, rest in re.findall(pattern, listing)
    ]
    return Code(registers, stack, instructions)


def main_loop(code: list[Instruction], products: Iterable[str] = (*TENSOR, "FFMA", "FFMA2")) -> tuple[int, int]:
    """Indices of the first and last instruction of the shortest loop that multiplies."""
    index = {instruction.address: at for at, instruction in enumerate(code)}
    spans = []
    for last, instruction in enumerate(code):
        first = index.get(instruction.target(), last + 1)
        # Code to wait in is moved behind the kernel's end; no way leads from where it returns to, to its jump back.
        if first <= last and any(passed.name in products for passed in _way(code, first, last, max)):
            spans.append((first, last))
    if not spans:
        raise ValueError("no loop multiplies")
    return min(spans, key=lambda span: span[1] - span[0])


def loop_way(code: list[Instruction]) -> list[Instruction]:
    """What one pass of the main loop executes. Its branches choose the thread that starts a copy or a product."""
    return _way(code, *main_loop(code), max)


def other_way(code: list[Instruction], choose: Callable[..., int]) -> list[Instruction]:
    """What is executed before the main loop and after it, on the shortest or longest way."""
    first, last = main_loop(code)
    before = _way(code, 0, first, choose)[:-1]
    ends = [at for at, i in enumerate(code) if i.name == "EXIT" and not i.predicated and at > last]
    after = [_way(code, last + 1, end, choose) for end in ends]
    return before + choose((way for way in after if way), key=len)


def _way(code: list[Instruction], first: int, last: int, choose: Callable[..., int]) -> list[Instruction]:
    """The shortest or longest way from one instruction to a later one; loops between are passed once."""
    index = {instruction.address: at for at, instruction in enumerate(code)}
    lengths, following = {last: 1}, {}
    for at in range(last - 1, first - 1, -1):
        target = code[at].target()
        # A predicated EXIT stands where some threads have no more to do: the others go on.
        reachable = {at + 1} if target is None or code[at].predicated else set()
        if code[at].name == "EXIT" and not code[at].predicated:
            reachable = set()
        if target is not None and index.get(target, -1) > at:
            reachable.add(index[target])
        reachable &= lengths.keys()
        if reachable:
            following[at] = choose(reachable, key=lengths.__getitem__)
            lengths[at] = 1 + lengths[following[at]]
    if first not in lengths:
        return []
    way = [first]
    while way[-1] != last:
        way.append(following[way[-1]])
    return [code[at] for at in way]


def count(instructions: Iterable[Instruction]) -> Counter[str]:
    return Counter(instruction.name for instruction in instructions)
