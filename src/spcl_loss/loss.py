"""The equations, as a function: one loss of which SPCL, SPDCL, SupCon, BCL and EACL's term are settings."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spcl_loss._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_floating,
    check_int,
    check_labels,
    check_mask,
    check_number,
    check_size,
)
from spcl_loss._distributed import Batch, gather_batch, refusing_together, world_size
from spcl_loss._numerics import computed_dtype, full_precision, product_dtype, unit_rows
from spcl_loss._similarity import (
    Contrast,
    Statistics,
    contrast_statistics,
    divide,
    sharded_statistics,
    uses_dense,
)

Similarity = Literal["shifted_cosine", "cosine"]
Positives = Literal["inside", "outside"]
ContrastKind = Literal["all", "negatives", "class_balanced"]
Reduction = Literal["mean", "sum", "none"]
Impl = Literal["auto", "dense", "strips", "triton"]

_CHOICES = {
    "similarity": get_args(Similarity),
    "positives": get_args(Positives),
    "contrast": get_args(ContrastKind),
    "reduction": get_args(Reduction),
    "impl": get_args(Impl),
}


class Options(NamedTuple):
    """The settings of the loss that are not tensors: see `supervised_prototypical_contrastive_loss`."""

    temperature: float
    similarity: Similarity
    positives: Positives
    contrast: ContrastKind
    easy_threshold: float | None
    prototype_anchors: bool
    ignore_index: int
    reduction: Reduction
    process_group: dist.ProcessGroup | None
    gather_distributed: bool
    impl: Impl

    def check(self) -> None:
        """Raises where an option has a value that it cannot have."""
        check_number("temperature", self.temperature, minimum=0)
        if self.easy_threshold is not None:
            check_number("easy_threshold", self.easy_threshold)
        check_int("ignore_index", self.ignore_index)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)


def supervised_prototypical_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None = None,
    *,
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

    The candidates of anchor i are the other rows of the batch and the prototypes; its positives P(i) are the n_i
    candidates with its label. With scores s_ij the loss of anchor i is ``denominator - numerator``, where:

        numerator    "inside"          log( sum_{p in P(i)} exp(s_ip) / n_i )
                     "outside"         sum_{p in P(i)} s_ip / n_i
        denominator  "all"             log sum_j exp(s_ij)                over all candidates
                     "negatives"       log sum_j exp(s_ij)                over those with another label
                     "class_balanced"  log sum_j exp(s_ij) / w_ij         over all candidates, w_ij being how many
                                       candidates share j's class, the anchor counted, less one for a positive

    Anchors with no positive do not count, nor do, with ``contrast="negatives"``, those with no negative. Where no
    anchor counts the loss is a zero with a gradient graph. A NaN or an infinity in a row that counts makes it NaN.

    Args:
        embeddings: (N, D) floating, any strides and any scale: rows are normalised here. Half precision is computed
            in float32.
        labels: (N,) integer classes; a row labelled `ignore_index` is neither anchor nor candidate.
        prototypes: (C, D), row c standing for class c; gradients reach it where it requires them. None for a loss
            over the batch alone.
        temperature: divides the similarity.
        similarity: "cosine" for cos, "shifted_cosine" for (1 + cos) / 2, which is the authors' choice: its temperature
            0.05 is 0.10 on the plain cosine.
        positives: "inside" or "outside" the logarithm.
        contrast: "all", "negatives" or "class_balanced".
        easy_threshold: leaves out anchors whose loss is not above it. None keeps all.
        prototype_anchors: whether prototypes are anchors too, behind the rows of the batch.
        prototype_mask: (C,) bool, which prototypes exist. None for all.
        class_weights: (C,) weight of an anchor by its label.
        sample_weight: (N,) weight of an anchor; that of a prototype is 1.
        ignore_index: the label of rows to leave out.
        reduction: "mean" is weighted, sum of w_i loss_i over sum of w_i, as in `torch.nn.functional.cross_entropy`;
            "sum" is the sum of w_i loss_i; "none" gives w_i loss_i for each anchor, zero for those that do not count.
        process_group: the ranks of `gather_distributed`. None for all.
        gather_distributed: whether the rows of all ranks form one batch. The loss is then the same on every rank, and
            the gradients of parameters, prototypes included, become those of a single process when DDP or FSDP
            averages them. False: the local loss, over this rank's rows only, whose average is another loss.
        impl: "auto", or the backend to use: "dense", "strips" or "triton"; results are the same.

    Returns:
        A scalar, or with ``reduction="none"`` a vector (N,), or (N + C,) with `prototype_anchors`. Float64 for float64
        embeddings, else float32.

    Raises:
        TypeError: an argument is no tensor or has the wrong kind of dtype.
        ValueError: a shape, a device, a label or an option does not fit; the message says what would.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.1], [0.9, 0.0], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> prototypes = torch.eye(2)
        >>> loss = supervised_prototypical_contrastive_loss(embeddings, labels, prototypes, temperature=0.1)
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
    batch = checked_batch(embeddings, labels, prototypes, prototype_mask, class_weights, sample_weight, options)
    return loss_of_batch(batch, prototypes, prototype_mask, class_weights, options)


def checked_batch(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    prototype_mask: Tensor | None,
    class_weights: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
    embedding_dim: int | None = None,
) -> Batch:
    """The rows to compare, those of all ranks with `gather_distributed`, once the arguments are known to fit."""
    group = options.process_group
    shared = options.gather_distributed and world_size(group) > 1
    together = shared and not torch.compiler.is_compiling()  # a graph cannot carry what is sent after an error
    with refusing_together(group) if together else nullcontext():
        options.check()
        tensors = embeddings, labels, prototypes, prototype_mask, class_weights, sample_weight
        _check_tensors(*tensors, options.ignore_index, embedding_dim)
        if options.prototype_anchors and prototypes is None:
            raise ValueError(
                "prototype_anchors=True needs prototypes; received prototypes=None. Pass them or set it False"
            )
    if not shared:
        return Batch(embeddings, labels, sample_weight, embeddings)
    settings: dict[str, object] = options._asdict()
    del settings["process_group"]  # a handle, different on every rank
    settings["shape of prototypes"] = None if prototypes is None else tuple(prototypes.shape)
    settings["requires_grad of prototypes"] = prototypes is not None and prototypes.requires_grad
    return gather_batch(embeddings, labels, sample_weight, group, settings)


def loss_of_batch(
    batch: Batch,
    prototypes: Tensor | None,
    prototype_mask: Tensor | None,
    class_weights: Tensor | None,
    options: Options,
) -> Tensor:
    """The loss of rows that are known to fit; `options` are the function's."""
    embeddings = batch.embeddings
    with full_precision(embeddings.device.type):
        classes = _classes(batch.labels, prototypes, prototype_mask, options.ignore_index)
        num_anchors = classes.shape[0] if options.prototype_anchors else embeddings.shape[0]
        class_sizes = _class_sizes(classes)
        balanced = options.contrast == "class_balanced"
        contrast = Contrast(
            labels=classes,
            log_weights=-class_sizes.to(computed_dtype(embeddings)).log() if balanced else None,
            scale=_score_scale(options.similarity, options.temperature),
            num_anchors=num_anchors,
            num_grads=classes.shape[0] if prototypes is not None and prototypes.requires_grad else num_anchors,
            with_sum=options.positives == "outside",
            product_dtype=product_dtype(embeddings),
        )
        statistics = _statistics(batch, prototypes, contrast, options.impl)
        losses, counted = _anchor_losses(statistics, classes, class_sizes, options.positives, options.contrast)
        if options.easy_threshold is not None:
            counted = counted & ~(losses <= options.easy_threshold)  # not `>`: a NaN has to come through
        weights = _anchor_weights(losses, classes[:num_anchors], class_weights, batch.sample_weight)
        return _reduce(losses, counted, weights, options.reduction)


def _score_scale(similarity: str, temperature: float) -> float:
    """Factor from cosine to score. The constant 0.5 / temperature of the shifted cosine cancels in every loss."""
    return (0.5 if similarity == "shifted_cosine" else 1.0) / temperature


def _classes(labels: Tensor, prototypes: Tensor | None, prototype_mask: Tensor | None, ignore_index: int) -> Tensor:
    """(R,) the class of each row of batch and prototypes, -1 marking those that are no candidates."""
    classes = labels.long()
    classes = torch.where(classes == ignore_index, -1, classes)
    if prototypes is None:
        return classes
    own_class = torch.arange(prototypes.shape[0], device=labels.device)
    if prototype_mask is not None:
        own_class = torch.where(prototype_mask, own_class, -1)
    return torch.cat([classes, own_class])


def _candidates(embeddings: Tensor, prototypes: Tensor | None, classes: Tensor) -> Tensor:
    """(R, D) unit rows of batch and prototypes."""
    rows = embeddings.to(computed_dtype(embeddings))
    if prototypes is not None:
        rows = torch.cat([rows, prototypes.to(rows.dtype)])
    # What a row that is no candidate holds, NaN included, must not reach the gradients of the others.
    return unit_rows(rows.masked_fill(classes[:, None] < 0, 0))


def _statistics(batch: Batch, prototypes: Tensor | None, contrast: Contrast, impl: str) -> Statistics:
    """The statistics of all anchors; with several ranks each computes its own where that pays."""
    classes = contrast.labels
    if batch.ranks is None or uses_dense(impl, classes.shape[0], classes.device, computed_dtype(batch.embeddings)):
        return contrast_statistics(_candidates(batch.embeddings, prototypes, classes), contrast, impl)
    shares = divide(
        batch.ranks,
        0 if prototypes is None else prototypes.shape[0],
        classes.device,
        prototype_grads=prototypes is not None and prototypes.requires_grad,
        prototype_anchors=contrast.num_anchors == classes.shape[0],
    )
    own_prototypes = None if prototypes is None else prototypes[shares.own_prototypes]
    own_rows = _candidates(batch.own_embeddings, own_prototypes, classes[shares.own])
    with torch.no_grad():
        rows = _candidates(batch.embeddings, prototypes, classes)
    return sharded_statistics(own_rows, rows, contrast, shares, impl)


def _anchor_losses(
    statistics: tuple[Tensor, Tensor, Tensor], classes: Tensor, class_sizes: Tensor, positives: str, contrast: str
) -> tuple[Tensor, Tensor]:
    """Loss of each anchor (A,), and whether it has what it takes to count (A,)."""
    negative_lse, positive_lse, positive_sum = statistics
    num_anchors = negative_lse.shape[0]
    num_positives = class_sizes[:num_anchors] - 1
    counted = (classes[:num_anchors] >= 0) & (num_positives > 0)
    divisor = num_positives.clamp_min(1).to(negative_lse.dtype)
    positive_mean = positive_lse - divisor.log()
    numerator = positive_mean if positives == "inside" else positive_sum / divisor
    if contrast == "negatives":
        num_candidates = (classes >= 0).sum()
        return negative_lse - numerator, counted & (class_sizes[:num_anchors] < num_candidates)
    positive_part = positive_mean if contrast == "class_balanced" else positive_lse
    # log(exp(negative) + exp(positive)) - numerator. Unlike logaddexp, softplus has a finite second derivative
    # everywhere; it is linear above its threshold, beyond the digits of float64.
    excess = nn.functional.softplus(negative_lse - positive_part, threshold=50)
    if positives == "outside":
        return excess + (positive_part - numerator), counted
    # Here positive_part - numerator is a constant. Computed from both, its gradients +1 and -1 would round away the
    # small gradient of the excess.
    return excess if contrast == "class_balanced" else excess + divisor.log(), counted


def _class_sizes(classes: Tensor) -> Tensor:
    """How many rows share each row's class; by sorting, since the number of classes may be unknown or huge."""
    ordered = classes.sort().values
    return torch.searchsorted(ordered, classes, right=True) - torch.searchsorted(ordered, classes)


def _anchor_weights(
    losses: Tensor, classes: Tensor, class_weights: Tensor | None, sample_weight: Tensor | None
) -> Tensor | None:
    if class_weights is None and sample_weight is None:
        return None
    weights = torch.ones_like(losses)
    if sample_weight is not None:
        prototypes = losses.shape[0] - sample_weight.shape[0]
        weights = nn.functional.pad(sample_weight.to(losses.dtype), (0, prototypes), value=1.0)
    if class_weights is not None:
        weights = weights * class_weights.to(losses.dtype)[classes.clamp_min(0)]
    return weights


def _reduce(losses: Tensor, counted: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    weighted = (losses if weights is None else losses * weights).masked_fill(~counted, 0)
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    if weights is None:
        return weighted.sum() / counted.sum().clamp_min(1)
    total_weight = weights.masked_fill(~counted, 0).sum()
    return weighted.sum() / total_weight.masked_fill(total_weight == 0, 1)


def _check_tensors(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    prototype_mask: Tensor | None,
    class_weights: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    embedding_dim: int | None,
) -> None:
    check_embeddings(embeddings, embedding_dim)
    rows, width = embeddings.shape
    check_size("the width of embeddings", width)
    num_classes = None
    if class_weights is not None:
        check_floating("class_weights", class_weights, ("C",))
        check_device("class_weights", class_weights, "embeddings", embeddings.device)
        num_classes = class_weights.shape[0]
    if prototypes is not None:
        check_floating("prototypes", prototypes, ("C" if num_classes is None else num_classes, width))
        check_device("prototypes", prototypes, "embeddings", embeddings.device)
        num_classes = prototypes.shape[0]
    if prototype_mask is not None:
        check_mask("prototype_mask", prototype_mask, num_classes if prototypes is not None else None)
        check_device("prototype_mask", prototype_mask, "embeddings", embeddings.device)
    if sample_weight is not None:
        check_floating("sample_weight", sample_weight, (rows,))
        check_device("sample_weight", sample_weight, "embeddings", embeddings.device)
    check_labels(labels, rows, embeddings.device, num_classes, ignore_index)
