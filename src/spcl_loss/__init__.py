"""Supervised Prototypical Contrastive Learning (SPCL, EMNLP 2022) for any PyTorch training loop."""

from spcl_loss.curriculum import DifficultyCurriculumSampler
from spcl_loss.difficulty import prototype_difficulty, prototype_difficulty_blocks
from spcl_loss.loss import supervised_prototypical_contrastive_loss
from spcl_loss.memory import PrototypeMemory
from spcl_loss.methods import METHODS
from spcl_loss.module import SupervisedPrototypicalContrastiveLoss

__version__ = "0.2.0"

__all__ = [
    "METHODS",
    "DifficultyCurriculumSampler",
    "PrototypeMemory",
    "SupervisedPrototypicalContrastiveLoss",
    "prototype_difficulty",
    "prototype_difficulty_blocks",
    "supervised_prototypical_contrastive_loss",
]
