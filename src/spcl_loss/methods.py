"""The published methods, as settings of the loss: the only such table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_OPTIONS: dict[str, dict[str, Any]] = {
    # Song et al. 2022. The authors' code adds easy_threshold=0.3, the paper does not.
    "spcl": {"similarity": "shifted_cosine", "positives": "inside", "contrast": "all"},
    "spdcl": {
        "similarity": "shifted_cosine",
        "positives": "outside",
        "contrast": "negatives",
        "easy_threshold": 0.0,
    },
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

Pass them on, as in ``SupervisedPrototypicalContrastiveLoss(7, 768, **METHODS["bcl"])``; the function takes them too.
Where a method takes its prototypes from is not among them: SPCL and SPDCL draw them from a memory, BCL and EACL learn
them (pass `prototypes`), SupCon has none. Sources: Song et al. 2022 (SPCL, SPDCL), Khosla et al. 2020, Zhu et al. 2022,
Yu et al. 2024.
"""
