"""Hashes in tensor arithmetic: random draws and checksums that are the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def hashed(values: Tensor) -> Tensor:
    """SplitMix64: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014."""
    values = values * _GOLDEN
    values = (values ^ _shift_right(values, 30)) * _MIX_1
    values = (values ^ _shift_right(values, 27)) * _MIX_2
    return values ^ _shift_right(values, 31)


def draw_keys(slot_hashes: Tensor, seed: Tensor, draws: Tensor) -> Tensor:
    """(C, M) int64 whose order is that of a random draw, the same for the same seed and draw counter.

    Half of SplitMix64's finaliser, over slot hashes that have been through the whole of it. It is a bijection and the
    slot hashes differ. So there are no ties, whose order could depend on the device.
    """
    start = torch.add(seed * _SEED_STRIDE, draws, alpha=_DRAW_STRIDE)
    keys = (slot_hashes ^ start).mul_(_MIX_1)
    return keys.bitwise_xor_(_shift_right(keys, 32)).mul_(_MIX_2)


def checksum(tensor: Tensor) -> Tensor:
    """() int64 from the bits of a tensor; any one bit that changes changes it. Sums wrap, so their order is free."""
    if tensor.is_floating_point():
        tensor = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    bits = tensor.long()
    while bits.dim():
        start = bits.dim() << 32  # other factors for every axis
        places = hashed(torch.arange(start, start + bits.shape[-1], device=bits.device)) | 1  # odd: none loses a bit
        bits = (bits * places).sum(-1)
    return bits


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """A logical shift: int64's own repeats the sign bit."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant; products wrap, which is what the hash wants."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)
# Odd steps of the hash's start from draw to draw and seed to seed: the fractional parts of the square roots of 2 and 3
# times 2^64, the last bit set.
_DRAW_STRIDE = _signed(0x6A09E667F3BCC909)
_SEED_STRIDE = _signed(0xBB67AE8584CAA73B)
