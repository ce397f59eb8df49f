"""A sampler that moves from easy samples to hard ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from spcl_loss._checks import check_choice, check_floating, check_indices, check_size
from spcl_loss._draw import WHOLE, draw_samples, integer_shares, whole_number_of_samples
from spcl_loss.difficulty import prototype_difficulty
from spcl_loss.schedule import Schedule, check_schedule, keep_by_rank

if TYPE_CHECKING:  # importing it brings more of NumPy along
    from numpy.typing import NDArray

_CHUNK = 1 << 16
_HELD = 1024  # observations that wait on their device, so that a training step does not wait for it
_DRAWS = ("fixed", "bernoulli")


class DifficultyCurriculumSampler(Sampler[int]):
    """Samples about half of the data each epoch, easy samples first, hard ones later.

    At epoch k of R the sample of rank r among n, ranked from easy to hard, is kept with the probability
    ``(1 - k/R) + (2 k/R - 1) r / (n - 1)``. With ``draw="bernoulli"`` every sample has a coin of its own, as in the
    paper, and the length of an epoch varies. With ``draw="fixed"`` systematic sampling over a random order keeps those
    probabilities and gives every epoch the same length, floor(n/2); for odd n, whose probabilities sum to half a
    sample more, each is (n - 1)/n of the above. A single sample is always kept. Samples of equal difficulty are ranked
    at random, anew each epoch.

    Other schedules (scoring and pacing functions in the terms of Hacohen and Weinshall; orders in those of Wu et al.)
    keep half of the data an epoch too, so that they compare at equal cost:

    - ``(start, end)``: the keep probability is 1 - t for the easiest sample, t for the hardest, on a line between, and
      t goes from `start` in the first epoch to `end` in the last. (1, 0) is the anti-curriculum, hard samples first;
      (0.5, 0.5) is constant, each sample with probability 1/2.
    - ``"root"``: half of the data out of a pool of the easiest, which grows from one half of the data in the first
      epoch to all in the last as ``sqrt(1/4 + 3/4 k / (R - 1))`` (Platanios et al.).
    - ``"step"``: that pool is one half in the first half of the epochs, then all (single step pacing).
    - a callable: from the epoch to the (n,) keep probabilities in [0, 1], from the easiest sample to the hardest. Where
      their sum is not whole, ``draw="fixed"`` scales them down to the next whole number.

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
        schedule: "linear" as in the paper, or one of the above.
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
        Hacohen, Weinshall: On The Power of Curriculum Learning in Training Deep Networks, ICML 2019.
        Platanios, Stretcu, Neubig, Poczos, Mitchell: Competence-based Curriculum Learning for Neural Machine
        Translation, NAACL 2019.
        Wu, Dyer, Neyshabur: When Do Curricula Work?, ICLR 2021.
    """

    _iterator: _EpochIterator | None  # the last one that has begun in this epoch
    _resume_at: int | None  # a loaded position, until an iteration begins there
    _loaded: bool  # whether a state was loaded of which no sample has been handed out yet

    def __init__(
        self,
        difficulty: Tensor,
        *,
        num_epochs: int,
        schedule: Schedule = "linear",
        draw: str = "fixed",
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        check_size("num_epochs", num_epochs)
        check_schedule(schedule)
        check_choice("draw", draw, _DRAWS)
        check_size("seed", seed, minimum=0)
        check_size("num_replicas", num_replicas)
        check_size("rank", rank, minimum=0)
        if rank >= num_replicas:
            raise ValueError(f"rank must be below num_replicas={num_replicas}; received {rank}. Ranks count from 0")
        self.num_epochs, self.schedule, self.draw = num_epochs, schedule, draw
        self.shuffle, self.seed, self.num_replicas, self.rank = shuffle, seed, num_replicas, rank
        self._difficulty = _scores(difficulty)  # never written to, so that states and epochs can share it
        self._observed: list[tuple[Tensor, Tensor]] = []
        self._counts_iterations, self._may_warn = True, True
        self.epoch, self._drawn_from = -1, self._difficulty
        self._begin_epoch(0, self._difficulty)

    @property
    def difficulty(self) -> Tensor:
        """(n,) the last finite score of every sample, on the CPU."""
        if self._observed:
            indices, scores = (torch.cat(parts).cpu() for parts in zip(*self._observed, strict=True))
            self._observed.clear()
            finite, updated = scores.isfinite(), self._difficulty.clone()
            # NumPy lets the last of several scores of a sample win; torch leaves it open.
            updated.numpy()[indices[finite].numpy()] = scores[finite].numpy()
            self._difficulty = updated
        return self._difficulty

    def set_epoch(self, epoch: int, difficulty: Tensor | None = None) -> None:
        """Begins epoch `epoch` of 0 .. num_epochs - 1.

        The epoch that `load_state_dict` has taken up goes on, unless new scores are given.

        Args:
            epoch: which one.
            difficulty: (n,) new scores. A sample whose score is not finite keeps its last one.
        """
        self._check_epoch(epoch)
        if difficulty is not None:
            check_floating("difficulty", difficulty, self._difficulty.shape)
            scores = difficulty.detach().cpu().to(self._difficulty.dtype)
            self._difficulty = torch.where(scores.isfinite(), scores, self.difficulty)
        goes_on = self._loaded and difficulty is None and epoch == self.epoch
        self._counts_iterations = self._may_warn = False
        if not goes_on:
            self._begin_epoch(epoch, self.difficulty)

    def observe(
        self,
        indices: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        centers: Tensor,
        center_mask: Tensor | None = None,
    ) -> None:
        """Refreshes the difficulty of samples from their embeddings in a training step, for the epochs to come.

        With a memory: ``sampler.observe(indices, embeddings, labels, *memory.centroids())``. The score of a sample is
        the one of the last step that saw it, however long ago; a sample that no step has seen keeps the one it came
        with. Embeddings with a NaN or an infinity, and samples whose class has no centre, change nothing.

        Every rank has to observe the same samples, or the ranks would draw different epochs: gather the arguments
        first.

        Args:
            indices: (N,) integer, which samples these are.
            embeddings: (N, D), not normalised.
            labels: (N,) integer classes.
            centers: (C, D) centre of each class.
            center_mask: (C,) bool, which of the centres exist. None for all.
        """
        scores = prototype_difficulty(embeddings, labels, centers, center_mask).to(self._difficulty.dtype)
        check_indices(indices, scores.shape[0], self._difficulty.shape[0])
        self._observed.append((indices.long(), scores))
        if len(self._observed) >= _HELD:
            self._difficulty = self.difficulty

    def keep_probability(self, epoch: int | None = None) -> Tensor:
        """(n,) float64, by sample: how probable its presence is, in `epoch` or in the present one."""
        epoch = self.epoch if epoch is None else epoch
        self._check_epoch(epoch)
        shares, whole = self._shares(epoch)
        # Samples of equal difficulty take the places that are theirs together in any order.
        _, group, sizes = np.unique(self._drawn_from.numpy(), return_inverse=True, return_counts=True)
        sums = np.bincount(np.sort(group), shares / whole)
        return torch.from_numpy((sums / sizes)[group])

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
        state = {"epoch": self.epoch, "position": used, "seed": self.seed, "difficulty": self.difficulty}
        if self._drawn_from is not self.difficulty:  # other scores have come in since the epoch began
            state["drawn_from"] = self._drawn_from
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the epoch of a `state_dict`, with the samples that it held; the next iteration yields the rest."""
        missing = {"epoch", "position", "seed", "difficulty"} - state.keys()
        if missing:
            raise ValueError(f"state must come from state_dict; received one without {', '.join(sorted(missing))}")
        difficulty = _scores(state["difficulty"], self._difficulty)
        drawn_from = _scores(state["drawn_from"], self._difficulty) if "drawn_from" in state else difficulty
        self._check_epoch(state["epoch"])
        check_size("position", state["position"], minimum=0)
        check_size("seed", state["seed"], minimum=0)
        self.seed, self._difficulty = state["seed"], difficulty
        self._observed.clear()
        self._begin_epoch(state["epoch"], drawn_from)
        self._resume_at = state["position"]
        self._loaded = self._counts_iterations = True

    @property
    def indices(self) -> Tensor:
        """(len,) int64: the samples of this rank in the present epoch, in order. Looking is no iteration."""
        return self._indices.long()

    def __iter__(self) -> Iterator[int]:
        return _EpochIterator(self)

    def __len__(self) -> int:
        return self._indices.shape[0]

    def _begin_epoch(self, epoch: int, drawn_from: Tensor) -> None:
        if epoch != self.epoch or drawn_from is not self._drawn_from:
            self._indices = self._draw(epoch, drawn_from)
        self.epoch, self._drawn_from = epoch, drawn_from
        self._iterator = None
        self._resume_at = None
        self._loaded = False

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
            self._begin_epoch(min(self.epoch + 1, self.num_epochs - 1), self.difficulty)
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

    def _draw(self, epoch: int, difficulty: Tensor) -> Tensor:
        """The samples of this rank in the epoch, in the order in which it sees them."""
        generator = np.random.default_rng([self.seed, epoch])
        fixed = self.draw == "fixed"
        drawn = draw_samples(
            difficulty.numpy(), *self._shares(epoch), systematic=fixed, shuffle=self.shuffle, generator=generator
        )
        equal = drawn.shape[0] - drawn.shape[0] % self.num_replicas
        return torch.from_numpy(drawn[self.rank : equal : self.num_replicas].copy())

    def _shares(self, epoch: int) -> tuple[NDArray[np.int32], int]:
        """The keep probability of each rank from easy to hard as a fraction of whole numbers."""
        shares = integer_shares(keep_by_rank(self.schedule, epoch, self.num_epochs, self._difficulty.shape[0]))
        return (shares, WHOLE) if self.draw == "bernoulli" else whole_number_of_samples(shares)


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
            self._sampler._loaded = False
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
            self._sampler._begin_epoch(state["epoch"], self._sampler.difficulty)
        self._begin(state["position"])
        self._sampler._loaded = True

    def _begin(self, position: int) -> None:
        sampler = self._sampler
        self._begun, self._epoch, self._indices = True, sampler.epoch, sampler._indices
        # Another number of ranks may have left off between two rounds of ours; none sees a sample again.
        self.position = min(-(-position // sampler.num_replicas), len(sampler))
        self._chunk = []
        sampler._iterator, sampler._resume_at = self, None


def _scores(difficulty: Tensor, like: Tensor | None = None) -> Tensor:
    """A copy of the scores on the CPU, all of them finite."""
    check_floating("difficulty", difficulty, ("n",) if like is None else like.shape)
    if difficulty.shape[0] == 0:
        raise ValueError("difficulty must hold at least one sample; received none. Rank the training set first")
    finite = difficulty.isfinite()
    if not bool(finite.all()):
        wrong = int((~finite).nonzero()[0])
        raise ValueError(
            f"difficulty must be finite; received {float(difficulty[wrong])} for sample {wrong}. "
            "Embeddings with a NaN or an infinity have no difficulty; set_epoch keeps the last one"
        )
    half = difficulty.dtype not in (torch.float32, torch.float64)
    return difficulty.detach().cpu().to(torch.float32 if half else difficulty.dtype, copy=True)
