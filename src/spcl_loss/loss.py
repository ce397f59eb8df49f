"""The equations, as a function: one loss of which SPCL, SPDCL, SupCon, BCL and EACL's term are settings."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spcl_loss._checks import check_device, check_embeddings, check_floating, check_mask, checked_labels
from spcl_loss._distributed import Batch, gather_batch, refusing, several_ranks
from spcl_loss._numerics import computed_dtype, product_dtype, without_autocast
from spcl_loss._similarity import Comparison, Statistics, compare
from spcl_loss.methods import ContrastKind, Impl, Options, Positives, Reduction, Similarity


def supervised_prototypical_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None = None,
    *,
    candidates: Tensor | None = None,
    candidate_labels: Tensor | None = None,
    temperature: float = 0.05,
    similarity: Similarity = "shifted_cosine",
    positives: Positives = "inside",
    contrast: ContrastKind = "all",
    easy_threshold: float | None = None,
    prototype_anchors: bool = False,
    prototype_mask: Tensor | None = None,
    class_weights: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: dist.ProcessGroup | None = None,
    gather_distributed: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    r"""Supervised contrastive loss of a batch in which class prototypes are candidates too.

    The candidates of anchor i are the other rows of the batch, the prototypes, and the rows of `candidates`. Its
    positives P(i) are the n_i candidates with its label. With scores s_ij the loss of anchor i is
    ``denominator - numerator``, where:

        numerator    "inside"          log( sum_{p in P(i)} exp(s_ip) / n_i )
                     "outside"         sum_{p in P(i)} s_ip / n_i
        denominator  "all"             log sum_j exp(s_ij)         over all candidates
                     "negatives"       log sum_j exp(s_ij)         over those of other classes
                     "class_balanced"  log sum_j exp(s_ij) / w_ij  over all candidates

    In the last line w_ij is the number of rows, prototypes and further candidates of j's class, the anchor included. It
    is less by one where j is a positive.

    An anchor without a positive does not count. With ``contrast="negatives"`` an anchor without a negative does not
    count either. If no anchor counts, the loss is zero and can still be differentiated. A NaN or an infinity in a row
    that is not ignored makes the loss NaN, and with ``reduction="none"`` that of every anchor compared with it. Only
    where there is no other candidate may the loss be zero all the same.

    Args:
        embeddings: (N, D) floating, any strides and any scale: rows are normalised here. The loss of half precision
            rows is computed in float32. Views (N, V, D) are flattened first: ``embeddings.flatten(0, 1)`` with
            ``labels.repeat_interleave(V)``.
        labels: (N,) integer classes from 0 on, of any size. A row labelled `ignore_index` is neither anchor nor
            candidate.
        prototypes: (C, D), row c is the prototype of class c. May require a gradient. None for a loss over the batch
            alone.
        candidates: (M, D) further candidates of known class, such as the entries of a memory, or several prototypes
            of a class. They are never anchors. May require a gradient.
        candidate_labels: (M,) integer classes of the candidates. A row labelled `ignore_index` is no candidate.
        temperature: divides the similarity.
        similarity: "cosine" for cos, or "shifted_cosine" for (1 + cos) / 2, the authors' choice. A temperature of 0.05
            for the shifted cosine equals 0.10 for the plain one.
        positives: "inside" or "outside" the logarithm.
        contrast: "all", "negatives" or "class_balanced".
        easy_threshold: leaves out anchors whose loss is not above it. None keeps all.
        prototype_anchors: whether prototypes are anchors too. They follow the rows of the batch.
        prototype_mask: (C,) bool, which prototypes exist. None for all.
        class_weights: (C,) weight of an anchor by its label.
        sample_weight: (N,) weight of an anchor; that of a prototype is 1.
        ignore_index: the label of rows to leave out.
        reduction: "mean" is weighted, sum of w_i loss_i over sum of w_i, as in `torch.nn.functional.cross_entropy`;
            "sum" is the sum of w_i loss_i; "none" gives w_i loss_i for each anchor, zero for those that do not count.
        process_group: the ranks of `gather_distributed`. None for all.
        gather_distributed: whether the rows of all ranks form one batch. The loss is then the same on every rank, and
            the gradients of parameters, prototypes included, become those of a single process when DDP or FSDP
            averages them. Prototypes and candidates must be the same on all ranks. False: the loss over this rank's
            rows only. The average of those over the ranks is another loss.
        impl: "auto", or the backend to use: "dense", "strips" or "triton"; results are the same.

    Returns:
        A scalar, or with ``reduction="none"`` a vector (N,), or (N + C,) with `prototype_anchors`. Float64 for float64
        embeddings, else float32.

    Raises:
        TypeError: an argument is no tensor or has the wrong kind of dtype.
        ValueError: a shape, a device, a label or an option does not fit; the message says what would.

    Examples:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.1], [0.9, 0.0], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> prototypes = torch.eye(2)
        >>> loss = supervised_prototypical_contrastive_loss(
        ...     embeddings, labels, prototypes, temperature=0.1
        ... )
        >>> print(f"{loss:.4f}")
        0.4762

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, equations 3 to 6.
    """
    options = Options(
        temperature, similarity, positives, contrast, easy_threshold, prototype_anchors, ignore_index, reduction,
        process_group, gather_distributed, impl,
    )  # fmt: skip
    batch = Batch(
        embeddings, labels, prototypes, prototype_mask, candidates, candidate_labels, class_weights, sample_weight
    )
    with refusing(options):
        batch = checked_batch(batch, options)
    if several_ranks(options):
        batch = gather_batch(batch, options, {}, {})
    return loss_of_batch(batch, options)


def loss_of_batch(batch: Batch, options: Options) -> Tensor:
    """The loss of a checked batch: that of all ranks if they share it."""
    with without_autocast(batch.embeddings.device.type):
        losses, counted, labels, _ = losses_of_anchors(batch, options)
        weights = _anchor_weights(losses, labels, batch)
        return _reduce(losses, counted, weights, options.reduction)


def losses_of_anchors(batch: Batch, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(A,) losses, (A,) which of them count, (R,) labels of all candidates, (A,) numbers of positives."""
    labels = _labels_of_candidates(batch)
    comparison, balanced = _comparison(batch, labels, options), options.contrast == "class_balanced"
    dtype = computed_dtype(batch.embeddings)
    blocks = (rows.to(dtype) for rows in (batch.embeddings, batch.prototypes, batch.candidates) if rows is not None)
    statistics, num_positives = compare(tuple(blocks), comparison, balanced, options.impl, batch.ranks)
    losses, counted = _anchor_losses(statistics, num_positives, labels, options)
    if options.easy_threshold is not None:
        counted = counted & ~(losses <= options.easy_threshold)  # a NaN counts
    return losses, counted, labels, num_positives


def _labels_of_candidates(batch: Batch) -> Tensor:
    """(R,) class of each row of the batch, each prototype, each further candidate; -1 for those that are left out."""
    pieces = [batch.labels]
    if batch.prototypes is not None:
        own_class = torch.arange(batch.prototypes.shape[0], device=batch.labels.device)
        mask = batch.prototype_mask
        pieces.append(own_class if mask is None else own_class.masked_fill(~mask, -1))
    if batch.candidate_labels is not None:
        pieces.append(batch.candidate_labels)
    return torch.cat(pieces)


def _comparison(batch: Batch, labels: Tensor, options: Options) -> Comparison:
    num_rows = batch.embeddings.shape[0]
    with_prototypes = num_rows + (0 if batch.prototypes is None else batch.prototypes.shape[0])
    num_anchors = with_prototypes if options.prototype_anchors else num_rows
    num_grads = num_anchors
    if batch.candidates is not None and batch.candidates.requires_grad:
        num_grads = labels.shape[0]
    elif batch.prototypes is not None and batch.prototypes.requires_grad:
        num_grads = with_prototypes
    # The constant 0.5 / temperature of the shifted cosine cancels in every loss.
    factor = 0.5 if options.similarity == "shifted_cosine" else 1.0
    return Comparison(
        labels=labels,
        log_weights=None,
        scale=factor / options.temperature,
        num_anchors=num_anchors,
        num_grads=num_grads,
        with_sum=options.positives == "outside",
        product_dtype=product_dtype(batch.embeddings),
    )


def _anchor_losses(
    statistics: Statistics, num_positives: Tensor, labels: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """Loss of each anchor (A,), and which count (A,): those with a positive and, if needed, with a negative."""
    negative_lse, positive_lse, positive_sum = statistics
    counted, divisor = num_positives >= 1, num_positives.clamp_min(1)
    inside, kind = options.positives == "inside", options.contrast
    if kind == "all" and inside:
        # Not as the difference of two terms, whose gradients +1 and -1 would round away the small gradient of the sum.
        return _log_excess(negative_lse, positive_lse) + divisor.log(), counted
    positive_mean = positive_lse - divisor.log()
    numerator = positive_mean if inside else positive_sum / divisor
    if kind == "negatives":
        num_candidates = (labels >= 0).sum()
        return negative_lse - numerator, counted & (num_positives + 1 < num_candidates)
    positive_part = positive_mean if kind == "class_balanced" else positive_lse
    excess = _log_excess(negative_lse, positive_part)
    return excess if inside else excess + (positive_part - numerator), counted


def _log_excess(negative: Tensor, positive: Tensor) -> Tensor:
    """log(exp(negative) + exp(positive)) - positive.

    Unlike logaddexp, softplus has a finite second derivative everywhere. It is linear above its threshold, beyond the
    digits of float64.
    """
    return nn.functional.softplus(negative - positive, threshold=50)


def _anchor_weights(losses: Tensor, labels: Tensor, batch: Batch) -> Tensor | None:
    """(A,) weight of each anchor; None where all have weight 1."""
    if batch.class_weights is None and batch.sample_weight is None:
        return None
    weights = torch.ones_like(losses)
    if batch.sample_weight is not None:
        prototypes = losses.shape[0] - batch.sample_weight.shape[0]
        weights = nn.functional.pad(batch.sample_weight.to(losses.dtype), (0, prototypes), value=1.0)
    if batch.class_weights is not None:
        weights = weights * batch.class_weights.to(losses.dtype)[labels[: losses.shape[0]].clamp_min(0)]
    return weights


def _reduce(losses: Tensor, counted: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    factors = counted if weights is None else weights.masked_fill(~counted, 0)
    weighted = losses * factors  # a product: the NaN of a row that is not finite passes on, counted or not
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    total = factors.sum()
    return weighted.sum() / (total.clamp_min(1) if weights is None else total.masked_fill(total == 0, 1))


def checked_batch(batch: Batch, options: Options, queue: Tensor | None = None) -> Batch:
    """The batch with labels of -1 for what is ignored. Raises where it, the options or the `queue` do not fit.

    `queue` is that of a memory, (C, M, D).
    """
    options.check()
    embeddings, prototypes, candidates = batch.embeddings, batch.prototypes, batch.candidates
    check_embeddings(embeddings, queue)
    rows, width = embeddings.shape
    num_classes = None if queue is None else queue.shape[0]
    if batch.class_weights is not None:
        check_floating("class_weights", batch.class_weights, ("C" if num_classes is None else num_classes,))
        num_classes = batch.class_weights.shape[0]
    if prototypes is not None:
        check_floating("prototypes", prototypes, ("C" if num_classes is None else num_classes, width))
        num_classes = prototypes.shape[0]
    elif options.prototype_anchors:
        raise ValueError("prototype_anchors=True needs prototypes; received prototypes=None. Pass them or set it False")
    if batch.prototype_mask is not None:
        check_mask("prototype_mask", batch.prototype_mask, None if prototypes is None else num_classes)
    if (candidates is None) != (batch.candidate_labels is None):
        missing = "candidates" if candidates is None else "candidate_labels"
        raise ValueError(f"candidates and candidate_labels belong together; received {missing}=None. Pass both")
    if candidates is not None:
        check_floating("candidates", candidates, ("M", width))
    if batch.sample_weight is not None:
        check_floating("sample_weight", batch.sample_weight, (rows,))
    for name, tensor in zip(Batch._fields, batch, strict=True):
        if isinstance(tensor, Tensor):
            check_device(name, tensor, "embeddings", embeddings.device)
    device, ignored, candidate_labels = embeddings.device, options.ignore_index, batch.candidate_labels
    labels = checked_labels(batch.labels, rows, device, num_classes, ignored)
    if candidates is not None and candidate_labels is not None:
        candidate_labels = checked_labels(
            candidate_labels, candidates.shape[0], device, num_classes, ignored, "candidate_labels"
        )
    return Batch(
        embeddings, labels, prototypes, batch.prototype_mask, candidates, candidate_labels, batch.class_weights,
        batch.sample_weight,
    )  # fmt: skip
