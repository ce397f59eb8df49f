"""Gathers rows across ranks with gradients that are exact after DDP's averaging."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(group: dist.ProcessGroup | None) -> int:
    """How many ranks share a batch; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def row_counts(tensor: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many rows each rank holds."""
    count = torch.tensor([tensor.shape[0]], device=tensor.device)
    counts = [torch.empty_like(count) for _ in range(world_size(group))]
    dist.all_gather(counts, count, group=group)
    return torch.cat(counts).tolist()


def gather_rows(tensor: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all ranks, in rank order; batches may differ in size.

    Every rank computes the same global loss, so each holds the complete gradient of its own rows, and no gradient is
    sent. DDP then divides by the number of ranks, which the backward pass makes up for.
    """
    gathered: Tensor = _GatherRows.apply(tensor, counts, group)  # type: ignore[no-untyped-call]
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
        rank = dist.get_rank(group)
        ctx.start, ctx.stop, ctx.world_size = sum(counts[:rank]), sum(counts[: rank + 1]), len(counts)
        # Collectives want equal sizes: pad to the longest batch, then cut the padding off.
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        blocks = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(blocks, padded, group=group)
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.start : ctx.stop] * ctx.world_size, None, None
