"""What the loss sees in a batch, in numbers that can be compared between batches, classes and epochs."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_loss._distributed import Batch
from spcl_loss._numerics import computed_dtype, normalised, without_autocast
from spcl_loss.loss import losses_of_anchors
from spcl_loss.memory import PrototypeMemory
from spcl_loss.methods import Options


@torch.no_grad()
def diagnose(batch: Batch, options: Options, memory: PrototypeMemory) -> dict[str, Tensor]:
    """See `SupervisedPrototypicalContrastiveLoss.diagnostics`; the batch has been checked and gathered."""
    with without_autocast(batch.embeddings.device.type):
        return {**_of_losses(batch, options, memory), **_of_rows(batch, memory), **_of_queues(batch, memory)}


def _of_losses(batch: Batch, options: Options, memory: PrototypeMemory) -> dict[str, Tensor]:
    losses, counts, labels, num_positives = losses_of_anchors(batch, options)
    anchors = labels[: losses.shape[0]]
    if options.contrast == "all":
        losses = losses - num_positives.clamp_min(1).log()
    counted = counts.to(losses.dtype)
    sums, sizes = (_by_class(values, anchors, memory) for values in (losses.masked_fill(~counts, 0), counted))
    return {
        "loss_above_floor": sums.sum() / sizes.sum(),
        "loss_above_floor_by_class": sums / sizes,
        "positives_per_anchor": num_positives.sum() / (anchors >= 0).sum(),
    }


def _of_rows(batch: Batch, memory: PrototypeMemory) -> dict[str, Tensor]:
    labels, kept = batch.labels, batch.labels >= 0
    rows, _ = normalised(batch.embeddings.to(computed_dtype(batch.embeddings)), kept)
    sums, sizes = _by_class(rows, labels, memory), _by_class(kept.to(rows.dtype), labels, memory)
    # The sum of the cosines of all pairs is the squared length of the sum of the rows; a row and itself is no pair.
    within, pairs_within = sums.square().sum() - rows.square().sum(), (sizes * (sizes - 1)).sum()
    everything, pairs = rows.sum(0).square().sum() - rows.square().sum(), sizes.sum() * (sizes.sum() - 1)
    pairs_between = pairs - pairs_within
    # Without a pair the sum is a rounding error, not zero.
    result = {
        "cosine_within": within / pairs_within.masked_fill(pairs_within == 0, torch.nan),
        "cosine_between": (everything - within) / pairs_between.masked_fill(pairs_between == 0, torch.nan),
    }
    if batch.prototypes is not None:
        absent = sizes == 0
        if batch.prototype_mask is not None:
            absent = absent | ~batch.prototype_mask
        prototypes, _ = normalised(batch.prototypes.to(rows.dtype))
        drift = 1 - (normalised(sums)[0] * prototypes).sum(1)
        result["prototype_drift"] = drift.masked_fill(absent, torch.nan)
    return result


def _of_queues(batch: Batch, memory: PrototypeMemory) -> dict[str, Tensor]:
    counts = memory.counts.to(computed_dtype(memory.queue))  # else the quotients have the default dtype
    rows = (batch.labels >= 0).sum().to(counts.dtype)
    steps = memory.cursors.sum() / rows.masked_fill(rows == 0, torch.nan)
    return {"queue_fill": counts / memory.queue_size, "queue_age": counts / memory.cursors * steps}


def _by_class(values: Tensor, labels: Tensor, memory: PrototypeMemory) -> Tensor:
    """(C, ...) sums of the values of each class; those with the label -1 belong to none."""
    C = memory.num_classes
    sums = values.new_zeros(C + 1, *values.shape[1:])
    return sums.index_add_(0, labels.masked_fill(labels < 0, C), values)[:C]
