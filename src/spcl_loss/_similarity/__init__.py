"""The similarity operator, and the one place that chooses how it is computed."""

from __future__ import annotations

from torch import Tensor

from spcl_loss._similarity import dense

IMPLEMENTATIONS = ("auto", "dense")


def contrast_statistics(
    rows: Tensor,
    labels: Tensor,
    log_weights: Tensor | None,
    *,
    scale: float,
    num_anchors: int,
    with_sum: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss needs to know of the scores s_ij = scale * <rows_i, rows_j>, per anchor, without keeping them.

    Every row is a candidate of every other one; the first `num_anchors` rows are anchors too.

    Args:
        rows: (R, D) float32 or float64, of unit length.
        labels: (R,) int64. A row with a negative label is no candidate, and its own statistics mean nothing.
        log_weights: (R,) added to the score of a candidate where it is a negative; None for zeros.
        scale: factor from inner product to score.
        num_anchors: A <= R.
        with_sum: whether the third statistic is wanted; zeros otherwise.
        impl: one of `IMPLEMENTATIONS`; says how, never what.

    Returns:
        Three tensors (A,): the log-sum-exp of the weighted scores of the candidates with another label (negatives),
        the log-sum-exp of the scores of the other candidates with the same label (positives), and the sum of the
        latter scores. An empty log-sum-exp is `dense.LOG_ZERO` or less.
    """
    return dense.contrast_statistics(rows, labels, log_weights, scale, num_anchors, with_sum)
