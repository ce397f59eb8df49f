"""The loss as a module: the equations of `loss` with a prototype memory and a nearest-prototype head."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from spcl_loss._checks import check_any_class, check_bool, check_embeddings, check_floating, check_outside_backward
from spcl_loss._diagnostics import diagnose
from spcl_loss._distributed import Batch, gather_batch, refusing, several_ranks
from spcl_loss._numerics import computed_dtype, matmul, unit_rows, without_autocast
from spcl_loss._state import Restorable
from spcl_loss.loss import checked_batch, loss_of_batch
from spcl_loss.memory import PrototypeMemory
from spcl_loss.methods import ContrastKind, Impl, Options, Positives, Reduction, Similarity


class SupervisedPrototypicalContrastiveLoss(Restorable):
    """Supervised prototypical contrastive loss with its own memory of embeddings, from which it draws the prototypes.

    In training mode every call draws new prototypes, compares the batch with them, then enqueues the batch. In
    evaluation mode the prototypes are the centroids and nothing changes. While gradients are disabled the memory does
    not change. A row that is not finite makes the loss NaN, and its batch does not enter the memory.

    With `gather_distributed` every rank enqueues the rows of all ranks, so the memories stay the same to the bit. Every
    rank has to make every call, in evaluation too. In eager code all ranks raise an error where their settings differ.
    To evaluate on one rank alone, set ``criterion.gather_distributed = False`` first.

    Args:
        num_classes: C.
        embedding_dim: D.
        temperature: see `supervised_prototypical_contrastive_loss`, as for every option not listed here.
        queue_size: M, how many embeddings each class remembers.
        support_size: K, how many of them make a prototype.
        memory: a `PrototypeMemory` to use, shared or restored; then `queue_size`, `support_size` and `seed` are unused.
        seed: of the draws.
        class_weights: (C,) weight of an anchor by its label. It is a buffer and part of the state dict.
        process_group: a copy by `copy.deepcopy` uses the same group. A pickle leaves it out, and loading it warns.

    Attributes:
        memory: the `PrototypeMemory`.
        temperature: like every other option it can be read and set, as in ``criterion.temperature = 0.07``. Its value
            is checked when it is next used. A name that is close to an option's is an AttributeError.

    Raises:
        TypeError: an argument has the wrong kind.
        ValueError: a size or an option does not fit; the message says what would.

    Examples:
        >>> import torch
        >>> criterion = SupervisedPrototypicalContrastiveLoss(num_classes=3, embedding_dim=8)
        >>> embeddings = torch.randn(16, 8, requires_grad=True)
        >>> loss = criterion(embeddings, torch.arange(16) % 3)
        >>> loss.backward()
        >>> criterion.predict(embeddings).shape
        torch.Size([16])

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, section 3.2.
    """

    _settings = (*Options._fields, "class_weights", "memory")
    memory: PrototypeMemory
    class_weights: Tensor | None
    _constructor_weights: list[float] | None

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        temperature: float = 0.05,
        queue_size: int = 256,
        support_size: int = 64,
        memory: PrototypeMemory | None = None,
        seed: int = 0,
        similarity: Similarity = "shifted_cosine",
        positives: Positives = "inside",
        contrast: ContrastKind = "all",
        easy_threshold: float | None = None,
        prototype_anchors: bool = False,
        class_weights: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        process_group: dist.ProcessGroup | None = None,
        gather_distributed: bool = False,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        if memory is None:
            memory = PrototypeMemory(
                num_classes,
                embedding_dim,
                queue_size=queue_size,
                support_size=support_size,
                seed=seed,
                ignore_index=ignore_index,
            )
        else:
            _check_memory(memory, num_classes, embedding_dim, ignore_index)
        self.memory = memory
        self.temperature = temperature
        self.similarity, self.positives, self.contrast = similarity, positives, contrast
        self.easy_threshold, self.prototype_anchors = easy_threshold, prototype_anchors
        self.reduction = reduction
        self.process_group, self.gather_distributed = process_group, gather_distributed
        self.impl = impl
        self._options().check()
        self.register_buffer("class_weights", None)
        self._constructor_weights = None
        if class_weights is not None:
            check_floating("class_weights", class_weights, (num_classes,))
            self.class_weights = class_weights.detach().clone()
            # On the meta device there are no values to keep.
            self._constructor_weights = [math.nan] * num_classes if class_weights.is_meta else class_weights.tolist()
        self._built_on_meta = self._has_meta_buffers()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        prototypes: Tensor | None = None,
        candidates: Tensor | None = None,
        candidate_labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
        update_memory: bool | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D) floating, not normalised.
            labels: (N,) integer.
            prototypes: (C, D) learned prototypes, used instead of the memory's. The memory is still filled.
            candidates: (M, D) further candidates of known class, never anchors. ``memory.entries(16)`` gives the newest
                entries of every class. With `gather_distributed` they must be the same on all ranks, as entries are.
            candidate_labels: (M,) integer classes of the candidates. A row labelled `ignore_index` is no candidate.
            sample_weight: (N,) weight of an anchor.
            update_memory: whether the draw counter moves on and the batch is enqueued. None: in training mode, where
                gradients are enabled. False leaves all state alone, so that a second pass over the same batch sees the
                same prototypes.

        Returns:
            As `supervised_prototypical_contrastive_loss`.

        Raises:
            TypeError, ValueError: as `supervised_prototypical_contrastive_loss`, or the batch does not fit the memory.
            RuntimeError: the call would fill the memory within a backward pass, as activation checkpointing repeats it.
        """
        if update_memory is None:
            update_memory = self.training and torch.is_grad_enabled()
        check_bool("update_memory", update_memory)
        if update_memory:
            check_outside_backward()
        options = self._options()
        # With `gather_distributed` the batch is that of all ranks, and each enqueues it: so their memories stay equal.
        batch = self._batch(
            options, prototypes, embeddings, labels, candidates, candidate_labels, self.class_weights, sample_weight
        )
        loss = loss_of_batch(batch, options)
        if update_memory:
            self.memory._end_step(batch.embeddings, batch.labels)
        return loss

    if TYPE_CHECKING:
        __call__ = forward  # else a call would have the type Any

    def _batch(
        self, options: Options, learned: Tensor | None, embeddings: Tensor, labels: Tensor, *others: Any
    ) -> Batch:
        """The batch with the prototypes to compare with, after a check; with `gather_distributed` that of all ranks."""
        memory, drawn = self.memory, self.training and learned is None
        with refusing(options):
            prototypes, exist = learned, None
            if learned is None:
                prototypes, exist = memory.prototypes(advance=False) if drawn else memory.centroids()
            batch = checked_batch(Batch(embeddings, labels, prototypes, exist, *others), options, memory.queue)
        if not several_ranks(options):
            return batch
        settings = {"training": self.training, "support_size": memory.support_size, "queue_size": memory.queue_size}
        # Not by `|`: torch 2.6 cannot trace it.
        state = {"draw counter": memory.draws, **({"seed": memory.seed} if drawn else {})}
        return gather_batch(batch, options, settings, state)

    def diagnostics(self, embeddings: Tensor, labels: Tensor, *, prototypes: Tensor | None = None) -> dict[str, Tensor]:
        """What the loss sees in a batch. Changes no state, has no gradient, and waits for no GPU.

        In training mode, call it before the loss of the same batch: both then see the same prototypes. Under
        `torch.compile` call it on the loss itself, outside the compiled code. With `gather_distributed` the batch is
        that of all ranks, and every rank has to call it.

        Args:
            embeddings: (N, D) floating, not normalised.
            labels: (N,) integer.
            prototypes: (C, D) learned prototypes, as for the loss.

        Returns:
            A dictionary. A value that does not exist, such as the mean over no anchor, is NaN.

            * loss_above_floor: () mean loss of the anchors that count, all of weight 1. With ``contrast="all"`` the
              smallest possible loss of an anchor is log n_i and depends on its batch. It is subtracted, so that the
              value can be compared between batch sizes, and between training and validation.
            * loss_above_floor_by_class: (C,) the same by class of the anchor.
            * positives_per_anchor: () mean of n_i over all anchors.
            * cosine_within, cosine_between: () mean cosine of two rows of the batch of the same class, of different
              classes.
            * prototype_drift: (C,) one minus the cosine between the prototype of a class and the mean of the class's
              unit-length rows in the batch. It grows when the encoder moves away from what the queue holds.
            * queue_fill: (C,) part of each queue that is filled, from 0 to 1.
            * queue_age: (C,) age of the oldest entry of each queue in training steps. It is an estimate, as if all
              entries since the last `initialize` had come evenly and in batches as large as this one.

        Raises:
            TypeError, ValueError: as the loss.
        """
        options = self._options()
        batch = self._batch(options, prototypes, embeddings, labels, None, None, None, None)
        return diagnose(batch, options, self.memory)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores of embeddings (N, D) against the centroids: (N, C), -inf where a class has none.

        Raises:
            ValueError: no class has a centroid. On a GPU this is a device-side assertion.
        """
        self._options().check()
        check_embeddings(embeddings, self.memory.queue)
        centroids, exists = self.memory.centroids()
        check_any_class(exists)
        dtype = computed_dtype(embeddings)
        with without_autocast(embeddings.device.type):
            scores = matmul(unit_rows(embeddings.to(dtype)), unit_rows(centroids.to(dtype)).T)
            if self.similarity == "shifted_cosine":
                scores = (1 + scores) / 2
            return (scores / self.temperature).masked_fill(~exists, -math.inf)

    def predict(self, embeddings: Tensor) -> Tensor:
        """Class of the centroid nearest in angle to each of the embeddings (N, D): (N,) int64.

        Raises:
            ValueError: as `logits`.
        """
        return self.logits(embeddings).argmax(dim=1)

    @property
    def ignore_index(self) -> int:
        """The label of rows to leave out. The loss and its memory share it."""
        return self.memory.ignore_index

    @ignore_index.setter
    def ignore_index(self, value: int) -> None:
        self.memory.ignore_index = value

    def _restore_buffers(self) -> None:
        values = self._constructor_weights
        if values is None:
            self.class_weights = None
        elif self.class_weights is not None:
            if math.isnan(values[0]):
                warnings.warn(
                    "class_weights was built on the meta device and has no values yet, so losses are NaN. Load a state "
                    "dict that holds it, or build it with device='cpu'",
                    stacklevel=2,
                )
            self.class_weights.copy_(torch.tensor(values, dtype=torch.float64, device=self.class_weights.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        _, _, missing, *_ = rest
        name, weights = prefix + "class_weights", self._constructor_weights
        if name in missing and weights is not None and not math.isnan(weights[0]):
            missing.remove(name)  # older state dicts have no class weights: those of the constructor stay

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options()._asdict().items())

    def _options(self) -> Options:
        return Options(*(getattr(self, name) for name in Options._fields))

    def __setattr__(self, name: str, value: Any) -> None:
        memory = self.__dict__.get("_modules", {}).get("memory")
        if memory is not None:
            if name == "memory":
                _check_memory(value, memory.num_classes, memory.embedding_dim, memory.ignore_index)
            if name == "support_size" or (name in _FIXED and value != getattr(memory, _FIXED[name])):
                remedy = "Set criterion.memory.support_size" if name == "support_size" else "Build a new loss"
                raise AttributeError(
                    f"{name} belongs to the memory; setting it on the loss would change nothing. {remedy}"
                )
        super().__setattr__(name, value)

    def __copy__(self) -> SupervisedPrototypicalContrastiveLoss:
        copied = self.__class__.__new__(self.__class__)
        # Without compiled code, which would run the original.
        copied.__dict__.update(super().__getstate__())  # type: ignore[no-untyped-call]
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> SupervisedPrototypicalContrastiveLoss:
        memo[id(self.process_group)] = self.process_group  # a live handle: the copy uses the same group
        copied = memo[id(self)] = copy.copy(self)
        copied.__dict__.update(copy.deepcopy(copied.__dict__, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"process_group": None, "_had_process_group": self.process_group is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.pop("_had_process_group", False):
            warnings.warn(
                "process_group is not part of a pickle: the loaded loss uses all ranks. "
                "Set criterion.process_group to the group if it should use only some",
                stacklevel=2,
            )
        super().__setstate__(state)  # type: ignore[no-untyped-call]


# What a subclass may keep as its own attribute, by the memory's name of it.
_FIXED = {name: name for name in ("num_classes", "embedding_dim", "queue_size")} | {"seed": "_constructor_seed"}


def _check_memory(memory: PrototypeMemory, num_classes: int, embedding_dim: int, ignore_index: int) -> None:
    if not isinstance(memory, PrototypeMemory):
        raise TypeError(
            f"memory must be a PrototypeMemory; received {type(memory).__name__}. "
            f"Build one with PrototypeMemory({num_classes}, {embedding_dim})"
        )
    if (memory.num_classes, memory.embedding_dim) != (num_classes, embedding_dim):
        raise ValueError(
            f"memory must hold num_classes={num_classes} and embedding_dim={embedding_dim}; received one of "
            f"{memory.num_classes} and {memory.embedding_dim}. Build it with the same sizes"
        )
    if memory.ignore_index != ignore_index:
        raise ValueError(
            f"memory must have ignore_index={ignore_index}; received one with {memory.ignore_index}. Give both the same"
        )
