"""What trains the encoder and what trains the head, and how fast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spcl_loss import SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss

from .settings import Settings

# The library's settings for each method, of EACL its contrastive term. SupCon compares the batch with itself only, BCL
# and EACL learn their prototypes and cross-entropy contrasts nothing, but all keep a memory: its centroids are their
# nearest-prototype head. BCL's and SupCon's plain cosine at 0.1 is the shifted cosine at 0.05.
EQUATIONS: dict[str, dict[str, Any]] = {
    "spcl": {"positives": "inside", "contrast": "all"},
    "spdcl": {"positives": "outside", "contrast": "negatives", "easy_threshold": 0.0},
    "supcon": {"positives": "outside", "contrast": "all"},
    "bcl": {"positives": "outside", "contrast": "class_balanced"},
    "eacl": {"positives": "inside", "contrast": "all", "easy_threshold": 0.0, "prototype_anchors": True},
    "ce": {},
}


def build_criterion(
    settings: Settings, num_classes: int, embedding_dim: int, *, gather_distributed: bool
) -> SupervisedPrototypicalContrastiveLoss:
    """The loss with its memory."""
    equation = dict(EQUATIONS[settings.objective])
    if settings.easy_threshold is not None:
        equation["easy_threshold"] = settings.easy_threshold
    if settings.contrast != "own":
        equation["contrast"] = settings.contrast
    if settings.prototype_anchors:
        equation["prototype_anchors"] = True
    return SupervisedPrototypicalContrastiveLoss(
        num_classes,
        embedding_dim,
        temperature=settings.temperature,
        queue_size=settings.queue_size,
        support_size=settings.support_size,
        seed=settings.seed,
        gather_distributed=gather_distributed,
        **equation,
    )


def losses(
    settings: Settings,
    criterion: SupervisedPrototypicalContrastiveLoss,
    features: Tensor,
    scores: Tensor,
    labels: Tensor,
    learned: Tensor | None = None,
) -> Tensor:
    """(2,) the contrastive loss of `features` (N, D), and the cross-entropy of the head's `scores` (N, C).

    `learned` (C, D): the prototypes, where the settings have them learned.
    """
    head_loss = torch.nn.functional.cross_entropy(scores, labels)
    if settings.prototype_kind == "queue":
        return torch.stack([criterion(features, labels), head_loss])
    with torch.no_grad():
        criterion(features, labels)  # fills the memory, whose means are the nearest-prototype head
    if settings.objective == "ce":
        contrastive_loss = torch.zeros_like(head_loss)
    else:
        contrastive_loss = supervised_prototypical_contrastive_loss(
            features, labels, learned, **criterion._options()._asdict()
        )
    return torch.stack([contrastive_loss, head_loss])


def rate_factor(settings: Settings, update: int, epoch: int, epoch_share: float) -> float:
    """What the learning rates are multiplied with: a pure function of the place in the run, so nothing to resume."""
    rise = min(1.0, (update + 1) / settings.warmup) if settings.warmup else 1.0
    done = (epoch + epoch_share) / settings.epochs
    fall = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "restarts": (1 + math.cos(math.pi * epoch_share)) / 2,
        "linear": 1 - done,
        "constant": 1.0,
    }
    return rise * fall[settings.schedule]
