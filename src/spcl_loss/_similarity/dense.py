"""The definition of the operator in a few eager lines: small batches, and the oracle of the other backends.

Scores have shape (R, A): candidates along the rows, anchors along the columns. On a CPU ragged products and reductions
are faster this way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from spcl_loss._numerics import in_torch_func, matmul, normalised, scaled_product, unit_rows, without_autocast
from spcl_loss._similarity.comparison import LOG_ZERO, Comparison, Statistics


def statistics(rows: Tensor, comparison: Comparison) -> Statistics:
    """See `spcl_loss._similarity.compare`; the rows are of unit length. Has derivatives of every order."""
    return _of_unit_rows(rows, comparison, _excluded(comparison))


def statistics_of(blocks: tuple[Tensor, ...], comparison: Comparison) -> tuple[Statistics, Tensor]:
    """See `spcl_loss._similarity.compare`. In eager code the first derivative costs one product."""
    kept, excluded = comparison.labels >= 0, _excluded(comparison)
    num_positives = (~excluded[1]).sum(0, dtype=blocks[0].dtype) * kept[: comparison.num_anchors]
    if torch.compiler.is_compiling() or in_torch_func():
        return _of_unit_rows(unit_rows(torch.cat(blocks), kept), comparison, excluded), num_positives
    outputs: Statistics = _Statistics.apply(comparison, kept, excluded, *blocks)  # type: ignore[no-untyped-call]
    return outputs, num_positives


def _excluded(comparison: Comparison) -> Tensor:
    """(2, R, A) bool, which candidates are not among the negatives, and which not among the positives."""
    labels = comparison.labels
    # 0 for two rows of the same class. Negative for a row and itself, and where only one of two labels is negative.
    differences = labels[:, None] ^ labels[: comparison.num_anchors]
    differences.diagonal().fill_(-1)  # not fill_diagonal_, which compiles for one size only
    return torch.stack([differences <= 0, differences != 0])


def _candidates(scores: Tensor, excluded: Tensor, comparison: Comparison) -> Tensor:
    """(2, R, A) scores of the negatives and of the positives, `LOG_ZERO` elsewhere."""
    if comparison.log_weights is not None:
        scores = torch.stack([scores + comparison.log_weights[:, None], scores])
    return scores.masked_fill(excluded, LOG_ZERO)


def _positive_sum(scores: Tensor, excluded: Tensor, comparison: Comparison) -> Tensor:
    return scores.masked_fill(excluded[1], 0).sum(0) if comparison.with_sum else scores.new_zeros(excluded.shape[2])


def _of_unit_rows(rows: Tensor, comparison: Comparison, excluded: Tensor) -> Statistics:
    scores = matmul(rows, (rows[: comparison.num_anchors] * comparison.scale).T)
    negative_lse, positive_lse = _candidates(scores, excluded, comparison).logsumexp(1).unbind()
    return negative_lse, positive_lse, _positive_sum(scores, excluded, comparison)


class _Statistics(torch.autograd.Function):
    """`statistics` with a gradient of its own. Only its last product has the size of the rows.

    With u rows of unit length, n their norms, G_ij = d loss / d s_ij and H = G + G^T::

        d loss / d rows_i = scale / n_i (H u - t u)_i      t_i = sum_j H_ij cos_ij
    """

    @staticmethod
    def forward(ctx: Any, comparison: Comparison, kept: Tensor, excluded: Tensor, *blocks: Tensor) -> Statistics:
        rows, norms = normalised(torch.cat(blocks), kept)
        scores = scaled_product(rows, rows[: comparison.num_anchors].T, comparison.scale)
        candidates = _candidates(scores, excluded, comparison)
        # The backward pass needs the softmax too. On a CPU it is much faster than logsumexp, whose exp is slow where it
        # underflows. So lse = max score - log(max probability), because log p = score - lse for every score.
        probabilities = candidates.softmax(1)
        # amax knows no empty sets
        lse = candidates.amax(1) - probabilities.amax(1).log() if len(rows) else scores.new_zeros(2, 0)
        negative_lse, positive_lse = lse.unbind()
        ctx.comparison = comparison
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*blocks, rows, norms, scores, excluded, probabilities)
        positive_sum = _positive_sum(scores, excluded, comparison) if comparison.with_sum else scores.new_empty(0)
        return negative_lse, positive_lse, positive_sum

    @staticmethod
    def backward(ctx: Any, *of_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
        *blocks, rows, norms, scores, excluded, probabilities = ctx.saved_tensors
        comparison = ctx.comparison
        wanted = of_statistics[: 3 if comparison.with_sum else 2]
        grads = [scores.new_zeros(comparison.num_anchors) if grad is None else grad for grad in wanted]
        if torch.is_grad_enabled():  # a second derivative is wanted: that of the definition
            return None, None, None, *_gradients_of_the_definition(blocks, comparison, grads)
        A, G = comparison.num_anchors, comparison.num_grads
        with without_autocast(rows.device.type):
            g = torch.addcmul(probabilities[0] * grads[0], probabilities[1], grads[1])  # (R, A), as the scores
            if comparison.with_sum:
                g += ~excluded[1] * grads[2]
            h = pad(g, (0, G - A))
            h[:A].add_(g[:G].T)
            along = (h[:, :A] * scores).sum(0)
            if G > A:
                along = torch.cat([along, (h[:A, A:] * scores[A:G].T).sum(0)])
            h.diagonal().sub_(along, alpha=1 / comparison.scale)
            gradient = scaled_product(h.div_(norms[:G].T).T, rows, comparison.scale)
        ends = list(accumulate(len(block) for block in blocks))
        of_blocks = gradient.tensor_split(ends[:-1])
        return None, None, None, *(found if end <= G else None for found, end in zip(of_blocks, ends, strict=True))


def _gradients_of_the_definition(
    blocks: list[Tensor], comparison: Comparison, grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    outputs = statistics(unit_rows(torch.cat(blocks), comparison.labels >= 0), comparison)
    leaves = [block for block in blocks if block.requires_grad]
    found = iter(torch.autograd.grad(outputs[: len(grads)], leaves, grads, create_graph=True))
    return tuple(next(found) if block.requires_grad else None for block in blocks)
