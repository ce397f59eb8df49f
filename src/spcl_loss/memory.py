"""Per-class queues of embeddings, and the prototypes drawn from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spcl_loss._checks import check_device, check_floating, check_int, check_labels, check_size


class PrototypeMemory(nn.Module):
    """The last `queue_size` embeddings of every class, and a prototype for each: the mean of `support_size` of them.

    Every bit of state is a buffer, so that it moves, saves and loads with the model. A draw is a hash of (seed, draw
    counter, class, slot): a resumed run, another device and every rank draw the same support sets, and the global
    random generators are neither read nor advanced.

    Args:
        num_classes: C.
        embedding_dim: D.
        queue_size: M, how many embeddings each class remembers; the oldest leaves first.
        support_size: K <= M, how many of them, drawn without replacement, make a prototype.
        seed: of the draws.
        ignore_index: the label of rows that never enter.
        dtype: of the stored embeddings.

    Attributes:
        queue: (C, M, D) raw embeddings; entry n of a class lies in slot n modulo M.
        cursors: (C,) int64, how many embeddings ever entered since the last `initialize` or `reset`.
        counts: (C,) int64, how many of them are still there.

    Raises:
        TypeError: a size is no int, or dtype not floating.
        ValueError: a size below 1, or support_size above queue_size.

    Example:
        >>> import torch
        >>> memory = PrototypeMemory(num_classes=2, embedding_dim=3, queue_size=4, support_size=2)
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

    queue: Tensor
    cursors: Tensor
    fallback: Tensor
    has_fallback: Tensor
    seed: Tensor
    draws: Tensor
    _slots: Tensor
    _slot_hashes: Tensor
    _class_bounds: Tensor

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
        for name, size in {
            "num_classes": num_classes,
            "embedding_dim": embedding_dim,
            "queue_size": queue_size,
            "support_size": support_size,
        }.items():
            check_size(name, size)
        check_size("seed", seed, minimum=0, below=1 << 63)  # it is kept as an int64
        check_int("ignore_index", ignore_index)
        if support_size > queue_size:
            raise ValueError(
                f"support_size must be at most queue_size={queue_size}; received {support_size}. "
                "A prototype is the mean of different entries of one queue: lower it or enlarge the queue"
            )
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            received = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
            raise TypeError(f"dtype must be a floating torch.dtype; received {received}. Use torch.float32")
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.queue_size, self.support_size = queue_size, support_size
        self.ignore_index = ignore_index
        self.register_buffer("queue", torch.zeros(num_classes, queue_size, embedding_dim, dtype=dtype))
        self.register_buffer("cursors", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("fallback", torch.zeros(num_classes, embedding_dim, dtype=dtype))
        self.register_buffer("has_fallback", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("draws", torch.tensor(0))
        # Constants, kept because making them costs a small batch more than using them.
        slots = torch.arange(num_classes * queue_size).view(num_classes, queue_size)
        self.register_buffer("_slots", slots, persistent=False)
        self.register_buffer("_slot_hashes", _hash(slots), persistent=False)
        self.register_buffer("_class_bounds", torch.arange(num_classes + 2), persistent=False)

    @property
    def counts(self) -> Tensor:
        """(C,) int64, how many embeddings each class remembers."""
        return self.cursors.clamp_max(self.queue_size)

    @torch.no_grad()
    def initialize(self, embeddings: Tensor, labels: Tensor) -> None:
        """Makes the class means of embeddings (n, D) with labels (n,) the fallback centres, and empties the queues.

        A class with no finite row loses its fallback centre. The draw counter goes on.
        """
        self._check(embeddings, labels)
        rows, classes = self._admit(embeddings, labels)
        sums = self.queue.new_zeros(self.num_classes + 1, self.embedding_dim, dtype=_sum_dtype(rows.dtype))
        sizes = sums.new_zeros(self.num_classes + 1)
        # Rows of class C are those that never enter; what they hold must not be summed, as it may be NaN.
        rows = rows.to(sums.dtype).masked_fill(classes[:, None] == self.num_classes, 0)
        sums.index_add_(0, classes, rows)
        sizes.index_add_(0, classes, torch.ones_like(rows[:, 0]))
        self.fallback.copy_((sums / sizes.clamp_min(1)[:, None])[:-1])
        self.has_fallback.copy_(sizes[:-1] > 0)
        self.queue.zero_()
        self.cursors.zero_()

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Enqueues embeddings (N, D) under labels (N,), in order; ignored and non-finite rows stay out."""
        self._check(embeddings, labels)
        self._enqueue(embeddings, labels)

    @torch.no_grad()
    def _end_step(self, embeddings: Tensor, labels: Tensor) -> None:
        """The draw counter moves on and the batch enters; where a row is not finite, the step never happened.

        Such a step has a NaN loss, and gradient scalers skip it. Ranks that share a batch decide alike.
        """
        labels = labels.long()
        finite = embeddings.abs().amax(1).isfinite()
        healthy = (finite | (labels == self.ignore_index)).all()
        self.draws.add_(healthy)
        self._enqueue(embeddings, labels.masked_fill(~healthy, self.ignore_index))

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> None:
        """`update` without its checks. Shapes do not depend on the data; two writes to one slot write the same."""
        if embeddings.shape[0] == 0:
            return
        rows, classes = self._admit(embeddings, labels)
        classes, order = classes.sort(stable=True)  # rows that stay out have class C and come last
        bounds = torch.searchsorted(classes, self._class_bounds)
        starts, ends = bounds[:-1], bounds[1:]
        # Of the rows of a class that fall on one slot the last one writes, for all of them.
        last = ends[classes] - 1
        source = last - (last - torch.arange(rows.shape[0], device=rows.device)) % self.queue_size
        # A row that stays out repeats the write of the last one that enters; where none does, nothing may change.
        last_entering = ends[self.num_classes - 1] - 1
        source = torch.minimum(source, last_entering).clamp_min(0)
        classes = classes[source].clamp_max(self.num_classes - 1)
        arrived = ends[:-1] - starts[:-1]
        slots = classes * self.queue_size + ((self.cursors - starts[:-1])[classes] + source) % self.queue_size
        entries = self.queue.view(-1, self.embedding_dim)
        entries.index_copy_(0, slots, torch.where(last_entering < 0, entries[slots], rows[order[source]]))
        self.cursors.add_(arrived)

    @torch.no_grad()
    def prototypes(self, *, advance: bool = True) -> tuple[Tensor, Tensor]:
        """Draws a support set for every class.

        Args:
            advance: whether the draw counter moves on. False changes no state: the next draw is this one again.

        Returns:
            (C, D) prototypes, not normalised, and (C,) bool, which of them exist. With fewer than `support_size`
            entries a class has its fallback centre, without that the mean of what is there.
        """
        counts = self.counts[:, None]
        free = self._slots[0] >= counts
        keys = self._draw_keys().masked_fill_(free, torch.iinfo(torch.int64).max)  # free slots sort last
        support = keys.topk(self.support_size, largest=False, sorted=False).indices + self._slots[:, :1]
        if advance:
            self.draws.add_(1)
        # Free slots hold zeros: where they fill up a support set they add nothing to its sum.
        sums = nn.functional.embedding_bag(support, self.queue.view(-1, self.embedding_dim), mode="sum")
        means = sums / counts.clamp(1, self.support_size)
        means = torch.where(self.has_fallback[:, None] & (counts < self.support_size), self.fallback, means)
        return means, self._exist()

    @torch.no_grad()
    def centroids(self) -> tuple[Tensor, Tensor]:
        """Means of whole queues, the fallback centre where a queue is empty: (C, D), and (C,) bool, which exist."""
        counts = self.counts[:, None]
        means = self.queue.sum(1, dtype=_sum_dtype(self.queue.dtype)) / counts.clamp_min(1)  # free slots are zero
        return torch.where(counts > 0, means.to(self.queue.dtype), self.fallback), self._exist()

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the state of a new memory with the same seed."""
        for buffer in (self.queue, self.cursors, self.fallback, self.has_fallback, self.draws):
            buffer.zero_()

    @torch.no_grad()
    def fingerprint(self) -> Tensor:
        """() int64 checksum of every bit of state, to compare ranks or runs with; reads the queues once.

        Example:
            >>> import torch
            >>> memory, other = PrototypeMemory(2, 3), PrototypeMemory(2, 3)
            >>> bool(memory.fingerprint() == other.fingerprint())
            True
            >>> memory.update(torch.ones(1, 3), torch.tensor([0]))
            >>> bool(memory.fingerprint() == other.fingerprint())
            False
        """
        total = torch.zeros_like(self.draws)
        for buffer in (self.queue, self.cursors, self.fallback, self.has_fallback, self.seed, self.draws):
            total = _hash(total ^ _checksum(buffer))
        return total

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        return (
            f"num_classes={self.num_classes}, embedding_dim={self.embedding_dim}, queue_size={self.queue_size}, "
            f"support_size={self.support_size}"
        )

    def _exist(self) -> Tensor:
        """(C,) bool, the classes that have a prototype and a centroid."""
        return self.has_fallback | (self.cursors > 0)

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        check_floating("embeddings", embeddings, ("N", self.embedding_dim))
        check_device("embeddings", embeddings, "the memory", self.queue.device)
        check_labels(labels, embeddings.shape[0], embeddings.device, self.num_classes, self.ignore_index)

    def _admit(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows in the queue's dtype, and their classes: C, one past the last, for rows that never enter."""
        rows, classes = embeddings.to(self.queue.dtype), labels.long()
        finite = rows.abs().amax(1).isfinite()
        return rows, torch.where(finite & (classes != self.ignore_index), classes, self.num_classes)

    def _draw_keys(self) -> Tensor:
        """(C, M) int64 whose order is that of a random draw, the same for the same seed and draw counter.

        Half of SplitMix64's finaliser, over slot hashes that have been through the whole of it. It is a bijection and
        the slot hashes differ, so there are no ties, whose order could depend on the device.
        """
        start = torch.add(self.seed * _SEED_STRIDE, self.draws, alpha=_DRAW_STRIDE)
        keys = (self._slot_hashes ^ start) * _MIX_1
        return (keys ^ _shift_right(keys, 32)) * _MIX_2


def _hash(values: Tensor) -> Tensor:
    """SplitMix64: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014."""
    values = values * _GOLDEN
    values = (values ^ _shift_right(values, 30)) * _MIX_1
    values = (values ^ _shift_right(values, 27)) * _MIX_2
    return values ^ _shift_right(values, 31)


def _checksum(tensor: Tensor) -> Tensor:
    """() int64 from the bits of a tensor; any one bit that changes changes it. Sums wrap, so their order is free."""
    if tensor.is_floating_point():
        tensor = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    bits = tensor.long()
    while bits.dim():
        start = bits.dim() << 32  # other factors for every axis
        places = _hash(torch.arange(start, start + bits.shape[-1], device=bits.device)) | 1  # odd: none loses a bit
        bits = (bits * places).sum(-1)
    return bits


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """A logical shift: int64's own repeats the sign bit."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant; products wrap, which is what the hash wants."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)
# Odd steps of the hash's start from draw to draw and seed to seed: the fractional parts of the square roots of 2 and 3
# times 2^64, the last bit set.
_DRAW_STRIDE = _signed(0x6A09E667F3BCC909)
_SEED_STRIDE = _signed(0xBB67AE8584CAA73B)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
