"""The equations in plain float64 loops, one pair at a time: what the library is measured against.

Nothing here is fast and nothing here imports spcl_loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def unit(vector: Tensor) -> Tensor:
    vector = vector.double()
    return vector / vector.norm() if vector.any() else vector


def anchor_losses(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None = None,
    *,
    candidates: Tensor | None = None,
    candidate_labels: Tensor | None = None,
    temperature: float = 0.05,
    similarity: str = "shifted_cosine",
    positives: str = "inside",
    contrast: str = "all",
    prototype_anchors: bool = False,
    prototype_mask: Tensor | None = None,
    ignore_index: int = -100,
    kept: dict | None = None,
) -> dict[int, Tensor]:
    """Loss of each anchor that has one; keys are batch rows 0..N-1, then N+c for the prototype of class c.

    Puts the scores by (anchor, candidate) and the losses by anchor into `kept`, with their gradients after a backward.
    """
    N = len(labels)
    vectors = {i: unit(embeddings[i]) for i in range(N) if labels[i] != ignore_index}
    classes = {i: int(labels[i]) for i in vectors}
    for c in range(0 if prototypes is None else len(prototypes)):
        if prototype_mask is None or prototype_mask[c]:
            vectors[N + c], classes[N + c] = unit(prototypes[c]), c
    anchors = [i for i in vectors if i < N or prototype_anchors]
    for m in range(0 if candidates is None else len(candidates)):
        if candidate_labels[m] != ignore_index:
            vectors["candidate", m], classes["candidate", m] = unit(candidates[m]), int(candidate_labels[m])

    losses = {}
    for i in anchors:
        scores = {}
        for j in vectors:
            if j != i:
                cosine = vectors[i] @ vectors[j]
                scores[j] = (cosine if similarity == "cosine" else (1 + cosine) / 2) / temperature
        same = [j for j in scores if classes[j] == classes[i]]
        if contrast == "negatives":
            terms = [scores[j].exp() for j in scores if classes[j] != classes[i]]
        elif contrast == "class_balanced":
            count = {j: sum(classes[k] == classes[j] for k in classes) - (j in same) for j in scores}
            terms = [scores[j].exp() / count[j] for j in scores]
        else:
            terms = [scores[j].exp() for j in scores]
        if same and terms:
            inside = positives == "inside"
            numerator = sum(scores[p].exp() if inside else scores[p] for p in same) / len(same)
            losses[i] = sum(terms).log() - (numerator.log() if inside else numerator)
            if kept is not None:
                kept |= {(i, j): score for j, score in scores.items()} | {i: losses[i]}
    for tensor in (kept or {}).values():
        tensor.retain_grad()
    return losses


def loss(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None = None,
    *,
    easy_threshold: float | None = None,
    class_weights: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    **equation: object,
) -> Tensor:
    """The reduced loss; "mean" divides by the summed weights of the anchors that count."""
    losses = anchor_losses(embeddings, labels, prototypes, **equation)
    if easy_threshold is not None:
        losses = {i: value for i, value in losses.items() if value > easy_threshold}
    N = len(labels)
    weights = {}
    for i in losses:
        weights[i] = 1.0 if sample_weight is None or i >= N else float(sample_weight[i])
        if class_weights is not None:
            weights[i] *= float(class_weights[int(labels[i]) if i < N else i - N])
    zero = 0.0 * embeddings.double().sum()  # keeps the graph where no anchor counts
    if reduction == "none":
        size = N + (len(prototypes) if equation.get("prototype_anchors") else 0)
        each = [weights[i] * losses[i] if i in losses else zero for i in range(size)]
        return torch.stack(each) if each else embeddings.double().sum(1)
    total = sum((weights[i] * losses[i] for i in losses), zero)
    return total / sum(weights.values()) if reduction == "mean" and sum(weights.values()) else total


def value_and_gradients(
    function: Callable[..., Tensor], embeddings: Tensor, labels: Tensor, prototypes: Tensor | None = None, **options
) -> list[Tensor]:
    """[loss, gradients of the embeddings, of the prototypes if any, of the candidates if any] of any loss function."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (embeddings, prototypes) if leaf is not None]
    arguments = list(leaves)
    if options.get("candidates") is not None:
        leaves.append(options["candidates"].detach().clone().requires_grad_())
        options = options | {"candidates": leaves[-1]}
    value = function(arguments[0], labels, *arguments[1:], **options)
    value.sum().backward()
    return [value.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def difficulty(embeddings: Tensor, labels: Tensor, centers: dict[int, Tensor]) -> list[float]:
    """d(z_i, own centre) / sum over the centres of d(z_i, centre), d = (1 - cos) / 2."""
    values = []
    for row, label in zip(embeddings, labels.tolist(), strict=True):
        distance = {c: float(1 - unit(row) @ unit(center)) / 2 for c, center in centers.items()}
        values.append(distance[label] / sum(distance.values()))
    return values


def keep_probability(difficulty: list[float], epoch: int, num_epochs: int) -> list[float]:
    """(1 - k/R) + (2k/R - 1) r/(n-1), r being the rank of a sample from easy to hard."""
    n, progress = len(difficulty), epoch / num_epochs
    easy_to_hard = sorted(range(n), key=lambda i: difficulty[i])
    probability = [0.0] * n
    for rank, i in enumerate(easy_to_hard):
        probability[i] = (1 - progress) + (2 * progress - 1) * rank / (n - 1)
    return probability
