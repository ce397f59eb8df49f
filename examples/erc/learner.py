"""What learns: the model and its average, the loss with its memory, and the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .encoder import EmotionModel
from .objectives import build_criterion
from .settings import Settings


class Learner:
    """What an update changes.

    Attributes:
        model: as it is trained, wrapped for several processes where there are several.
        criterion: the contrastive loss; its memory is the nearest-prototype head.
    """

    def __init__(self, settings: Settings, backbone: Any, num_classes: int, accelerator: Accelerator) -> None:
        self.accelerator, self.clip_norm = accelerator, settings.clip_norm
        model = EmotionModel(
            backbone,
            num_classes,
            head_trains_encoder=settings.head_trains_encoder,
            learns_prototypes=settings.learns_prototypes,
        )
        if settings.freeze_embeddings:
            model.freeze_embeddings()
        criterion = build_criterion(
            settings, num_classes, model.width, gather_distributed=accelerator.num_processes > 1
        )
        optimizer = torch.optim.AdamW(model.parameter_groups(settings), fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.criterion = criterion.to(accelerator.device)
        self.average: AveragedModel | None = None
        if settings.average:
            # a copy of the weights, which follows them; the first update makes both equal
            self.average = AveragedModel(self.unwrapped, multi_avg_fn=get_ema_multi_avg_fn(settings.average))

    @property
    def unwrapped(self) -> EmotionModel:
        """The trained model itself."""
        model: EmotionModel = self.accelerator.unwrap_model(self.model)
        return model

    @property
    def scored(self) -> torch.nn.Module:
        """The model that is scored and kept."""
        return self.model if self.average is None else self.average.module

    def parts(self) -> dict[str, Any]:
        """What a run continues from, by name; all processes hold it alike."""
        parts = {"model": self.unwrapped, "optimizer": self.optimizer, "criterion": self.criterion}
        only_sometimes = {"scaler": self.accelerator.scaler, "average": self.average}  # the scaler: fp16
        return parts | {name: part for name, part in only_sometimes.items() if part is not None}

    def update(self, rate_factor: float) -> None:
        """Moves the weights by their gradients, at `rate_factor` times the full learning rates."""
        updates = self.accelerator.sync_gradients  # else only accumulates, and Accelerate's optimizer does nothing
        if updates:
            self.accelerator.clip_grad_norm_(self.unwrapped.backbone.parameters(), self.clip_norm)
            # apart, so that neither part's gradients scale the other's down
            others = [value for name, value in self.unwrapped.named_parameters() if not name.startswith("backbone.")]
            torch.nn.utils.clip_grad_norm_(others, self.clip_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = group["full_rate"] * rate_factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        if updates and self.average is not None:
            self.average.update_parameters(self.unwrapped)
