"""What trains the encoder and what trains the head, and how fast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spcl_loss import SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss

from .settings import Settings

# The library's settings for each method. SupCon compares the batch with itself only and cross-entropy contrasts
# nothing, but both keep a memory: its centroids are their nearest-prototype head.
EQUATIONS: dict[str, dict[str, Any]] = {
    "spcl": {"positives": "inside", "contrast": "all"},
    "spdcl": {"positives": "outside", "contrast": "negatives", "easy_threshold": 0.0},
    "supcon": {"positives": "outside", "contrast": "all"},
    "ce": {},
}


def build_criterion(
    settings: Settings, num_classes: int, embedding_dim: int, *, gather_distributed: bool
) -> SupervisedPrototypicalContrastiveLoss:
    """The loss with its memory."""
    equation = dict(EQUATIONS[settings.objective])
    if settings.easy_threshold is not None:
        equation["easy_threshold"] = settings.easy_threshold
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
    objective: str, criterion: SupervisedPrototypicalContrastiveLoss, features: Tensor, scores: Tensor, labels: Tensor
) -> Tensor:
    """(2,) the contrastive loss of `features` (N, D), and the cross-entropy of the head's `scores` (N, C)."""
    head_loss = torch.nn.functional.cross_entropy(scores, labels)
    if objective == "ce":
        return torch.stack([torch.zeros_like(head_loss), head_loss])
    if objective == "supcon":
        contrastive_loss = supervised_prototypical_contrastive_loss(features, labels, **criterion.options)
    else:
        contrastive_loss = criterion(features, labels)
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
