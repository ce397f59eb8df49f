"""One batch out of the rows of all ranks: what is sent, and what ranks have to agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from spcl_loss._hashing import checksum
from spcl_loss.methods import Options

# The name since torch 2.13, where the older one warns.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)


def several_ranks(options: Options) -> bool:
    """Whether the rows of several ranks form one batch."""
    grouped = options.gather_distributed and dist.is_available() and dist.is_initialized()
    return grouped and dist.get_world_size(options.process_group) > 1


class Ranks(NamedTuple):
    """How many rows each rank holds, and which rank this is."""

    counts: list[int]
    rank: int
    group: dist.ProcessGroup | None


class Batch(NamedTuple):
    """What the loss of a batch is computed from. With `ranks` the rows are those of all of them, in rank order.

    In compiled code use neither `_asdict` nor `_replace`, here and in `Options` and `Comparison`: torch 2.6 cannot
    trace these.
    """

    embeddings: Tensor  # (N, D)
    labels: Tensor  # (N,) once checked int64, -1 for rows that are ignored; `candidate_labels` likewise
    prototypes: Tensor | None  # (C, D)
    prototype_mask: Tensor | None  # (C,)
    candidates: Tensor | None  # (M, D)
    candidate_labels: Tensor | None  # (M,)
    class_weights: Tensor | None  # (C,)
    sample_weight: Tensor | None  # (N,)
    ranks: Ranks | None = None


def gather_batch(own: Batch, options: Options, settings: Mapping[str, object], state: Mapping[str, Tensor]) -> Batch:
    """The batch of all ranks. `options`, `settings` and `state` have to be the same on each of them.

    No gradient is sent. Every rank computes the same loss of the same batch, and the complete gradient of its own rows
    times the number of ranks, by which DDP divides when it averages.
    """
    group = options.process_group
    agreed: dict[str, object] = {
        "width of embeddings": own.embeddings.shape[1],
        "dtype of embeddings": own.embeddings.dtype,
        "dtype of sample_weight": None if own.sample_weight is None else own.sample_weight.dtype,
        "dtype of class_weights": None if own.class_weights is None else own.class_weights.dtype,
        **dict(zip(Options._fields, options, strict=True)),
        **settings,
    }
    del agreed["process_group"]  # a handle, different on every rank
    for name, tensor in (("prototypes", own.prototypes), ("candidates", own.candidates)):
        agreed[f"shape of {name}"] = None if tensor is None else tuple(tensor.shape)
        agreed[f"requires_grad of {name}"] = tensor is not None and tensor.requires_grad
    if own.class_weights is not None:
        state = {**state, "class_weights": own.class_weights.detach()}
    ranks = Ranks(_agree(own.embeddings, group, agreed, state), dist.get_rank(group), group)
    sample_weight = own.sample_weight
    return Batch(
        embeddings=_with_own_gradient(ranks, own.embeddings),
        labels=gather_rows(own.labels, ranks.counts, group),
        prototypes=own.prototypes,
        prototype_mask=own.prototype_mask,
        candidates=own.candidates,
        candidate_labels=own.candidate_labels,
        class_weights=own.class_weights,
        sample_weight=None if sample_weight is None else _with_own_gradient(ranks, sample_weight),
        ranks=ranks,
    )


def gather_rows(tensor: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all ranks in rank order, as constants. Every rank calls this; `counts` are the rows that each has."""
    # Collectives want equal sizes: pad to the longest batch, then cut the padding off.
    longest = max(counts)
    padded = tensor.detach()
    if tensor.shape[0] < longest:
        padded = torch.cat([padded, padded.new_zeros(longest - tensor.shape[0], *tensor.shape[1:])])
    gathered = tensor.new_empty(len(counts) * longest, *tensor.shape[1:])
    if longest > 0:
        _all_gather(gathered, padded.contiguous(), group=group)
    if min(counts) == longest:
        return gathered
    return torch.cat([gathered[longest * rank : longest * rank + count] for rank, count in enumerate(counts)])


def refusing(options: Options) -> AbstractContextManager[None]:
    """Tells the other ranks of a batch when this one refuses its part. Otherwise they would wait for it for ever."""
    # Compiled graphs cannot contain the collective that reports an error.
    together = several_ranks(options) and not torch.compiler.is_compiling()
    return _refusing_together(options.process_group) if together else nullcontext()


@contextmanager
def _refusing_together(group: dist.ProcessGroup | None) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        _exchange(0, _REFUSED, {}, group)
        _gather_objects(str(error), group)
        raise


_REFUSED = -1  # Sent instead of a header by a rank that refused its batch. No settings have this crc32.
_STRIDE = 6364136223846793005  # odd and large: one number is not mistaken for another


def _agree(
    embeddings: Tensor, group: dist.ProcessGroup | None, settings: Mapping[str, object], state: Mapping[str, Tensor]
) -> list[int]:
    """Returns how many rows each rank holds. Where settings or state differ, all ranks raise the same error."""
    rows = embeddings.shape[0]
    if torch.compiler.is_compiling():  # a graph has fixed shapes: all batches have to be as long as this one
        size = dist.get_world_size(group)
        counts = torch.empty(size, dtype=torch.int64, device=embeddings.device)
        _all_gather(counts, torch.full((1,), rows, device=embeddings.device), group=group)
        torch._assert_async((counts == rows).all(), "ranks must hold equally many rows when the loss is compiled")
        return [rows] * size
    headers = _exchange(rows, crc32(repr(settings).encode()), state, group)
    if len({header for _, header in headers}) > 1:
        shown = {name: repr(value) for name, value in settings.items()}
        shown |= {name: str(tensor.tolist()) for name, tensor in state.items()}
        raise ValueError(_disagreement(_gather_objects(shown, group)))
    return [count for count, _ in headers]


def _exchange(rows: int, header: int, state: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> list[list[int]]:
    """(rows, header) of every rank; a checksum of the state is part of the header where it is on the same device.

    Uses the CPU where the group can, so as not to wait for a GPU's queue.
    """
    devices = [pair.split(":")[0] for pair in dist.get_backend_config(group).split(",")]
    device = "cpu" if "cpu" in devices else devices[0]
    headers = torch.empty(dist.get_world_size(group), 2, dtype=torch.int64, device=device)
    own = torch.tensor([[rows, header]], device=device)
    for tensor in state.values():
        if tensor.device.type == own.device.type:
            own[:, 1].mul_(_STRIDE).add_(checksum(tensor))
    _all_gather(headers, own, group=group)
    values: list[list[int]] = headers.tolist()
    return values


def _gather_objects(value: str | dict[str, str], group: dist.ProcessGroup | None) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def _disagreement(settings: list[Any]) -> str:
    for rank, theirs in enumerate(settings):
        if isinstance(theirs, str):
            return f"all ranks must have a batch that fits; rank {rank} refused its own: {theirs}"
    for rank, theirs in enumerate(settings):
        for name in settings[0] | theirs:  # one may have called the module, another the function
            own, other = settings[0].get(name), theirs.get(name)
            if own != other:
                return (
                    f"ranks must agree on the {name}; received {own} on rank 0 and {other} on rank {rank}. "
                    "Build the model and the loss from the same settings on all of them"
                )
    raise AssertionError("settings with different checksums are different")


def _with_own_gradient(ranks: Ranks, own: Tensor) -> Tensor:
    constants = gather_rows(own, ranks.counts, ranks.group)
    gathered: Tensor = _OwnGradient.apply(own, constants, ranks)  # type: ignore[no-untyped-call]
    return gathered


class _OwnGradient(torch.autograd.Function):
    """The gathered rows. Sends gradients to this rank's rows only; the other ranks handle theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, gathered: Tensor, ranks: Ranks) -> Tensor:
        ctx.start, ctx.rows, ctx.size = sum(ranks.counts[: ranks.rank]), own.shape[0], len(ranks.counts)
        return gathered.view_as(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.start : ctx.start + ctx.rows] * ctx.size, None, None
