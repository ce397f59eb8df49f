"""How hard a sample is: its distance from the centre of its own class, compared with all centres."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from spcl_loss._checks import (
    check_bool,
    check_device,
    check_embeddings,
    check_floating,
    check_ignore_index,
    check_indices,
    check_mask,
    check_shape,
    check_size,
    checked_labels,
)
from spcl_loss._numerics import computed_dtype, parts, sum_dtype, unit_rows, without_autocast

_NO_CLASS = -1  # the label of ignored rows, once checked

Block = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def prototype_difficulty(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor | None = None,
    center_mask: Tensor | None = None,
    *,
    ignore_index: int = -100,
    leave_one_out: bool = False,
) -> Tensor:
    """Computes how far each sample is from the centre of its own class, compared with all centres.

    With the distance d(a, b) = (1 - cos(a, b)) / 2, the difficulty of sample i is::

        d(z_i, centre of its class) / sum_c d(z_i, centre_c)                   (Song et al., section 3.3)

    and zero where all distances are zero. The pass is blockwise: it needs memory for one block and for the centres
    beyond the arguments and the result.

    Args:
        embeddings: (n, D) floating, of the whole training set, not normalised.
        labels: (n,) integer classes, or `ignore_index`.
        centers: (C, D) floating, row c for class c. None for the class means of `embeddings`; classes without a sample
            then have no centre, and labels may be any numbers from 0 on.
        center_mask: (C,) bool, which of `centers` exist; `PrototypeMemory.centroids` gives both. None for all. A centre
            with a NaN or an infinity does not exist either.
        ignore_index: the label of rows that have no difficulty and enter no class mean.
        leave_one_out: whether a sample is left out of its own class's mean when it is scored. The paper's means contain
            it, which makes small classes look easy: the only sample of a class has difficulty 0.

    Returns:
        (n,) in [0, 1]; float64 for float64 embeddings, else float32. NaN for ignored rows, for rows with a NaN or an
        infinity, which enter no class mean, and for rows whose class has no centre. With `leave_one_out` the only
        sample of a class has no centre either.

    Raises:
        TypeError: an argument is no tensor or has the wrong kind of dtype.
        ValueError: a shape, a device, a label or an option does not fit; the message says what would.

    Examples:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> prototype_difficulty(embeddings, torch.tensor([0, 1, 1]), centers=torch.eye(2))
        tensor([0.0000, 0.0000, 0.5000])

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, section 3.3.
    """
    check_embeddings(embeddings, None)
    rows, width = embeddings.shape
    if centers is not None:
        check_floating("centers", centers, ("C", width))
        check_device("centers", centers, "embeddings", embeddings.device)
    _check_options(centers, center_mask, ignore_index, leave_one_out)
    num_classes = None if centers is None else centers.shape[0]
    labels = checked_labels(labels, rows, embeddings.device, num_classes, ignore_index)
    if centers is not None:
        return _difficulty(embeddings, labels, centers, center_mask)
    means = _ClassMeans(embeddings)
    means.add(embeddings, labels)
    return means.difficulty(embeddings, labels, leave_one_out)


@torch.no_grad()
def prototype_difficulty_blocks(
    blocks: Iterable[Block],
    num_samples: int,
    centers: Tensor | None = None,
    center_mask: Tensor | None = None,
    *,
    ignore_index: int = -100,
    leave_one_out: bool = False,
) -> Tensor:
    """Computes `prototype_difficulty` for samples that come in blocks, for data that does not fit in memory.

    Without `centers` it reads `blocks` twice, for the class means and for the scores; with them once. It needs memory
    for one block, the centres and the result.

    Args:
        blocks: each (indices (N,), embeddings (N, D), labels (N,)), in any order and of any size: a list, a DataLoader,
            or any object whose ``__iter__`` starts anew. A generator can be read once, so it needs `centers`.
        num_samples: n. The indices are from 0 to n - 1.
        centers: as in `prototype_difficulty`; on the device of the embeddings.
        center_mask: as in `prototype_difficulty`.
        ignore_index: as in `prototype_difficulty`.
        leave_one_out: as in `prototype_difficulty`.

    Returns:
        (n,) on the CPU, in [0, 1]; float64 if a block is, else float32. NaN where `prototype_difficulty` gives one,
        and for samples in no block.

    Raises:
        TypeError: an argument has the wrong kind.
        ValueError: a shape, a device, an index, a label or an option does not fit, or `blocks` can be read only once.

    Examples:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> labels = torch.tensor([0, 1, 1])
        >>> parts = torch.arange(3).split(2)
        >>> blocks = [(rows, embeddings[rows], labels[rows]) for rows in parts]
        >>> prototype_difficulty_blocks(blocks, 3, centers=torch.eye(2))
        tensor([0.0000, 0.0000, 0.5000])

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, section 3.3.
    """
    check_size("num_samples", num_samples)
    if not isinstance(blocks, Iterable):
        raise TypeError(f"blocks must be an iterable of blocks; received {type(blocks).__name__}. Pass a list")
    if centers is not None:
        check_floating("centers", centers, ("C", "D"))
    _check_options(centers, center_mask, ignore_index, leave_one_out)
    if centers is None:
        means = _means_of_blocks(blocks, num_samples, ignore_index)
        counted, score = int(means.sizes.sum()), partial(means.difficulty, leave_one_out=leave_one_out)
    else:
        counted, score = None, partial(_difficulty, centers=centers, mask=center_mask)
    # The result is float32 on the CPU, whatever torch's default dtype and device are.
    difficulty = torch.full((num_samples,), torch.nan, dtype=torch.float32, device="cpu")
    rows = 0
    for indices, embeddings, labels in _checked(blocks, num_samples, ignore_index, centers):
        scores = score(embeddings, labels).cpu()
        difficulty = difficulty.to(torch.promote_types(difficulty.dtype, scores.dtype))
        difficulty[indices.long().cpu()] = scores
        rows += embeddings.shape[0]
    if counted is not None and rows != counted:
        raise ValueError(
            f"blocks must hold the same samples in both passes; received {counted} rows in the first and {rows} in the "
            "second. Pass an iterable that starts anew each time, or pass centers"
        )
    return difficulty


def _means_of_blocks(blocks: Iterable[Block], num_samples: int, ignore_index: int) -> _ClassMeans:
    if isinstance(blocks, Iterator):
        raise ValueError(
            "blocks must be an iterable that starts anew for the second pass; received "
            f"{type(blocks).__name__}, which can be read only once. Pass a list, a DataLoader or an object with "
            "__iter__, or pass centers"
        )
    means = None
    for _, embeddings, labels in _checked(blocks, num_samples, ignore_index):
        means = means or _ClassMeans(embeddings)
        means.add(embeddings, labels)
    if means is None:
        raise ValueError("blocks must hold at least one block; received none. Pass the data, or centers")
    return means


def _checked(
    blocks: Iterable[Block], num_samples: int, ignore_index: int, centers: Tensor | None = None
) -> Iterator[Block]:
    num_classes, width = (None, None) if centers is None else centers.shape
    for block in blocks:
        if not isinstance(block, (tuple, list)) or len(block) != 3:
            received = f"{len(block)} items" if isinstance(block, (tuple, list)) else type(block).__name__
            raise ValueError(
                f"each block must be (indices, embeddings, labels); received {received}. Number the samples, and pass "
                "their numbers first"
            )
        indices, embeddings, labels = block
        check_embeddings(embeddings, None)
        width = width or embeddings.shape[1]
        check_shape("embeddings", embeddings, ("N", width))
        if centers is not None:
            check_device("centers", centers, "embeddings", embeddings.device)
        labels = checked_labels(labels, embeddings.shape[0], embeddings.device, num_classes, ignore_index)
        check_indices(indices, embeddings.shape[0], num_samples)
        yield indices, embeddings, labels


def _check_options(centers: Tensor | None, mask: Tensor | None, ignore_index: int, leave_one_out: bool) -> None:
    check_ignore_index(ignore_index)
    check_bool("leave_one_out", leave_one_out)
    if centers is None:
        if mask is not None:
            raise ValueError("center_mask needs centers; received centers=None. Pass both or neither")
        return
    if leave_one_out:
        raise ValueError("leave_one_out needs the class means of the embeddings; received centers. Pass one of the two")
    if mask is not None:
        check_mask("center_mask", mask, centers.shape[0])
        check_device("center_mask", mask, "centers", centers.device)


class _ClassMeans:
    """Running sums of the raw embeddings of each class that occurs."""

    def __init__(self, like: Tensor) -> None:
        # Row 0 takes the rows that enter no mean: ignored ones and those that are not finite.
        self.classes = torch.full((1,), _NO_CLASS, dtype=torch.long, device=like.device)  # sorted
        self.sums = torch.zeros(1, like.shape[1], dtype=sum_dtype(like.device), device=like.device)
        self.sizes = torch.zeros(1, dtype=torch.long, device=like.device)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        classes: Tensor = torch.cat([self.classes, labels]).unique()  # type: ignore[no-untyped-call]
        if classes.shape != self.classes.shape:
            old = torch.searchsorted(classes, self.classes)
            count = classes.shape[0]
            self.sums = self.sums.new_zeros(count, self.sums.shape[1]).index_copy_(0, old, self.sums)
            self.sizes = self.sizes.new_zeros(count).index_copy_(0, old, self.sizes)
            self.classes = classes
        places = torch.searchsorted(classes, labels)
        for part in parts(*embeddings.shape):
            # In a function of its own, so that the copy of one part is freed before the next is made.
            self._add_part(embeddings[part].to(self.sums.dtype), places[part])

    def _add_part(self, rows: Tensor, places: Tensor) -> None:
        target = places.masked_fill(~rows.sum(1).isfinite(), 0)
        self.sums.index_add_(0, target, rows)
        self.sizes.index_add_(0, target, torch.ones_like(target))

    def difficulty(self, embeddings: Tensor, labels: Tensor, leave_one_out: bool) -> Tensor:
        """(N,) of rows with these labels, compared with the means."""
        check_shape("embeddings", embeddings, ("N", self.sums.shape[1]))  # blocks may differ from those of `add`
        places = torch.searchsorted(self.classes, labels).clamp_max(self.classes.shape[0] - 1)
        places = torch.where(self.classes[places] == labels, places, 0) - 1  # row 0 becomes _NO_CLASS
        sums, sizes = self.sums[1:], self.sizes[1:]
        means = sums / sizes.clamp_min(1)[:, None]
        return _difficulty(embeddings, places, means, sizes > 0, (sums, sizes) if leave_one_out else None)


def _difficulty(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    mask: Tensor | None,
    sums_and_sizes: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(N,) of rows whose labels are rows of `centers` or _NO_CLASS. With `sums_and_sizes`, leaves each sample out."""
    exists = centers.isfinite().all(1)
    exists = exists if mask is None else exists & mask
    dtype = computed_dtype(embeddings)
    unit_centers = unit_rows(centers.to(dtype).masked_fill(~exists[:, None], 0))
    difficulty = embeddings.new_full((embeddings.shape[0],), torch.nan, dtype=dtype)
    if centers.shape[0] == 0:
        return difficulty
    with without_autocast(embeddings.device.type):
        for part in parts(embeddings.shape[0], sum(unit_centers.shape)):
            rows, classes = embeddings[part], labels[part].clamp_min(0)
            unit, known = unit_rows(rows.to(dtype)), exists[classes] & (labels[part] != _NO_CLASS)
            distances = _distance(unit @ unit_centers.T)
            if sums_and_sizes is None:
                own = distances.gather(1, classes[:, None])
            else:
                sums, sizes = (of_class[classes] for of_class in sums_and_sizes)
                others = (sums - rows) / (sizes - 1).clamp_min(1)[:, None]
                own = _distance(torch.linalg.vecdot(unit, unit_rows(others.to(dtype)))[:, None])
                distances.scatter_(1, classes[:, None], own)
                known &= sizes > 1
            total = distances @ exists.to(dtype)
            difficulty[part] = (own[:, 0] / total.masked_fill(total == 0, 1)).masked_fill(~known, torch.nan)
    return difficulty


def _distance(cosine: Tensor) -> Tensor:
    return ((1 - cosine) / 2).clamp_(0, 1)
