"""How hard each sample is: its distance from its own class's centre, against all centres."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from spcl_loss._checks import check_device, check_floating, check_indices, check_labels, check_mask, check_size
from spcl_loss._numerics import unit_rows

_BLOCK_ELEMENTS = 1 << 20  # what one block of rows may hold: a few MiB, so that it stays in cache
Block = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def prototype_difficulty(
    embeddings: Tensor, labels: Tensor, centers: Tensor | None = None, center_mask: Tensor | None = None
) -> Tensor:
    """How far each sample is from its own class's centre, against all centres.

    With the distance d = (1 - cos) / 2, the difficulty of sample i is ``d(z_i, own centre) / sum_c d(z_i, centre_c)``,
    and zero where all distances are. The pass is blockwise: memory beyond the arguments and the result is that of a
    block, and of the centres.

    Args:
        embeddings: (n, D) floating, of the whole training set, not normalised.
        labels: (n,) integer classes.
        centers: (C, D), row c for class c. None for the class means of `embeddings`; classes without a sample then
            have no centre.
        center_mask: (C,) bool, which of `centers` exist; `PrototypeMemory.centroids` gives both. None for all. A centre
            with a NaN or an infinity does not exist either.

    Returns:
        (n,) in [0, 1]; float64 for float64 embeddings, else float32. NaN for an embedding with a NaN or an infinity,
        which enters no class mean, and for a sample whose class has no centre.

    Raises:
        TypeError: an argument is no tensor or has the wrong kind of dtype.
        ValueError: a shape, a device or a label does not fit; the message says what would.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> prototype_difficulty(embeddings, torch.tensor([0, 1, 1]), centers=torch.eye(2))
        tensor([0.0000, 0.0000, 0.5000])

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, section 3.3.
    """
    check_floating("embeddings", embeddings, ("n", "D"))
    rows, width = embeddings.shape
    check_size("the width of embeddings", width)
    if centers is not None:
        check_floating("centers", centers, ("C", width))
        check_device("centers", centers, "embeddings", embeddings.device)
    _check_mask(centers, center_mask)
    check_labels(labels, rows, embeddings.device, None if centers is None else centers.shape[0], ignore_index=None)
    labels = labels.long()
    if centers is None:
        means = _ClassMeans(embeddings)
        means.add(embeddings, labels)
        centers, center_mask = means.result()
    unit_centers, exists = _unit_centers(centers, center_mask, _compute_dtype(embeddings))
    difficulty = embeddings.new_empty(rows, dtype=unit_centers.dtype)
    for part in _parts(rows, width + centers.shape[0]):
        difficulty[part] = _difficulty(embeddings[part], labels[part], unit_centers, exists)
    return difficulty


@torch.no_grad()
def prototype_difficulty_blocks(
    blocks: Iterable[Block],
    num_samples: int,
    centers: Tensor | None = None,
    center_mask: Tensor | None = None,
) -> Tensor:
    """`prototype_difficulty` of samples that come in blocks, for data that does not fit in memory.

    Without `centers` it goes over `blocks` twice, for the class means and for the scores; with them once. Memory beyond
    a block is that of the centres and of the result.

    Args:
        blocks: each (indices (N,), embeddings (N, D), labels (N,)), in any order and of any size: a list, a DataLoader,
            or any object whose ``__iter__`` starts anew. A generator serves only with `centers`.
        num_samples: n. The indices are from 0 to n - 1.
        centers: as in `prototype_difficulty`; on the device of the embeddings.
        center_mask: as in `prototype_difficulty`.

    Returns:
        (n,) on the CPU, in [0, 1]; float64 if a block is, else float32. NaN where `prototype_difficulty` gives one,
        and for samples in no block.

    Raises:
        TypeError: an argument has the wrong kind.
        ValueError: a shape, a device, an index or a label does not fit, or `blocks` can be gone over only once.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 1])
        >>> blocks = [(rows, embeddings[rows], labels[rows]) for rows in torch.arange(3).split(2)]
        >>> prototype_difficulty_blocks(blocks, 3, centers=torch.eye(2))
        tensor([0.0000, 0.0000, 0.5000])

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, section 3.3.
    """
    check_size("num_samples", num_samples)
    _check_mask(centers, center_mask)
    counted = None
    if centers is None:
        if iter(blocks) is blocks:
            raise ValueError(
                "blocks must be an iterable that starts anew for the second pass; received "
                f"{type(blocks).__name__}, which can be gone over once. Pass a list, a DataLoader or an object with "
                "__iter__, or pass centers"
            )
        means, counted = None, 0
        for _, embeddings, labels in _checked(blocks, num_samples, None):
            means = means or _ClassMeans(embeddings)
            means.add(embeddings, labels)
            counted += embeddings.shape[0]
        if means is None:
            raise ValueError("blocks must hold at least one block; received none. Pass the data, or centers")
        centers, center_mask = means.result()

    difficulty = torch.full((num_samples,), torch.nan)
    rows = 0
    for indices, embeddings, labels in _checked(blocks, num_samples, centers.shape[0]):
        scores = prototype_difficulty(embeddings, labels, centers, center_mask).cpu()
        difficulty = difficulty.to(torch.promote_types(difficulty.dtype, scores.dtype))
        difficulty[indices.long().cpu()] = scores
        rows += embeddings.shape[0]
    if counted is not None and rows != counted:
        raise ValueError(
            f"blocks must hold the same samples in both passes; received {counted} rows in the first and {rows} in the "
            "second. Pass an iterable that starts anew each time, or pass centers"
        )
    return difficulty


def _checked(blocks: Iterable[Block], num_samples: int, num_classes: int | None) -> Iterator[Block]:
    for indices, embeddings, labels in blocks:
        check_floating("embeddings", embeddings, ("N", "D"))
        check_labels(labels, embeddings.shape[0], embeddings.device, num_classes, ignore_index=None)
        check_indices(indices, embeddings.shape[0], num_samples)
        yield indices, embeddings, labels.long()


def _check_mask(centers: Tensor | None, mask: Tensor | None) -> None:
    if mask is None:
        return
    if centers is None:
        raise ValueError("center_mask needs centers; received centers=None. Pass both or neither")
    check_mask("center_mask", mask, centers.shape[0])
    check_device("center_mask", mask, "centers", centers.device)


class _ClassMeans:
    """Running sums of the raw embeddings of each class."""

    def __init__(self, like: Tensor) -> None:
        # A class may have millions of rows; float32 sums would lose digits. Apple's GPUs have no float64.
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        # Row c + 1 is for class c, row 0 for embeddings that are not finite.
        self.sums = torch.zeros(1, like.shape[1], dtype=dtype, device=like.device)
        self.sizes = torch.zeros(1, dtype=torch.long, device=like.device)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        missing = int(labels.max()) + 2 - self.sizes.shape[0] if labels.numel() else 0
        if missing > 0:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(missing, self.sums.shape[1])])
            self.sizes = torch.cat([self.sizes, self.sizes.new_zeros(missing)])
        for part in _parts(*embeddings.shape):
            # a call of its own, so that the copy of one part is freed before the next is made
            self._add_part(embeddings[part].to(self.sums.dtype), labels[part])

    def _add_part(self, rows: Tensor, labels: Tensor) -> None:
        target = torch.where(rows.sum(1).isfinite(), labels + 1, 0)
        self.sums.index_add_(0, target, rows)
        self.sizes.index_add_(0, target, torch.ones_like(target))

    def result(self) -> tuple[Tensor, Tensor]:
        """(C, D) means, and (C,) bool, which classes have any."""
        sums, sizes = self.sums[1:], self.sizes[1:]
        return sums / sizes.clamp_min(1)[:, None], sizes > 0


def _unit_centers(centers: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(D, C) of unit length, zero where there is none, and (C,) of `dtype`, one where there is."""
    exists = centers.isfinite().all(1)
    exists = exists if mask is None else exists & mask
    return unit_rows(centers.to(dtype).masked_fill(~exists[:, None], 0)).T, exists.to(dtype)


def _difficulty(embeddings: Tensor, labels: Tensor, unit_centers: Tensor, exists: Tensor) -> Tensor:
    """(N,) of a block of rows."""
    distances = ((1 - unit_rows(embeddings.to(unit_centers.dtype)) @ unit_centers) / 2).clamp_(0, 1)
    own = distances.gather(1, labels[:, None]).squeeze(1)
    total = distances @ exists
    return (own / total.masked_fill(total == 0, 1)).masked_fill(exists[labels] == 0, torch.nan)


def _compute_dtype(embeddings: Tensor) -> torch.dtype:
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def _parts(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, start + step)
