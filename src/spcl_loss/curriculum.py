"""How hard each sample is, and a sampler that moves from easy to hard."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from spcl_loss._checks import (
    check_choice,
    check_device,
    check_floating,
    check_integers,
    check_labels,
    check_shape,
    check_size,
)
from spcl_loss._normalize import unit_rows

_BLOCK_ELEMENTS = 1 << 20  # what one block of rows may hold: a few MiB, so that it stays in cache
_CHUNK = 1 << 16
_DRAWS = ("fixed", "bernoulli")


@torch.no_grad()
def prototype_difficulty(embeddings: Tensor, labels: Tensor, centers: Tensor | None = None) -> Tensor:
    """How far each sample is from its own class's centre, against all centres.

    With the distance d = (1 - cos) / 2, the difficulty of sample i is ``d(z_i, own centre) / sum_c d(z_i, centre_c)``,
    and zero where all distances are. The pass is blockwise: memory beyond the arguments and the result is that of a
    block, and of the centres.

    Args:
        embeddings: (n, D) floating, of the whole training set, not normalised.
        labels: (n,) integer classes.
        centers: (C, D), row c for class c. None for the class means of `embeddings`; classes without a sample then
            have no centre.

    Returns:
        (n,) in [0, 1]; float64 for float64 embeddings, else float32.

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
    check_labels(labels, rows, embeddings.device, None if centers is None else centers.shape[0], ignore_index=None)

    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    labels = labels.long()
    centers, exists = _class_means(embeddings, labels) if centers is None else (centers, None)
    unit_centers = unit_rows(centers.to(dtype)).T
    difficulty = embeddings.new_empty(rows, dtype=dtype)
    for block in _blocks(rows, width + centers.shape[0]):
        distances = ((1 - unit_rows(embeddings[block].to(dtype)) @ unit_centers) / 2).clamp_(0, 1)
        own = distances.gather(1, labels[block, None]).squeeze(1)
        total = (distances if exists is None else distances * exists).sum(1)
        difficulty[block] = own / total.masked_fill(total == 0, 1)
    return difficulty


def _class_means(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(C, D) means of the raw embeddings, and (C,) bool, which classes have any."""
    num_classes = int(labels.max()) + 1 if labels.numel() else 0
    # A class may have millions of rows; float32 sums would lose digits. Apple's GPUs have no float64.
    dtype = torch.float32 if embeddings.device.type == "mps" else torch.float64
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1], dtype=dtype)
    for block in _blocks(*embeddings.shape):
        sums.index_add_(0, labels[block], embeddings[block].to(dtype))
    sizes = torch.bincount(labels, minlength=num_classes)
    return sums / sizes.clamp_min(1)[:, None], sizes > 0


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, start + step)


class DifficultyCurriculumSampler(Sampler[int]):
    """Samples about half of the data each epoch, easy samples first, hard ones later.

    At epoch k of R the sample of rank r among n, ranked from easy to hard, is kept with the probability
    ``(1 - k/R) + (2 k/R - 1) r / (n - 1)``. With ``draw="bernoulli"`` every sample has a coin of its own, as in the
    paper, and the length of an epoch varies. With ``draw="fixed"`` systematic sampling over a random order keeps those
    probabilities and gives every epoch the same length, floor(n/2); for odd n, whose probabilities sum to half a
    sample more, each is (n - 1)/n of the above. A single sample is always kept.

    Which samples an epoch holds is settled when it begins, by `set_epoch`: it depends on the difficulty at that moment,
    the seed and the epoch alone. Where nobody calls `set_epoch`, every iteration after the first counts as the next
    epoch, the last of them repeats, and a warning says so once.

    An interrupted run goes on with the very sample at which it stopped. In a plain loop, save `state_dict()` after a
    training step; in the new process

        sampler.load_state_dict(state)
        for epoch in range(sampler.epoch, num_epochs):
            sampler.set_epoch(epoch)  # keeps the place in the epoch that was loaded
            for batch in loader:  # what is left of it; then whole epochs

    A loader that reads ahead (worker processes, Accelerate) has taken more samples than the training has used: save
    `state_dict(position=...)` with the number used. torchdata's StatefulDataLoader does all this by itself with its own
    state, with workers too. A loop that cuts an epoch's `indices` into batches, or skips batches, by itself needs no
    position. Every rank may load the state of any rank, and of a run with another number of ranks.

    Args:
        difficulty: (n,) finite scores, such as `prototype_difficulty` gives; only their order matters.
        num_epochs: R, the epochs of the whole training.
        draw: "fixed" or "bernoulli".
        shuffle: whether an epoch's samples come in random order; False gives them from easy to hard.
        seed: of the draws and the order.
        num_replicas: ranks that share an epoch. Each gets as many samples as the others, none twice; what does not
            divide by the number of ranks is left out.
        rank: which of them this is.

    Raises:
        TypeError: an argument has the wrong kind.
        ValueError: a size, a shape or an option does not fit, or a score is not finite.

    Example:
        >>> import torch
        >>> sampler = DifficultyCurriculumSampler(torch.linspace(0, 1, 100), num_epochs=5)
        >>> for epoch in range(5):
        ...     sampler.set_epoch(epoch)
        ...     batches = torch.utils.data.DataLoader(range(100), batch_size=10, sampler=sampler)
        >>> len(sampler)
        50

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, section 3.3.
    """

    _iterator: _EpochIterator | None  # the last one that has begun in this epoch
    _resume_at: int | None  # a loaded position, until an iteration begins there

    def __init__(
        self,
        difficulty: Tensor,
        *,
        num_epochs: int,
        draw: str = "fixed",
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        check_size("num_epochs", num_epochs)
        check_choice("draw", draw, _DRAWS)
        check_size("seed", seed, minimum=0)
        check_size("num_replicas", num_replicas)
        check_size("rank", rank, minimum=0)
        if rank >= num_replicas:
            raise ValueError(f"rank must be below num_replicas={num_replicas}; received {rank}. Ranks count from 0")
        self.num_epochs, self.draw, self.shuffle, self.seed = num_epochs, draw, shuffle, seed
        self.num_replicas, self.rank = num_replicas, rank
        self.difficulty = _scores(difficulty)
        self._counts_iterations, self._may_warn = True, True
        self._begin_epoch(0, self.difficulty.clone())

    def set_epoch(self, epoch: int, difficulty: Tensor | None = None) -> None:
        """Begins epoch `epoch` of 0 .. num_epochs - 1, with new scores (n,) if they are given.

        The epoch that `load_state_dict` has taken up goes on, unless new scores are given.
        """
        self._check_epoch(epoch)
        if difficulty is not None:
            self.difficulty = _scores(difficulty, self.difficulty.shape[0])
        self._counts_iterations = self._may_warn = False
        if difficulty is not None or epoch != self.epoch or self._resume_at is None:
            self._begin_epoch(epoch, self.difficulty.clone())

    def observe(self, indices: Tensor, embeddings: Tensor, labels: Tensor, centers: Tensor) -> None:
        """Refreshes the difficulty of samples from their embeddings in a training step, for the epochs to come.

        Args:
            indices: (N,) integer, which samples these are.
            embeddings: (N, D), not normalised.
            labels: (N,) integer classes.
            centers: (C, D) centre of each class, such as `PrototypeMemory.centroids` gives.
        """
        scores = prototype_difficulty(embeddings, labels, centers).to(self.difficulty)
        check_integers("indices", indices)
        check_shape("indices", indices, scores.shape)
        indices = indices.long().cpu()
        outside = (indices < 0) | (indices >= self.difficulty.shape[0])
        if bool(outside.any()):
            raise ValueError(
                f"indices must be at least 0 and below {self.difficulty.shape[0]}, the number of samples; "
                f"received {int(indices[outside][0])}"
            )
        finite = scores.isfinite()
        self.difficulty[indices[finite]] = scores[finite]

    def keep_probability(self, epoch: int | None = None) -> Tensor:
        """(n,) float64, by sample: how probable its presence is, in `epoch` or in the present one."""
        epoch = self.epoch if epoch is None else epoch
        self._check_epoch(epoch)
        order = self._easy_to_hard()
        shares, whole = self._shares(torch.arange(order.shape[0]), epoch)
        probability = torch.empty(order.shape[0], dtype=torch.float64)
        probability[order] = shares.double() / whole
        return probability

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """Epoch, position, seed and scores: what `load_state_dict` needs to go on, in the midst of an epoch too.

        Args:
            position: how many samples of this rank the training has used in this epoch. None for as many as the last
                iteration has handed out, which is the same unless the loader reads ahead.
        """
        if position is None:
            used = self._position()
        else:
            check_size("position", position, minimum=0)
            used = position * self.num_replicas
        state = {"epoch": self.epoch, "position": used, "seed": self.seed, "difficulty": self.difficulty.clone()}
        if not torch.equal(self.difficulty, self._drawn_from):
            state["drawn_from"] = self._drawn_from.clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the epoch of a `state_dict`, with the samples that it held; the next iteration yields the rest."""
        missing = {"epoch", "position", "seed", "difficulty"} - state.keys()
        if missing:
            raise ValueError(f"state must come from state_dict; received one without {', '.join(sorted(missing))}")
        difficulty = _scores(state["difficulty"], self.difficulty.shape[0])
        drawn_from = _scores(state.get("drawn_from", difficulty), self.difficulty.shape[0])
        self._check_epoch(state["epoch"])
        check_size("position", state["position"], minimum=0)
        check_size("seed", state["seed"], minimum=0)
        self.seed, self.difficulty = state["seed"], difficulty
        self._begin_epoch(state["epoch"], drawn_from)
        self._resume_at = state["position"]
        self._counts_iterations = True

    @property
    def indices(self) -> Tensor:
        """(len,) int64: the samples of this rank in the present epoch, in order. Looking is no iteration."""
        return self._indices[self.rank : len(self) * self.num_replicas : self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        return _EpochIterator(self)

    def __len__(self) -> int:
        return self._indices.shape[0] // self.num_replicas

    def _begin_epoch(self, epoch: int, drawn_from: Tensor) -> None:
        self.epoch, self._drawn_from = epoch, drawn_from
        self._indices = self._draw_epoch()
        self._iterator = None
        self._resume_at = None

    def _next_position(self) -> int:
        """Settles in which epoch the iteration that now begins is, and at which of its samples."""
        if self._resume_at is not None:
            return self._resume_at
        if self._iterator is not None and self._counts_iterations:
            if self._may_warn:
                warnings.warn(
                    "set_epoch was not called: every iteration over the sampler counts as an epoch, and the last of "
                    f"num_epochs={self.num_epochs} repeats. Call sampler.set_epoch(epoch) before each epoch",
                    stacklevel=3,  # the code that iterates, or the loader
                )
                self._may_warn = False
            self._begin_epoch(min(self.epoch + 1, self.num_epochs - 1), self.difficulty.clone())
        return 0

    def _position(self) -> int:
        """How many samples of the epoch have been handed out on all ranks together."""
        if self._iterator is not None:
            return self._iterator.position * self.num_replicas
        return self._resume_at or 0

    def _check_epoch(self, epoch: int) -> None:
        check_size("epoch", epoch, minimum=0)
        if epoch >= self.num_epochs:
            raise ValueError(
                f"epoch must be below num_epochs={self.num_epochs}; received {epoch}. "
                "Build the sampler with the epochs of the whole training"
            )

    def _easy_to_hard(self) -> Tensor:
        return self._drawn_from.argsort(stable=True)

    def _draw_epoch(self) -> Tensor:
        """The samples of the epoch, in the order in which the ranks together see them."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = self._easy_to_hard()
        ranks = torch.from_numpy(generator.permutation(order.shape[0]))
        kept = ranks[self._keep(ranks, generator)]
        return order[kept if self.shuffle else kept.sort().values]

    def _keep(self, ranks: Tensor, generator: np.random.Generator) -> Tensor:
        """Which of the ranks, given in random order, the epoch holds."""
        shares, whole = self._shares(ranks, self.epoch)
        if self.draw == "bernoulli":
            return torch.from_numpy(generator.integers(whole, size=ranks.shape[0])) < shares
        # Systematic sampling: lay the shares end to end from a random start on, and take the sample at every multiple
        # of `whole`. The shares add up to a multiple of it, so the number taken does not depend on the start.
        ends = shares.cumsum(0) + int(generator.integers(whole))
        return torch.diff(ends // whole, prepend=ends.new_zeros(1)) > 0

    def _shares(self, ranks: Tensor, epoch: int) -> tuple[Tensor, int]:
        """The keep probability of each rank as a fraction of whole numbers: nothing is lost to rounding at any size."""
        size, epochs = self.difficulty.shape[0], self.num_epochs
        if size == 1:
            return torch.ones_like(ranks), 1
        shares = (epochs - epoch) * (size - 1) + (2 * epoch - epochs) * ranks
        # The shares add up to size/2 times epochs * (size - 1), which is (size - 1)/2 times epochs * size.
        odd = self.draw == "fixed" and size % 2 == 1
        return shares, epochs * (size if odd else size - 1)


class _EpochIterator(Iterator[int]):
    """One pass over an epoch; its first sample, or its state, settles which.

    Loaders make iterators that they drop unused, so making one must not move the sampler.
    """

    position: int
    _chunk: list[int]

    def __init__(self, sampler: DifficultyCurriculumSampler) -> None:
        self._sampler, self._begun = sampler, False

    def __next__(self) -> int:
        if not self._begun:
            self._begin(self._sampler._next_position())
        if self.position == self._indices.shape[0]:
            raise StopIteration
        offset = self.position % _CHUNK
        if offset == 0 or not self._chunk:  # as Python integers they take five times the room, so a chunk at a time
            start = self.position - offset
            self._chunk = self._indices[start : start + _CHUNK].tolist()
        self.position += 1
        return self._chunk[offset]

    def state_dict(self) -> dict[str, int]:
        if not self._begun:
            self._begin(self._sampler._next_position())
        return {"epoch": self._epoch, "position": self.position * self._sampler.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        check_size("position", state["position"], minimum=0)
        if state["epoch"] != self._sampler.epoch:
            self._sampler._check_epoch(state["epoch"])
            self._sampler._begin_epoch(state["epoch"], self._sampler.difficulty.clone())
        self._begin(state["position"])

    def _begin(self, position: int) -> None:
        sampler = self._sampler
        self._begun, self._epoch, self._indices = True, sampler.epoch, sampler.indices
        # Another number of ranks may have left off between two rounds of ours; none sees a sample again.
        self.position = min(-(-position // sampler.num_replicas), len(sampler))
        self._chunk = []
        sampler._iterator, sampler._resume_at = self, None


def _scores(difficulty: Tensor, size: int | None = None) -> Tensor:
    """A copy of the scores on the CPU, all of them finite."""
    check_floating("difficulty", difficulty, ("n" if size is None else size,))
    if difficulty.shape[0] == 0:
        raise ValueError("difficulty must hold at least one sample; received none. Rank the training set first")
    finite = difficulty.isfinite()
    if not bool(finite.all()):
        wrong = int((~finite).nonzero()[0])
        raise ValueError(
            f"difficulty must be finite; received {float(difficulty[wrong])} for sample {wrong}. "
            "Embeddings with a NaN or an infinity have no difficulty"
        )
    return difficulty.detach().cpu().clone()
