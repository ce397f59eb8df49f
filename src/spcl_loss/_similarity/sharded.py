"""The similarity operator over several ranks: each computes the statistics and gradients of a part of the rows.

All ranks know all candidates, in one order: the batches in rank order, then what all ranks share (prototypes, further
candidates). Each rank computes its own batch and an equal part of the shared rows, as far as those are anchors or need
a gradient. It puts its own rows in front, because the operator's anchors and gradients are those of the leading rows:

    forward    statistics of this rank's anchors against all candidates; then gathered, two or three numbers an anchor
    backward   gradient of this rank's rows, complete, from the statistics of all anchors and their gradients
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from spcl_loss._distributed import Ranks, gather_rows
from spcl_loss._numerics import unit_rows
from spcl_loss._similarity.comparison import Comparison, Statistics, Upstream
from spcl_loss._similarity.operator import similarity_gradient, similarity_statistics


def statistics_of_all_ranks(rows: Tensor, comparison: Comparison, impl: str, ranks: Ranks) -> Statistics:
    """`compare` for several ranks: the statistics of all anchors, the same to the bit on every rank.

    The gradient that reaches `rows` is that of this rank's part, and zero elsewhere. Shared rows have it times the
    number of ranks, because averaging divides by it; for the rows of the batch `gather_batch` sees to that.
    """
    part = _divide(ranks, comparison)
    own_rows = torch.cat([rows[own] for own in part.own])
    own_labels = torch.cat([comparison.labels[own] for own in part.own])
    comparison = Comparison(
        labels=comparison.labels[part.order],
        log_weights=None if comparison.log_weights is None else comparison.log_weights[part.order],
        scale=comparison.scale,
        num_anchors=part.anchors[ranks.rank],
        num_grads=own_rows.shape[0],
        with_sum=comparison.with_sum,
        product_dtype=comparison.product_dtype,
    )
    with torch.no_grad():
        rows = unit_rows(rows[part.order], comparison.labels >= 0)
    outputs: Statistics = _StatisticsOfAllRanks.apply(  # type: ignore[no-untyped-call]
        unit_rows(own_rows, own_labels >= 0), rows, comparison, part, ranks, impl
    )
    return outputs


class _Part(NamedTuple):
    """What this rank computes."""

    own: list[slice]  # its rows, anchors first
    order: Tensor  # (R,) a permutation of all candidates: this rank's rows, those of the others, the constants
    anchors: list[int]  # how many anchors each rank has
    restore: Tensor | None  # (A,) from anchors rank by rank to the common order; None where that is the same


def _divide(ranks: Ranks, comparison: Comparison) -> _Part:
    size = len(ranks.counts)
    batches = [0, *accumulate(ranks.counts)]
    # Shared rows: first those that are anchors, then those that only need a gradient.
    anchors = _equal_parts(batches[-1], comparison.num_anchors, size)
    others = _equal_parts(comparison.num_anchors, comparison.num_grads, size)
    parts = [[slice(ends[k], ends[k + 1]) for ends in (batches, anchors, others)] for k in range(size)]
    index = torch.arange(comparison.labels.shape[0], device=comparison.labels.device)
    own_first = [*parts[ranks.rank :], *parts[: ranks.rank]]
    of_anchors = [index[rows] for part in parts for rows in part[:2]]
    return _Part(
        own=parts[ranks.rank],
        order=torch.cat([*(index[rows] for part in own_first for rows in part), index[comparison.num_grads :]]),
        anchors=[sum(rows.stop - rows.start for rows in part[:2]) for part in parts],
        restore=torch.cat(of_anchors).argsort() if comparison.num_anchors > batches[-1] else None,
    )


def _equal_parts(start: int, stop: int, size: int) -> list[int]:
    return [start + (stop - start) * k // size for k in range(size + 1)]


class _StatisticsOfAllRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, own_rows: Tensor, rows: Tensor, comparison: Comparison, part: _Part, ranks: Ranks, impl: str
    ) -> Statistics:
        of_own = similarity_statistics(rows, comparison, impl)
        sent = torch.stack(of_own if comparison.with_sum else of_own[:2], 1)
        gathered = gather_rows(sent, part.anchors, ranks.group)
        if part.restore is not None:
            gathered = gathered[part.restore]
        negative, positive, *rest = gathered.unbind(1)
        ctx.save_for_backward(rows, comparison.labels, comparison.log_weights, negative, positive, part.order)
        _, _, *ctx.settings = comparison
        ctx.impl = impl
        ctx.batch, ctx.ranks = ranks.counts[ranks.rank], len(ranks.counts)
        return negative, positive, rest[0] if rest else torch.zeros_like(negative)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, labels, log_weights, negative, positive, order = ctx.saved_tensors
        # Rows that are no anchors have no statistics: zeros stand for them, with gradients of zero.
        others = (0, rows.shape[0] - negative.shape[0])
        negative, positive, *upstream = (pad(vector, others)[order] for vector in (negative, positive, *grads))
        comparison = Comparison(labels, log_weights, *ctx.settings)
        gradient = similarity_gradient(rows, comparison, Upstream(negative, positive, torch.stack(upstream)), ctx.impl)
        gradient[ctx.batch :] *= ctx.ranks
        return gradient, *(None,) * 5
