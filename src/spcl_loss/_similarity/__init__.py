"""Similarities of all pairs of rows, reduced to a few numbers a row."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_loss._distributed import Ranks
from spcl_loss._numerics import PLAIN_SCALE, in_torch_func, unit_rows
from spcl_loss._similarity import dense
from spcl_loss._similarity.comparison import Comparison, Statistics
from spcl_loss._similarity.operator import similarity_statistics, uses_dense
from spcl_loss._similarity.sharded import statistics_of_all_ranks

__all__ = ["Comparison", "Statistics", "compare"]


def compare(
    blocks: tuple[Tensor, ...], comparison: Comparison, balanced: bool, impl: str, ranks: Ranks | None = None
) -> tuple[Statistics, Tensor]:
    """Statistics of each anchor's scores s_ij = scale * cos(rows_i, rows_j), without keeping the scores.

    Every row is a candidate of every other row.

    Args:
        blocks: (R, D) float32 or float64 rows of any length, in blocks. A row that is no candidate may hold anything.
        comparison: what is compared and what is wanted, with integer labels of any size and without weights.
        balanced: whether a candidate's weight as a negative is 1 / (size of its class), instead of 1.
        impl: "auto", "dense", "strips" or "triton"; decides how it is computed, never what.
        ranks: the ranks that share these rows, each of which computes a part; None for one process.

    Returns:
        Three tensors (A,), which mean nothing for an anchor that is no candidate:

        - negatives: the log-sum-exp of the weighted scores of the candidates with another label;
        - positives: the log-sum-exp of the scores of the other candidates with the same label;
        - the sum of the latter scores, if it is wanted.

        The logarithm of an empty sum is about `LOG_ZERO`.
        And (A,) the number of positives in the dtype of the rows, 0 for an anchor that is no candidate.
    """
    is_dense = uses_dense(impl, comparison)
    if is_dense and not balanced:
        return dense.statistics_of(blocks, comparison)
    kept = comparison.labels >= 0
    comparison, class_sizes = _with_places(comparison, kept, blocks[0].dtype if balanced else None)
    if is_dense:
        return dense.statistics_of(blocks, comparison)
    if in_torch_func():
        raise NotImplementedError(
            f'torch.func transforms need the dense backend; received impl={impl!r}. Pass impl="dense" or "auto"'
        )
    rows, anchors = torch.cat(blocks), slice(comparison.num_anchors)
    num_positives = (class_sizes[anchors] - 1).to(rows.dtype) * kept[anchors]
    if ranks is not None:
        return statistics_of_all_ranks(rows, comparison, impl, ranks), num_positives
    rows = unit_rows(rows, kept)
    if torch.compiler.is_compiling():
        rows, comparison = _at_one_of_few_scales(rows, comparison)
    return similarity_statistics(rows, comparison, impl), num_positives


def _with_places(comparison: Comparison, kept: Tensor, weights_dtype: torch.dtype | None) -> tuple[Comparison, Tensor]:
    """The comparison with int32 labels and, if there is a dtype for them, balanced weights; (R,) the class sizes.

    The new labels are places among the sorted ones: kernels compare 32 bits in one instruction.
    """
    # Built anew here and below: compiled code of PyTorch 2.6 knows neither `_replace` nor slices of named tuples.
    labels, _, scale, num_anchors, num_grads, with_sum, product_dtype = comparison
    ordered = labels.sort().values
    places = torch.searchsorted(ordered, labels, out_int32=True)
    class_sizes = torch.searchsorted(ordered, labels, right=True, out_int32=True) - places
    log_weights = None if weights_dtype is None else -class_sizes.to(weights_dtype).log()
    labels = places.masked_fill(~kept, -1)
    return Comparison(labels, log_weights, scale, num_anchors, num_grads, with_sum, product_dtype), class_sizes


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
