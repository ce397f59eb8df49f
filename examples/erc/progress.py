"""How far a run has come, and how it shows it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm


@dataclass
class Progress:
    """How far a run has come: what a checkpoint needs beyond weights, memory, sampler and random states."""

    epoch: int = 0
    batch: int = 0  # within the epoch
    update: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums over the epoch's batches
    difficulty: dict[str, list[float]] = field(default_factory=dict)  # of the epoch, see `difficulty_counts`
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def dev_score(self, epoch: int, head: str) -> float:
        """Dev weighted-F1 after an epoch, counted from 1; nothing is worse than before the first."""
        return float(self.history[epoch - 1]["dev"][head]["weighted_f1"]) if epoch else -1.0


def summary(line: dict[str, Any], epochs: int) -> str:
    """An epoch in one line."""
    dev = {head: scores["weighted_f1"] for head, scores in line["dev"].items()}
    return (
        f"epoch {line['epoch']}/{epochs}: contrastive loss {line['contrastive_loss']:.3f}, head loss "
        f"{line['head_loss']:.3f}, dev weighted-F1 prototype {dev['prototype']:.4f} linear {dev['linear']:.4f}, "
        f"{line['seconds']:.0f} s"
    )


def progress_bar(*arguments: Any, shown: bool, **options: Any) -> tqdm[Any]:
    """A bar that goes when it is full, and that writes a line only every ten seconds where lines stay."""
    interval = 0.2 if sys.stderr.isatty() else 10
    delay = 0 if sys.stderr.isatty() else interval
    return tqdm(*arguments, leave=False, mininterval=interval, delay=delay, disable=not shown, **options)
