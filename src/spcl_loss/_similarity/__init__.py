"""Similarities of all pairs of rows, reduced to a few numbers a row."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_loss._distributed import Ranks
from spcl_loss._numerics import PLAIN_SCALE, unit_rows
from spcl_loss._similarity import dense
from spcl_loss._similarity.comparison import Comparison, Statistics
from spcl_loss._similarity.operator import similarity_statistics, uses_dense
from spcl_loss._similarity.sharded import statistics_of_all_ranks

__all__ = ["Comparison", "Statistics", "compare"]


def compare(blocks: tuple[Tensor, ...], comparison: Comparison, impl: str, ranks: Ranks | None = None) -> Statistics:
    """Statistics of each anchor's scores s_ij = scale * cos(rows_i, rows_j), without keeping the scores.

    Every row is a candidate of every other row.

    Args:
        blocks: (R, D) float32 or float64 rows of any length, in blocks. A row that is no candidate may hold anything.
        comparison: what is compared and what is wanted. The statistics of an anchor that is no candidate mean nothing.
        impl: "auto", "dense", "strips" or "triton"; decides how it is computed, never what.
        ranks: the ranks that share these rows, each of which computes a part; None for one process.

    Returns:
        Three tensors (A,): the log-sum-exp of the weighted scores of the candidates with another label (negatives),
        the log-sum-exp of the scores of the other candidates with the same label (positives), and the sum of the
        latter scores. The logarithm of an empty sum is about `dense.LOG_ZERO`.
    """
    if uses_dense(impl, comparison):
        return dense.statistics_of(blocks, comparison)
    if torch._C._functorch.maybe_current_level() is not None:
        raise NotImplementedError(
            f'torch.func transforms need the dense backend; received impl={impl!r}. Pass impl="dense" or "auto"'
        )
    rows = torch.cat(blocks)
    if ranks is not None:
        return statistics_of_all_ranks(rows, comparison, impl, ranks)
    rows = unit_rows(rows, comparison.labels < 0)
    if torch.compiler.is_compiling():
        rows, comparison = _at_one_of_few_scales(rows, comparison)
    return similarity_statistics(rows, comparison, impl)


def _at_one_of_few_scales(rows: Tensor, comparison: Comparison) -> tuple[Tensor, Comparison]:
    """The same scores by a larger scale, twice as large at most, and by rows that are shorter than 1.

    PyTorch compiles a graph again for each float that reaches a registered operator. So a changed temperature would
    compile it at every step. Only a change by a factor of two does.
    """
    labels, log_weights, scale, num_anchors, num_grads, with_sum, product_dtype = comparison
    larger = PLAIN_SCALE * 2.0**-12
    while larger < scale:
        larger *= 2
    length = torch.full((), scale / larger, dtype=rows.dtype, device=rows.device).sqrt()
    comparison = Comparison(labels, log_weights, larger, num_anchors, num_grads, with_sum, product_dtype)
    return rows * length, comparison
