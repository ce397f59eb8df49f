"""What goes into the encoder: token sequences, and the places in them whose hidden states represent utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .dialogues import InputError

AFTER_ALL = torch.iinfo(torch.long).max
NO_LIMIT = 1_000_000  # tokenizers without a limit state a huge number


@dataclass(frozen=True)
class Input:
    """Tokens that are encoded together.

    Attributes:
        ids: L token ids.
        turns: the number of each token's turn; a token sees its own turn and those before. None: all see all.
    """

    ids: tuple[int, ...]
    turns: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Sample:
    """A labelled utterance; the mean of the hidden states from `start` to before `end` represents it."""

    input: Input  # samples that share it are encoded at once
    start: int
    end: int
    label: int
    dialogue: str
    turn: str

    @property
    def length(self) -> int:
        """How many tokens of the input it needs."""
        return len(self.input.ids) if self.input.turns is None else self.end


@dataclass(frozen=True)
class Batch:
    """N samples in R inputs, which are padded to L tokens."""

    input_ids: Tensor  # (R, L)
    turns: Tensor  # (R, L) each token's turn; padding's is `AFTER_ALL`
    tokens: Tensor  # of all samples, one after the other: their tokens' places in the R * L
    offsets: Tensor  # (N,) where each sample's begin
    labels: Tensor  # (N,)
    by_turn: bool  # whether a token sees its own turn and those before it, else all

    @property
    def visible(self) -> Tensor:
        """What is seen: by all tokens of an input (R, L), or by each of them (R, L, L). Padding never is."""
        if self.by_turn:
            return self.turns[:, None, :] <= self.turns[:, :, None]
        return self.turns < AFTER_ALL

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        parts = (self.input_ids, self.turns, self.tokens, self.offsets, self.labels)
        return Batch(*(part.to(device, non_blocking=non_blocking) for part in parts), by_turn=self.by_turn)


def share_inputs(samples: Sequence[Sample], indices: Sequence[int]) -> list[list[int]]:
    """The indices in their order, but those of samples with the same input together."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(id(samples[index].input), []).append(index)
    return list(groups.values())


def collate(samples: Sequence[Sample], padding: int) -> Batch:
    """A batch no wider than its longest member needs; each input is in it once."""
    groups = share_inputs(samples, range(len(samples)))
    row = {index: r for r, group in enumerate(groups) for index in group}
    inputs = [samples[group[0]].input for group in groups]
    # Tokens after the last that is asked for are seen by none before them.
    lengths = [max(samples[index].length for index in group) for group in groups]
    input_ids = torch.full((len(inputs), max(lengths)), padding)
    turns = torch.full_like(input_ids, AFTER_ALL)
    for r, (one, length) in enumerate(zip(inputs, lengths, strict=True)):
        input_ids[r, :length] = torch.tensor(one.ids[:length])
        turns[r, :length] = torch.tensor(one.turns[:length]) if one.turns else 0
    spans = [torch.arange(sample.start, sample.end) + row[i] * input_ids.shape[1] for i, sample in enumerate(samples)]
    return Batch(
        input_ids,
        turns,
        torch.cat(spans),
        torch.tensor([0, *map(len, spans[:-1])]).cumsum(0),
        torch.tensor([sample.label for sample in samples]),
        by_turn=inputs[0].turns is not None,
    )


def length_limit(tokenizer: Any, max_length: int) -> int:
    """How many tokens the encoder takes; `max_length` must not be more."""
    limit = min(tokenizer.model_max_length, NO_LIMIT)
    if max_length > limit:
        raise InputError(f"max_length must be at most {limit}, the encoder's limit; received {max_length}")
    return int(limit)


def special(tokenizer: Any, *names: str) -> int:
    """The id of the first of the special tokens that the tokenizer has."""
    for name in names:
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    raise InputError(f"the encoder's tokenizer has no {names[0].removesuffix('_id')}: choose a masked language model")
