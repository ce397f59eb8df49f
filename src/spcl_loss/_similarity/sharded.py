"""The similarity operator with its work divided among ranks: each does the statistics and gradients of its own rows.

The candidates of all ranks have one order everywhere: batches in rank order, then the prototypes. Each rank looks at
them with its own in front, because the operator's anchors, and the rows whose gradient is wanted, lead:

    forward    statistics of this rank's anchors against all candidates; then gathered, two or three numbers an anchor
    backward   gradient of this rank's rows, complete, from the statistics of all anchors and their gradients

Prototypes that are anchors, or that want a gradient, are divided among the ranks like the rows of the batch.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from spcl_loss._distributed import Ranks, gather_rows
from spcl_loss._similarity.contrast import Contrast, Statistics, Upstream
from spcl_loss._similarity.operator import contrast_gradient, contrast_statistics


class Shares(NamedTuple):
    """Which of the candidates this rank answers for."""

    ranks: Ranks
    own: Tensor  # (n + c,) where this rank's rows and prototypes lie
    own_prototypes: slice  # which of the prototypes those are
    own_first: Tensor  # (R,) a permutation of all candidates
    anchors: list[int]  # how many each rank answers for
    restore: Tensor | None  # (A,) from anchors rank by rank to the common order, where that differs


def divide(
    ranks: Ranks, num_prototypes: int, device: torch.device, *, prototype_grads: bool, prototype_anchors: bool
) -> Shares:
    """Rows belong to the rank that they come from; prototypes, where they make work, are dealt out evenly."""
    counts, size, rank = ranks.counts, len(ranks.counts), ranks.rank
    divided = num_prototypes if prototype_grads or prototype_anchors else 0
    rows = [0, *accumulate(counts)]
    prototypes = [divided * k // size for k in range(size + 1)]
    shares = [
        torch.cat(
            [
                torch.arange(rows[k], rows[k + 1], device=device),
                torch.arange(rows[-1] + prototypes[k], rows[-1] + prototypes[k + 1], device=device),
            ]
        )
        for k in range(size)
    ]
    undivided = torch.arange(rows[-1] + divided, rows[-1] + num_prototypes, device=device)
    return Shares(
        ranks=ranks,
        own=shares[rank],
        own_prototypes=slice(prototypes[rank], prototypes[rank + 1]),
        own_first=torch.cat([*shares[rank:], *shares[:rank], undivided]),
        anchors=[share.shape[0] for share in shares] if prototype_anchors else counts,
        restore=torch.cat(shares).argsort() if prototype_anchors else None,
    )


def sharded_statistics(own_rows: Tensor, rows: Tensor, contrast: Contrast, shares: Shares, impl: str) -> Statistics:
    """`contrast_statistics` of all anchors, on every rank the same to the bit.

    Args:
        own_rows: (n + c, D) the rows that this rank answers for, once more: the gradient goes to them.
        rows: (R, D) all candidates in their common order, as constants.
        contrast: of all candidates in their common order. Its `num_anchors` and `num_grads` are not used.
        shares: which rank answers for which rows.
        impl: as for `contrast_statistics`.
    """
    outputs: Statistics = _ShardedStatistics.apply(own_rows, rows, contrast, shares, impl)  # type: ignore[no-untyped-call]
    return outputs


class _ShardedStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_rows: Tensor, rows: Tensor, contrast: Contrast, shares: Shares, impl: str) -> Statistics:
        order = shares.own_first
        rows = rows[order]
        contrast = contrast._replace(
            labels=contrast.labels[order],
            log_weights=None if contrast.log_weights is None else contrast.log_weights[order],
            num_anchors=shares.anchors[shares.ranks.rank],
            num_grads=own_rows.shape[0],
        )
        of_own = contrast_statistics(rows, contrast, impl)
        sent = torch.stack(of_own if contrast.with_sum else of_own[:2], 1)
        gathered = gather_rows(sent, shares.anchors, shares.ranks.group)
        if shares.restore is not None:
            gathered = gathered[shares.restore]
        negative, positive, *rest = gathered.unbind(1)
        ctx.save_for_backward(rows, contrast.labels, contrast.log_weights, negative, positive, order)
        ctx.settings, ctx.impl, ctx.ranks = contrast[2:], impl, len(shares.ranks.counts)
        return negative, positive, rest[0] if rest else torch.zeros_like(negative)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, labels, log_weights, negative, positive, order = ctx.saved_tensors
        # Prototypes that are no anchors have no statistics: zeros stand for them, with gradients of zero.
        others = (0, rows.shape[0] - negative.shape[0])
        negative, positive, *upstream = (pad(vector, others)[order] for vector in (negative, positive, *grads))
        contrast = Contrast(labels, log_weights, *ctx.settings)
        gradient = contrast_gradient(rows, contrast, Upstream(negative, positive, torch.stack(upstream)), ctx.impl)
        return gradient * ctx.ranks, *(None,) * 4  # DDP divides by the number of ranks
