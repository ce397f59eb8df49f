"""The settings of the loss: their types, their checks, and the published methods as settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch.distributed as dist

from spcl_loss._checks import check_bool, check_choice, check_ignore_index, check_number

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
        # At the minimum a float32 score has no digit after its point.
        check_number("temperature", self.temperature, minimum=1e-6)
        if self.easy_threshold is not None:
            check_number("easy_threshold", self.easy_threshold)
        check_ignore_index(self.ignore_index)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_bool("prototype_anchors", self.prototype_anchors)
        check_bool("gather_distributed", self.gather_distributed)


_OPTIONS: dict[str, dict[str, Any]] = {
    # Song et al. 2022. The authors' code adds easy_threshold=0.3, the paper does not.
    "spcl": {"similarity": "shifted_cosine", "positives": "inside", "contrast": "all"},
    "spdcl": {"similarity": "shifted_cosine", "positives": "outside", "contrast": "negatives", "easy_threshold": 0.0},
    # Khosla et al. 2020, L_out.
    "supcon": {"similarity": "cosine", "positives": "outside", "contrast": "all"},
    # Zhu et al. 2022.
    "bcl": {"similarity": "cosine", "positives": "outside", "contrast": "class_balanced"},
    # Yu et al. 2024, the contrastive term.
    "eacl": {
        "similarity": "shifted_cosine",
        "positives": "inside",
        "contrast": "all",
        "easy_threshold": 0.0,
        "prototype_anchors": True,
    },
}
METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {method: MappingProxyType(options) for method, options in _OPTIONS.items()}
)
"""Options of the loss by method: "spcl", "spdcl", "supcon", "bcl", "eacl" (its contrastive term).

Pass them on, as in ``SupervisedPrototypicalContrastiveLoss(7, 768, **METHODS["spdcl"])``; the function takes them too.
They cannot be changed: ``dict(METHODS["spdcl"])`` is a copy that can, and that can be pickled.
The options do not choose the prototypes. SPCL and SPDCL draw them from a memory, as the module does. BCL and EACL learn
them: pass `prototypes` in each call. SupCon has none: use the function, since the module would add its own. Sources:
Song et al. 2022 (SPCL, SPDCL), Khosla et al. 2020, Zhu et al. 2022, Yu et al. 2024.
"""
