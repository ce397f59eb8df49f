"""The definition of the operator in a few eager lines: small batches, and the oracle of the other backends.

Scores have shape (R, A): candidates along the rows, anchors along the columns. On a CPU ragged products and reductions
are faster this way round.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from spcl_loss._numerics import full_precision, matmul, normalised, unit_rows
from spcl_loss._similarity.comparison import Comparison, Statistics

# Stands for the logarithm of an empty sum. Finite, so that no gradient meets inf - inf; far below any score.
LOG_ZERO = -1e30


def statistics(rows: Tensor, comparison: Comparison) -> Statistics:
    """See `spcl_loss._similarity.compare`; the rows are of unit length. Has derivatives of every order."""
    scores = matmul(rows, (rows[: comparison.num_anchors] * comparison.scale).T)
    return _reduced(scores, *_candidates(scores, comparison), comparison)


def _candidates(scores: Tensor, comparison: Comparison) -> tuple[Tensor, Tensor]:
    """(2, R, A) scores of the negatives and of the positives, `LOG_ZERO` elsewhere; (R, A) bool, the positives."""
    labels, log_weights = comparison.labels, comparison.log_weights
    same = labels[:, None] == labels[: comparison.num_anchors]
    not_negative = same | (labels < 0)[:, None]
    positive = same
    positive.diagonal().fill_(False)  # not fill_diagonal_, which compiles for one size only
    excluded = torch.stack([not_negative, ~positive])
    weighted = scores if log_weights is None else scores + log_weights[:, None]
    return torch.stack([weighted, scores]).masked_fill(excluded, LOG_ZERO), positive


def _reduced(scores: Tensor, candidates: Tensor, positive: Tensor, comparison: Comparison) -> Statistics:
    negative_lse, positive_lse = candidates.logsumexp(1).unbind()
    if not comparison.with_sum:
        return negative_lse, positive_lse, torch.zeros_like(negative_lse)
    return negative_lse, positive_lse, scores.masked_fill(~positive, 0).sum(0)


def statistics_of(blocks: tuple[Tensor, ...], comparison: Comparison) -> Statistics:
    """`statistics` of rows of any length, given in blocks. In eager code their first derivative costs one product."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return statistics(unit_rows(torch.cat(blocks), comparison.labels < 0), comparison)
    outputs: Statistics = _Statistics.apply(comparison, *blocks)  # type: ignore[no-untyped-call]
    return outputs


class _Statistics(torch.autograd.Function):
    """`statistics` with a gradient of its own. Only its last product has the size of the rows.

    With u rows of unit length, n their norms, G_ij = d loss / d s_ij and H = G + G^T::

        d loss / d rows_i = scale / n_i (H u - t u)_i      t_i = sum_j H_ij cos_ij
    """

    @staticmethod
    def forward(ctx: Any, comparison: Comparison, *blocks: Tensor) -> Statistics:
        rows, norms = normalised(torch.cat(blocks), comparison.labels < 0)
        scores = (rows @ rows[: comparison.num_anchors].T).mul_(comparison.scale)
        candidates, positive = _candidates(scores, comparison)
        outputs = _reduced(scores, candidates, positive, comparison)
        ctx.comparison = comparison
        ctx.save_for_backward(*blocks, rows, norms, scores, candidates, positive, *outputs[:2])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *blocks, rows, norms, scores, candidates, positive, negative_lse, positive_lse = ctx.saved_tensors
        comparison = ctx.comparison
        if torch.is_grad_enabled():  # a second derivative is wanted: that of the definition
            return None, *_gradients_of_the_definition(blocks, comparison, grads)
        A, G = comparison.num_anchors, comparison.num_grads
        with full_precision(rows.device.type):
            probabilities = (candidates - torch.stack([negative_lse, positive_lse])[:, None]).exp_()
            g = probabilities.mul_(torch.stack(grads[:2])[:, None]).sum(0)  # (R, A), as the scores
            if comparison.with_sum:
                g += positive * grads[2]
            h = pad(g, (0, G - A))
            h[:A].add_(g[:G].T)
            products = g.mul_(scores)
            along = products.sum(1)[:G]
            along[:A].add_(products.sum(0))
            h.diagonal().sub_(along, alpha=1 / comparison.scale)
            gradient = h.mul_(comparison.scale / norms[:G].T).T @ rows
        ends = list(accumulate(len(block) for block in blocks))
        of_blocks = gradient.tensor_split(ends[:-1])
        return None, *(found if end <= G else None for found, end in zip(of_blocks, ends, strict=True))


def _gradients_of_the_definition(
    blocks: list[Tensor], comparison: Comparison, grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    outputs = statistics(unit_rows(torch.cat(blocks), comparison.labels < 0), comparison)
    wanted = 3 if comparison.with_sum else 2
    leaves = [block for block in blocks if block.requires_grad]
    found = iter(torch.autograd.grad(outputs[:wanted], leaves, grads[:wanted], create_graph=True))
    return tuple(next(found) if block.requires_grad else None for block in blocks)
