"""The yardsticks: what one writes without a library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """SPCL's equation over a batch in plain dense PyTorch: log of the mean over positives, all candidates below."""
    rows = F.normalize(embeddings, dim=1)
    scores = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    denominator = scores.masked_fill(itself, float("-inf")).logsumexp(1)
    numerator = scores.masked_fill(~positive, -1e30).logsumexp(1) - count.clamp_min(1).log()
    counted = count > 0
    return (denominator - numerator).masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)


def three_products(embeddings: Tensor) -> None:
    """The floor of the dense computation: scores, and the two products of their gradient."""
    for _ in range(3):
        embeddings @ embeddings.T
