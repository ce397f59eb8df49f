"""A sampler that moves from easy samples to hard ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from spcl_loss._checks import check_bool, check_choice, check_floating, check_indices, check_size
from spcl_loss._numerics import computed_dtype
from spcl_loss._sampling import Draw, Epoch, Schedule, Settings, check_schedule, draw_epoch, keep_probability
from spcl_loss.difficulty import prototype_difficulty

_MAX_WAITING = 1024  # observations that stay on their device, so that a training step does not wait for it


class DifficultyCurriculumSampler(Sampler[int]):
    """Samples about half of the data in each epoch: mostly easy samples first, mostly hard ones at the end.

    In epoch k of R, the sample of rank r among n, ranked from easy to hard, is kept with the probability::

        (1 - k/R) + (2k/R - 1) r / (n - 1)                                     (Song et al., section 3.3)

    `set_epoch` fixes the samples of an epoch. They depend only on the difficulty at that moment, the epoch and the
    arguments below. Every argument but `difficulty` is an attribute that can be set. The next epoch that begins uses
    it, so call `set_epoch` after a change and before you read the length. Samples of equal difficulty are ranked at
    random, anew in each epoch. A single sample is always kept. If nobody calls `set_epoch`, every iteration after the
    first counts as the next epoch, with a warning; the last epoch repeats.

    To resume, load a `state_dict()` that was saved after a training step, and call ``set_epoch(sampler.epoch)``. The
    sampler goes on with the next sample. Every rank may load the state of any rank, also from a run with another number
    of ranks.

    Args:
        difficulty: (n,) floating and finite, for example from `prototype_difficulty`. Only the order matters.
        num_epochs: R, the epochs of the whole training.
        schedule: the keep probability by rank and epoch. All but a callable keep half of the data in every epoch.

            - ``"linear"``: the equation above, the paper's.
            - ``(start, end)``: a line from 1 - t for the easiest sample to t for the hardest. t goes from `start` in
              the first epoch to `end` in the last. (1, 0) takes hard samples first; (0.5, 0.5) is a random half.
            - ``"root"``: half of the data, drawn from a pool of the easiest samples. The pool grows from one half of
              the data to all of it as ``sqrt(1/4 + 3/4 k / (R - 1))`` (Platanios et al.).
            - ``"step"``: the pool is the easiest half in the first half of the epochs, then all data.
            - a callable: from the epoch to (n,) keep probabilities in [0, 1], from the easiest sample to the hardest.
        draw: ``"bernoulli"`` flips a coin for each sample, as the paper does, and the length of an epoch varies.
            ``"fixed"`` samples systematically: all epochs have the same length, floor(n/2). Probabilities that do not
            add up to a whole number are scaled down to the next one, which for an odd n is a factor of (n - 1)/n.
        shuffle: whether the samples of an epoch come in random order. False gives them from easy to hard.
        seed: of the draws and the order.
        num_replicas: number of ranks that share an epoch. None for the size of the running process group, 1 without
            one. Each rank gets equally many samples, and no sample goes to two ranks; the remainder is left out.
        rank: which of them this is. None for the rank in the running process group, 0 without one or with a single
            replica.

    Raises:
        TypeError: an argument has the wrong kind.
        ValueError: a size, a shape or an option does not fit, a score is not finite, or an epoch holds fewer samples
            than there are ranks.

    Examples:
        >>> import torch
        >>> sampler = DifficultyCurriculumSampler(torch.linspace(0, 1, 100), num_epochs=5)
        >>> for epoch in range(5):
        ...     sampler.set_epoch(epoch)
        ...     batches = torch.utils.data.DataLoader(range(100), 10, sampler=sampler)
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

    _last: _EpochIterator | None  # the last iterator that has started in this epoch
    _resume_at: int | None  # a loaded position, until an iterator starts there

    def __init__(
        self,
        difficulty: Tensor,
        *,
        num_epochs: int,
        schedule: Schedule = "linear",
        draw: Draw = "fixed",
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.num_epochs, self.schedule, self.draw, self.shuffle, self.seed = num_epochs, schedule, draw, shuffle, seed
        self.num_replicas, self.rank = _ranks(num_replicas, rank)
        settings = self._settings(epoch=0)
        self._difficulty = _finite_scores(difficulty)  # never written to, so that states and epochs can share it
        self._observed: list[tuple[Tensor, Tensor]] = []
        self._counts_iterations = True  # until the first set_epoch
        self._drawn = draw_epoch(settings, self._difficulty)
        self._last = self._resume_at = None

    @property
    def epoch(self) -> int:
        """The present epoch. `set_epoch` begins another."""
        return self._drawn.settings.epoch

    @property
    def difficulty(self) -> Tensor:
        """(n,) the last finite score of every sample, on the CPU."""
        self._take_over_observations()
        return self._difficulty

    def _take_over_observations(self) -> None:
        if self._observed:
            indices, scores = (torch.cat(column).cpu() for column in zip(*self._observed, strict=True))
            self._observed.clear()
            finite, updated = scores.isfinite(), self._difficulty.clone()
            # With NumPy the last of several scores of a sample wins; torch leaves it open which one does.
            updated.numpy()[indices[finite].numpy()] = scores[finite].numpy()
            self._difficulty = updated

    @property
    def indices(self) -> Tensor:
        """(len,) int64: the samples of this rank in the present epoch, in order. Reading them starts no iteration."""
        return torch.from_numpy(self._drawn.indices).long()

    def set_epoch(self, epoch: int, difficulty: Tensor | None = None) -> None:
        """Begins an epoch.

        An epoch is unfinished while its iterator has samples left, or after `load_state_dict`. `set_epoch` with its
        number keeps its samples, unless you give new scores. It also keeps its settings once a sample was used. The
        next iterator starts at the restored position, else at the first sample.

        Args:
            epoch: which one, of 0 .. num_epochs - 1.
            difficulty: (n,) new scores. A sample whose score is not finite keeps its last one.

        Raises:
            TypeError, ValueError: the epoch, the scores or an attribute that was set do not fit.
        """
        settings, scores = self._settings(epoch), self.difficulty
        if difficulty is not None:
            check_floating("difficulty", difficulty, scores.shape)
            given = difficulty.detach().cpu().to(scores.dtype)
            scores = torch.where(given.isfinite(), given, scores)
        goes_on = difficulty is None and epoch == self.epoch and self._is_under_way()
        if not (goes_on and (self._used() or settings == self._drawn.settings)):
            self._begin_epoch(settings, scores)
        self._difficulty, self._counts_iterations = scores, False

    def observe(
        self,
        indices: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        centers: Tensor,
        center_mask: Tensor | None = None,
        *,
        ignore_index: int = -100,
    ) -> None:
        """Computes the difficulty of samples from their embeddings in a training step, for later epochs.

        With a memory: ``sampler.observe(indices, embeddings, labels, *memory.centroids())``. Call it before the loss,
        which puts the batch into the centroids. Each sample has the score of the last step that saw it, or its first
        score. Ignored rows, rows with a NaN or an infinity, and rows whose class has no centre change nothing.

        Every rank has to observe the same samples, or the ranks would draw different epochs: gather the arguments
        first.

        Args:
            indices: (N,) integer, which samples these are.
            embeddings: (N, D) floating, not normalised.
            labels: (N,) integer classes, or `ignore_index`.
            centers: (C, D) centre of each class.
            center_mask: (C,) bool, which of the centres exist. None for all.
            ignore_index: the label of ignored rows.

        Raises:
            TypeError, ValueError: as `prototype_difficulty`, or an index does not fit.
        """
        scores = prototype_difficulty(embeddings, labels, centers, center_mask, ignore_index=ignore_index)
        check_indices(indices, scores.shape[0], self._difficulty.shape[0])
        # A copy: the caller may reuse the tensor for the next batch.
        self._observed.append((indices.to(torch.int64, copy=True), scores.to(self._difficulty.dtype)))
        if len(self._observed) >= _MAX_WAITING:
            self._take_over_observations()

    def keep_probability(self, epoch: int | None = None) -> Tensor:
        """(n,) float64: the keep probability of each sample in `epoch`, if it began now.

        None for the present epoch, as it was drawn.
        """
        settings, scores, _ = self._drawn
        if epoch is not None:
            settings, scores = self._settings(epoch), self.difficulty
        return torch.from_numpy(keep_probability(settings, scores.numpy()))

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """Epoch, position, seed and scores: what `load_state_dict` needs to go on, also within an epoch.

        Settings that were changed since the epoch began are not in it.

        Args:
            position: how many samples of this rank the training has used in this epoch. None for as many as the last
                iterator has handed out, which is the same unless the loader reads ahead.

        Raises:
            TypeError, ValueError: the position is no int from 0 on.
        """
        drawn, scores = self._drawn.settings, self._drawn.scores
        if position is not None:
            check_size("position", position, minimum=0)
        used = self._used() if position is None else position * drawn.num_replicas
        state = {"epoch": drawn.epoch, "position": used, "seed": drawn.seed, "difficulty": self.difficulty}
        state["settings"] = drawn.recorded()
        if scores is not self.difficulty:  # scores that were observed since the epoch began
            state["drawn_from"] = scores
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the epoch of a `state_dict` with its samples. The next iteration yields those that are left.

        Warns where an epoch goes on with another draw, order, schedule or number of epochs than it began with.

        Raises:
            TypeError, ValueError: the state is not that of a sampler of as many samples.
        """
        missing = {"epoch", "position", "seed", "difficulty"} - set(state if isinstance(state, dict) else ())
        if missing:
            raise ValueError(
                f"state must come from state_dict; received a {type(state).__name__} without "
                f"{', '.join(sorted(missing))}. Pass what sampler.state_dict() returned"
            )
        difficulty = _finite_scores(state["difficulty"], self._difficulty.shape)
        drawn_from = _finite_scores(state["drawn_from"], difficulty.shape) if "drawn_from" in state else difficulty
        check_size("position", state["position"], minimum=0)
        check_size("seed", state["seed"], minimum=0)
        settings = self._settings(state["epoch"])._replace(seed=state["seed"])
        self._begin_epoch(settings, drawn_from)
        self.seed, self._difficulty, self._resume_at = state["seed"], difficulty, state["position"]
        self._observed.clear()
        begun, present = state.get("settings", settings.recorded()), settings.recorded()  # older states do not say
        if begun != present and 0 < state["position"] < len(self) * settings.num_replicas:
            warnings.warn(
                f"the epoch began with {begun}; this sampler has {present}. So the rest of the epoch may repeat some "
                "samples and miss others. Build the sampler with the same settings, or begin a new epoch",
                stacklevel=2,
            )

    def __iter__(self) -> Iterator[int]:
        return _EpochIterator(self)

    def __len__(self) -> int:
        return len(self._drawn.indices)

    def _begin_epoch(self, settings: Settings, scores: Tensor) -> None:
        if settings != self._drawn.settings or scores is not self._drawn.scores:
            self._drawn = draw_epoch(settings, scores)
        self._last = self._resume_at = None

    def _used(self) -> int:
        """The number of samples of this epoch that all ranks have used."""
        if self._last is not None:
            return self._last.position * self._drawn.settings.num_replicas
        return self._resume_at or 0

    def _is_under_way(self) -> bool:
        return self._resume_at is not None or (self._last is not None and not self._last.finished)

    def _start_position(self) -> int:
        """The number of samples that all ranks have used, for an iterator that starts now.

        If nobody calls set_epoch, this begins an epoch first: the first one, then the next.
        """
        if self._resume_at is not None:
            return self._resume_at
        if self._counts_iterations and self._last is None:
            self._begin_epoch(self._settings(self.epoch), self._drawn.scores)
        elif self._counts_iterations:
            warnings.warn(
                "set_epoch was not called: every iteration over the sampler counts as an epoch, and the last of "
                f"num_epochs={self.num_epochs} repeats. Call sampler.set_epoch(epoch) before each epoch",
                stacklevel=4,  # the code that iterates, or the loader
            )
            self._begin_epoch(self._settings(min(self.epoch + 1, self.num_epochs - 1)), self.difficulty)
        return 0

    def _settings(self, epoch: int) -> Settings:
        """The attributes that decide the samples of an epoch, after a check: they may have been set."""
        check_size("num_epochs", self.num_epochs)
        check_schedule(self.schedule)
        check_choice("draw", self.draw, get_args(Draw))
        check_bool("shuffle", self.shuffle)
        check_size("seed", self.seed, minimum=0)
        check_size("epoch", epoch, minimum=0)
        if epoch >= self.num_epochs:
            raise ValueError(
                f"epoch must be below num_epochs={self.num_epochs}; received {epoch}. "
                "Build the sampler with the epochs of the whole training"
            )
        ranks = _ranks(self.num_replicas, self.rank)
        return Settings(self.draw, self.shuffle, self.schedule, self.num_epochs, epoch, self.seed, *ranks)


class _EpochIterator(Iterator[int]):
    """One pass over an epoch. It starts with its first sample or its state: loaders make iterators they never use."""

    def __init__(self, sampler: DifficultyCurriculumSampler) -> None:
        self._sampler = sampler
        self._epoch: Epoch | None = None  # once it has started
        self.position = 0  # samples handed out
        self.finished = False

    def __next__(self) -> int:
        indices = self._started().indices
        if self.position == indices.shape[0]:
            self.finished = True
            raise StopIteration
        self.position += 1
        return int(indices.item(self.position - 1))

    def state_dict(self) -> dict[str, int]:
        """For torchdata's StatefulDataLoader."""
        settings = self._started().settings
        return {"epoch": settings.epoch, "position": self.position * settings.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        check_size("position", state["position"], minimum=0)
        if state["epoch"] != self._sampler.epoch:
            self._sampler._begin_epoch(self._sampler._settings(state["epoch"]), self._sampler.difficulty)
        self._start(state["position"])

    def _started(self) -> Epoch:
        if self._epoch is None:
            return self._start(self._sampler._start_position())
        return self._epoch

    def _start(self, used: int) -> Epoch:
        """Starts after `used` samples of the epoch, counted over all ranks."""
        self._epoch = self._sampler._drawn
        # Rounded up: a run with another number of ranks may have used a part of a round. No sample comes twice.
        self.position = min(-(-used // self._epoch.settings.num_replicas), self._epoch.indices.shape[0])
        self._sampler._last, self._sampler._resume_at = self, None
        return self._epoch


def _ranks(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """The number of ranks and this one, by default those of the running process group."""
    grouped = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if grouped else 1
    check_size("num_replicas", num_replicas)
    if rank is None:
        if num_replicas > 1 and not grouped:
            raise ValueError(
                f"rank must be given with num_replicas={num_replicas} where no process group runs; received None. "
                "Pass this process's rank, or call torch.distributed.init_process_group first"
            )
        rank = dist.get_rank() if grouped and num_replicas > 1 else 0
    check_size("rank", rank, minimum=0)
    if rank >= num_replicas:
        raise ValueError(f"rank must be below num_replicas={num_replicas}; received {rank}. Pass one from 0 on")
    return num_replicas, rank


def _finite_scores(difficulty: Tensor, shape: tuple[int | str, ...] = ("n",)) -> Tensor:
    """A copy on the CPU, in float32 or float64."""
    check_floating("difficulty", difficulty, shape)
    if difficulty.shape[0] == 0:
        raise ValueError("difficulty must hold at least one sample; received none. Rank the training set first")
    finite = difficulty.isfinite()
    if not bool(finite.all()):
        wrong = int((~finite).nonzero()[0])
        raise ValueError(
            f"difficulty must be finite; received {float(difficulty[wrong])} for sample {wrong}. A sample has none if "
            "its embedding is not finite, its label is ignored or its class has no centre: leave it out, or give it a "
            "score. set_epoch keeps the last one"
        )
    return difficulty.detach().to("cpu", computed_dtype(difficulty), copy=True)
