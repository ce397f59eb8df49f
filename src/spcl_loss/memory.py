"""Per-class queues of embeddings, and the prototypes drawn from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spcl_loss._checks import FLOATING, check_embeddings, check_ignore_index, check_size, checked_labels
from spcl_loss._hashing import checksum, draw_keys, hashed
from spcl_loss._numerics import computed_dtype, parts, sum_dtype
from spcl_loss._state import Restorable


class PrototypeMemory(Restorable):
    """The last `queue_size` embeddings of every class, and a prototype for each: the mean of `support_size` of them.

    All state is in buffers, so it moves, saves and loads with the model. A draw is a hash of (seed, draw counter,
    class, slot). A resumed run, another device and every rank therefore draw the same support sets, and the global
    random generators are neither read nor advanced.

    Sums are taken in float32 or better, whatever the dtype of the queues. A row stays out where it is not finite in
    that dtype: a float16 queue refuses a row with an entry beyond 65504. Converting a filled memory to float16, or
    loading its state into one of float16, saturates such entries.

    Args:
        num_classes: C.
        embedding_dim: D.
        queue_size: M, how many embeddings each class remembers; the oldest leaves first.
        support_size: K <= M, how many of them, drawn without replacement, make a prototype. It can be set later.
        seed: of the draws.
        ignore_index: the label of rows that never enter. It can be set later.
        dtype: of the stored embeddings.

    Attributes:
        num_classes, embedding_dim, queue_size: the sizes. They are fixed.
        queue: (C, M, D) raw embeddings; entry n of a class lies in slot n modulo M.
        cursors: (C,) int64, how many embeddings ever entered since the last `initialize` or `reset`.
        counts: (C,) int64, how many of them are still there.

    Raises:
        TypeError: a size is no int, or dtype not floating.
        ValueError: a size below 1, or support_size above queue_size.

    Examples:
        >>> import torch
        >>> memory = PrototypeMemory(2, 3, queue_size=4, support_size=2)
        >>> memory.update(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))
        >>> memory.counts
        tensor([4, 0])
        >>> prototypes, exists = memory.prototypes()
        >>> exists
        tensor([ True, False])

    Reference:
        Song, Huang, Xue, Hu: Supervised Prototypical Contrastive Learning for Emotion Recognition in Conversation,
        EMNLP 2022, section 3.2.
    """

    _settings = ("support_size", "ignore_index")
    queue: Tensor
    cursors: Tensor
    fallback: Tensor
    has_fallback: Tensor
    seed: Tensor
    draws: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        queue_size: int = 256,
        support_size: int = 64,
        seed: int = 0,
        ignore_index: int = -100,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_size("num_classes", num_classes)
        check_size("embedding_dim", embedding_dim)
        check_size("queue_size", queue_size)
        check_size("seed", seed, minimum=0, below=1 << 63)  # it is kept as an int64
        check_ignore_index(ignore_index)
        if dtype not in FLOATING:
            received = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
            raise TypeError(
                f"dtype must be a floating torch.dtype of 16, 32 or 64 bits; received {received}. Use torch.float32"
            )
        self.support_size, self.ignore_index = support_size, ignore_index
        self._check_support_size(queue_size)
        self._constructor_seed = seed
        self.register_buffer("queue", torch.zeros(num_classes, queue_size, embedding_dim, dtype=dtype))
        self.register_buffer("cursors", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("fallback", torch.zeros(num_classes, embedding_dim, dtype=dtype))
        # 1 or 0. No bool: averages of weights take differences of buffers, which bools do not have.
        self.register_buffer("has_fallback", torch.zeros(num_classes, dtype=dtype))
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("draws", torch.tensor(0))
        self._built_on_meta = self._has_meta_buffers()
        self._constants = self._new_constants()

    @property
    def num_classes(self) -> int:
        """C."""
        return self.queue.shape[0]

    @property
    def queue_size(self) -> int:
        """M, how many embeddings each class remembers."""
        return self.queue.shape[1]

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.queue.shape[2]

    @property
    def counts(self) -> Tensor:
        """(C,) int64, how many embeddings each class remembers."""
        return self.cursors.clamp_max(self.queue_size)

    @torch.no_grad()
    def initialize(self, embeddings: Tensor, labels: Tensor) -> None:
        """Makes the class means of embeddings (n, D) with labels (n,) the fallback centres, and empties the queues.

        A class with no finite row loses its fallback centre. The draw counter goes on.

        Raises:
            TypeError, ValueError: as `update`.
        """
        classes = self._checked(embeddings, labels)
        C, _, D = self.queue.shape
        # The last row takes the rows that stay out, with whatever they hold.
        sums = torch.zeros(C + 1, D, dtype=sum_dtype(self.queue.device), device=self.queue.device)
        sizes = torch.zeros(C + 1, dtype=torch.int64, device=self.queue.device)
        for part in parts(*embeddings.shape):
            rows = embeddings[part].to(self.queue.dtype)
            stays_out = (classes[part] < 0) | ~_finite(rows)
            places = classes[part].masked_fill(stays_out, C)
            sums.index_add_(0, places, rows.to(sums.dtype))
            sizes.index_add_(0, places, torch.ones_like(places))
        self.fallback.copy_((sums / sizes.clamp_min(1)[:, None])[:-1])
        self.has_fallback.copy_(sizes[:-1] > 0)
        self.queue.zero_()
        self.cursors.zero_()

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Enqueues embeddings (N, D) under labels (N,), in order; ignored and non-finite rows stay out.

        Raises:
            TypeError: an argument is no tensor or has the wrong kind of dtype.
            ValueError: a shape, a device or a label does not fit the memory; the message says what would.
        """
        classes = self._checked(embeddings, labels)
        rows = embeddings.to(self.queue.dtype)
        self._enqueue(rows, classes.masked_fill(~_finite(rows), -1))

    @torch.no_grad()
    def _end_step(self, embeddings: Tensor, classes: Tensor) -> None:
        """Moves the draw counter on and enqueues a checked batch. If a row is not finite, nothing changes.

        The loss of such a step is NaN, and gradient scalers skip it. Ranks that share a batch decide alike.
        """
        rows = embeddings.to(self.queue.dtype)
        healthy = (_finite(embeddings) | (classes < 0)).all()
        self.draws.add_(healthy)
        stays_out = ~healthy if rows.dtype == embeddings.dtype else ~(healthy & _finite(rows))
        self._enqueue(rows, classes.masked_fill(stays_out, -1))

    def _enqueue(self, rows: Tensor, classes: Tensor) -> None:
        """Enqueues rows in the queue's dtype; those of class -1 stay out. Shapes do not depend on the data.

        Two writes to one slot write the same row.
        """
        N, (C, M, _) = rows.shape[0], self.queue.shape
        if N == 0:
            return
        numbers, _ = self._numbered()
        classes, order = classes.sort(stable=True)  # rows that stay out come first
        bounds = torch.searchsorted(classes, numbers[: C + 1])  # of each class in the order
        # Redirect each row that stays out to the first row that enters, so that shapes do not depend on the data.
        source = torch.arange(N, device=classes.device)
        source = source.clamp(bounds[0], source[-1])
        classes = classes.index_select(0, source)
        if torch.compiler.is_compiling() or N > M:  # a graph serves batches of every size
            # If several rows of a class share a slot, all of them write the last one's values.
            last = bounds[1:][classes] - 1
            source = last - (last - source) % M
        starts = self.cursors.sub_(bounds[:-1])
        slots = (starts[classes] + source) % M
        new = rows.index_select(0, order.index_select(0, source))
        first = classes[:1], slots[:1]
        old = self.queue[first]
        self.queue.index_put_((classes, slots), new)
        # If none enters, all classes are -1, which indexes the last class, and one slot gets back what it held.
        self.queue.index_put_(first, torch.where(bounds[0] == N, old, new[:1]))
        self.cursors.add_(bounds[1:])

    @torch.no_grad()
    def prototypes(self, *, advance: bool = True) -> tuple[Tensor, Tensor]:
        """Draws a support set for every class.

        Args:
            advance: whether the draw counter moves on. False changes no state: the next draw is this one again.

        Returns:
            (C, D) prototypes, not normalised, and (C,) bool, which of them exist. A class with fewer than
            `support_size` entries has its fallback centre or, if none was set, the mean of its entries.

        Raises:
            ValueError: `support_size` was set to a value that does not fit.
        """
        queue, entered, K = self.queue, self.cursors[:, None], self.support_size
        C, M, _ = queue.shape
        self._check_support_size(M)
        numbers, hashes = self._numbered()
        keys = draw_keys(hashes, self.seed, self.draws)
        keys.masked_fill_(numbers[:M] >= entered, torch.iinfo(torch.int64).max)  # free slots sort last
        support = keys.topk(K, largest=False, sorted=False).indices + numbers[: C * M : M, None]
        if advance:
            self.draws.add_(1)
        # Support sets of short queues include free slots. Those hold zeros, which add nothing to the sum.
        return self._with_fallbacks(_sums(queue.flatten(0, 1), support) / entered.clamp(1, K))

    @torch.no_grad()
    def centroids(self) -> tuple[Tensor, Tensor]:
        """(C, D) means of whole queues, not normalised, and (C,) bool, which of them exist.

        As for `prototypes`, a class with fewer than `support_size` entries has its fallback centre if one was set.
        """
        self._check_support_size(self.queue_size)
        counts = self.counts[:, None].clamp_min(1)
        return self._with_fallbacks(self.queue.sum(1, dtype=computed_dtype(self.queue)) / counts)  # free slots are zero

    @torch.no_grad()
    def entries(self, per_class: int) -> tuple[Tensor, Tensor]:
        """The newest entries of every class, such as for `candidates` of the loss.

        Args:
            per_class: k, how many of each class.

        Returns:
            (C * k, D) entries as they are stored and (C * k,) int64 labels, class by class, the newest first. Where a
            class has fewer entries, zeros with the label `ignore_index` stand in their place. So the shapes are always
            the same, and nothing waits for a GPU.

        Raises:
            TypeError, ValueError: `per_class` is no int from 0 to `queue_size`.
        """
        C, M, D = self.queue.shape
        check_ignore_index(self.ignore_index)
        check_size("per_class", per_class, minimum=0)
        if per_class > M:
            raise ValueError(f"per_class must be at most queue_size={M}; received {per_class}. Take fewer")
        ages = torch.arange(per_class, device=self.queue.device)
        classes = torch.arange(C, device=self.queue.device)[:, None]
        slots = (self.cursors[:, None] - 1 - ages) % M
        labels = torch.where(ages < self.counts[:, None], classes, self.ignore_index)
        return self.queue[classes, slots].view(-1, D), labels.view(-1)

    def reset(self) -> None:
        """Restores the state of a new memory: empty queues, no fallback centres, the constructor's seed, no draw."""
        self.reset_parameters()

    def _restore_buffers(self) -> None:
        for buffer in (self.queue, self.cursors, self.fallback, self.has_fallback, self.draws):
            buffer.zero_()
        self.seed.fill_(self._constructor_seed)

    @torch.no_grad()
    def fingerprint(self) -> Tensor:
        """() int64 checksum of every bit of state, to compare ranks or runs with; reads the queues once.

        Examples:
            >>> import torch
            >>> memory, other = PrototypeMemory(2, 3), PrototypeMemory(2, 3)
            >>> bool(memory.fingerprint() == other.fingerprint())
            True
            >>> memory.update(torch.ones(1, 3), torch.tensor([0]))
            >>> bool(memory.fingerprint() == other.fingerprint())
            False
        """
        total = torch.zeros_like(self.draws)
        for buffer in self.buffers():
            total = hashed(total ^ checksum(buffer))
        return total

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        return (
            f"num_classes={self.num_classes}, embedding_dim={self.embedding_dim}, queue_size={self.queue_size}, "
            f"support_size={self.support_size}"
        )

    def _with_fallbacks(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """(C, D) the means in the queue's dtype, and (C,) bool, which of them exist.

        A class with a fallback centre has this one until `support_size` entries have come since.
        """
        few = self.cursors[:, None] < self.support_size * self.has_fallback[:, None].float()  # bfloat16 has no 257
        prototypes = torch.where(few, self.fallback, means.to(self.queue.dtype))
        return prototypes, torch.logical_or(self.has_fallback, self.cursors)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        dtype = self.queue.dtype
        super()._apply(fn, recurse)
        self._saturate(dtype)
        self._constants = self._new_constants()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._saturate(getattr(state_dict.get(prefix + "queue"), "dtype", self.queue.dtype))

    def _saturate(self, converted_from: torch.dtype) -> None:
        """Makes finite what has become infinite in float16: it would make every later loss NaN."""
        if self.queue.dtype != converted_from:
            self.queue.nan_to_num_()
            self.fallback.nan_to_num_()

    def _check_support_size(self, queue_size: int) -> None:
        check_size("support_size", self.support_size)
        if self.support_size > queue_size:
            raise ValueError(
                f"support_size must be at most queue_size={queue_size}; received {self.support_size}. "
                "A prototype is the mean of different entries of one queue: lower it or enlarge the queue"
            )

    def _checked(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(N,) the labels as `_enqueue` takes them: -1 for those that are ignored."""
        check_ignore_index(self.ignore_index)
        check_embeddings(embeddings, self.queue)
        return checked_labels(labels, embeddings.shape[0], embeddings.device, self.num_classes, self.ignore_index)

    def _numbered(self) -> tuple[Tensor, Tensor]:
        """(C * M + 1,) int64, the numbers from 0 on, and (C, M) int64, hashes of the first: constants of the sizes."""
        constants = self._constants
        if constants[0].device != self.queue.device:  # the buffers were assigned one by one, as by a state dict
            constants = self._new_constants()
            if not torch.compiler.is_compiling():
                self._constants = constants
        return constants

    def _new_constants(self) -> tuple[Tensor, Tensor]:
        C, M, _ = self.queue.shape
        numbers = torch.arange(C * M + 1, device=self.queue.device)
        return numbers, hashed(numbers[:-1].view(C, M))


def _finite(rows: Tensor) -> Tensor:
    """(N,) bool, the rows without a NaN and without an infinity."""
    return rows.abs().amax(1) < math.inf


def _sums(entries: Tensor, support: Tensor) -> Tensor:
    """(C, D) sums of the entries that the rows of `support` (C, K) number, in float32 or better."""
    dtype = computed_dtype(entries)
    if entries.dtype != dtype:  # embedding_bag would give the sum in half precision, where it may be infinite
        return entries[support].sum(1, dtype=dtype)
    return nn.functional.embedding_bag(support, entries, mode="sum")
