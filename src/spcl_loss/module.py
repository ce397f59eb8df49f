"""The loss as a module: the equations of `loss` with a prototype memory and a nearest-prototype head."""

from __future__ import annotations

import math

import torch.distributed as dist
from torch import Tensor, nn

from spcl_loss._checks import check_floating
from spcl_loss._numerics import computed_dtype, full_precision, matmul, unit_rows
from spcl_loss.loss import Options, checked_batch, loss_of_batch
from spcl_loss.memory import PrototypeMemory


class SupervisedPrototypicalContrastiveLoss(nn.Module):
    """The loss with a memory of its own: prototypes are drawn, the batch is compared, then it enters the queues.

    In training mode every call draws a new support set and enqueues the batch. In evaluation mode the prototypes are
    the centroids and nothing changes, so the value depends on the arguments and the memory alone. A batch with a row
    that is not finite has a NaN loss and changes nothing either.

    With `gather_distributed` every rank enqueues the rows of all, in rank order: the memories stay the same to the bit,
    and nothing is broadcast.

    Args:
        num_classes: C.
        embedding_dim: D.
        temperature: see `supervised_prototypical_contrastive_loss`, as for every option not listed here.
        queue_size: M, how many embeddings each class remembers.
        support_size: K, how many of them make a prototype.
        memory: a `PrototypeMemory` to use, shared or restored; then `queue_size`, `support_size` and `seed` are unused.
        seed: of the draws.

    Attributes:
        memory: the `PrototypeMemory`.
        temperature: like every other option it can be read and set, as in ``criterion.temperature = 0.07``. Its value
            is checked when it is next used.

    Raises:
        TypeError: an argument has the wrong kind.
        ValueError: a size or an option does not fit; the message says what would.

    Example:
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

    memory: PrototypeMemory
    class_weights: Tensor | None

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
        similarity: str = "shifted_cosine",
        positives: str = "inside",
        contrast: str = "all",
        easy_threshold: float | None = None,
        prototype_anchors: bool = False,
        class_weights: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        process_group: dist.ProcessGroup | None = None,
        gather_distributed: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.similarity, self.positives, self.contrast = similarity, positives, contrast
        self.easy_threshold, self.prototype_anchors = easy_threshold, prototype_anchors
        self.ignore_index, self.reduction = ignore_index, reduction
        self.process_group, self.gather_distributed = process_group, gather_distributed
        self.impl = impl
        self._options().check()
        if memory is None:
            memory = PrototypeMemory(
                num_classes,
                embedding_dim,
                queue_size=queue_size,
                support_size=support_size,
                seed=seed,
                ignore_index=ignore_index,
            )
        elif not isinstance(memory, PrototypeMemory):
            raise TypeError(
                f"memory must be a PrototypeMemory; received {type(memory).__name__}. Pass None for a new one"
            )
        elif (memory.num_classes, memory.embedding_dim) != (num_classes, embedding_dim):
            raise ValueError(
                f"memory must hold num_classes={num_classes} and embedding_dim={embedding_dim}; received one of "
                f"{memory.num_classes} and {memory.embedding_dim}. Build it with the same sizes"
            )
        elif memory.ignore_index != ignore_index:
            raise ValueError(
                f"memory must have ignore_index={ignore_index}; received one with {memory.ignore_index}. "
                "Give both the same"
            )
        if class_weights is not None:
            check_floating("class_weights", class_weights, (num_classes,))
        self.memory = memory
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        prototypes: Tensor | None = None,
        sample_weight: Tensor | None = None,
        update_memory: bool | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D) floating, not normalised.
            labels: (N,) integer.
            prototypes: (C, D) learned prototypes, used instead of the memory's. The memory is filled all the same.
            sample_weight: (N,) weight of an anchor.
            update_memory: whether the draw counter moves on and the batch is enqueued. None: in training mode. False
                leaves all state alone, so that a second pass over the same batch sees the same prototypes.

        Returns:
            As `supervised_prototypical_contrastive_loss`.
        """
        if update_memory is None:
            update_memory = self.training
        exists = None
        if prototypes is None:
            prototypes, exists = self.memory.prototypes(advance=False) if self.training else self.memory.centroids()
        weights, options = self.class_weights, self._options()
        # With `gather_distributed` the batch is that of all ranks, and each enqueues it: so their memories stay equal.
        batch = checked_batch(embeddings, labels, prototypes, exists, weights, sample_weight, options)
        loss = loss_of_batch(batch, prototypes, exists, weights, options)
        if update_memory:
            self.memory._end_step(batch.embeddings, batch.labels)
        return loss

    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores of embeddings (N, D) against the centroids: (N, C), -inf where a class has none."""
        check_floating("embeddings", embeddings, ("N", self.memory.embedding_dim))
        centroids, exists = self.memory.centroids()
        dtype = computed_dtype(embeddings)
        with full_precision(embeddings.device.type):
            scores = matmul(unit_rows(embeddings.to(dtype)), unit_rows(centroids.to(dtype)).T)
            if self.similarity == "shifted_cosine":
                scores = (1 + scores) / 2
            return (scores / self.temperature).masked_fill(~exists, -math.inf)

    def predict(self, embeddings: Tensor) -> Tensor:
        """Class of the centroid nearest in angle to each of the embeddings (N, D): (N,) int64."""
        return self.logits(embeddings).argmax(dim=1)

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options()._asdict().items())

    def _options(self) -> Options:
        return Options(*(getattr(self, name) for name in Options._fields))
