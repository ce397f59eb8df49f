"""Dialogues as the encoder's input: previous turns, a query, and a mask whose hidden state is the representation.

`[CLS] speaker: text [SEP] ... For utterance: text [SEP] speaker feels [MASK] [SEP]`, one for each utterance, as in the
paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .dialogues import Dialogue, Turn
from .inputs import Input, Sample, length_limit, special


@dataclass(frozen=True)
class _Tokens:
    said: list[int]  # "speaker: text"
    query: list[int]  # "For utterance: text", "speaker feels", mask


class Prompts:
    """A split's dialogues, tokenised once.

    Args:
        tokenizer: of the encoder; its own mask token marks the place of the representation.
        context_turns: how many previous turns come before the query.
        future_turns: how many later turns the context also has, which is no longer causal; the turn itself then stands
            between its past and its future.
        repeat_turn: whether the turn itself ends its context.
        max_length: tokens that context and query may take together. A query that is longer stays whole, up to the
            encoder's own limit.
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        tokenizer: Any,
        *,
        context_turns: int,
        repeat_turn: bool,
        max_length: int,
        future_turns: int = 0,
    ) -> None:
        self.limit = length_limit(tokenizer, max_length)
        self.dialogues = dialogues
        self.context_turns, self.future_turns = context_turns, future_turns
        self.repeat_turn, self.max_length = repeat_turn or future_turns > 0, max_length
        self.padding: int = tokenizer.pad_token_id or 0
        self.start = special(tokenizer, "cls_token_id", "bos_token_id")
        self.tokens = _tokenise(dialogues, tokenizer)

    def own_queries(self) -> list[Sample]:
        """A sample for every labelled turn."""
        return [self._sample(d, turn, turn) for d, turn in self._labelled()]

    def past_queries(self, share: float, generator: torch.Generator) -> list[Sample]:
        """For a random `share` of the turns: the same context, but the query asks for a random earlier turn in it.

        The number depends on the dialogues and the share only, never on the draw.
        """
        options = [(d, turn, self._labelled_before(d, turn)) for d, turn in self._labelled()]
        options = [option for option in options if option[2]]
        chosen = torch.randperm(len(options), generator=generator)[: round(min(share, 1) * len(options))]
        samples = []
        for index in chosen.sort().values.tolist():
            d, turn, earlier = options[index]
            query = earlier[int(torch.randint(len(earlier), (), generator=generator))]
            samples.append(self._sample(d, turn, query))
        return samples

    def _labelled(self) -> Iterator[tuple[int, int]]:
        for d, dialogue in enumerate(self.dialogues):
            for position, turn in enumerate(dialogue.turns):
                if turn.label is not None:
                    yield d, position

    def _labelled_before(self, d: int, turn: int) -> list[int]:
        turns = self.dialogues[d].turns
        return [i for i in range(max(0, turn - self.context_turns), turn) if turns[i].label is not None]

    def _sample(self, d: int, turn: int, query: int) -> Sample:
        """The dialogue as it stands after `turn`, asked for the emotion of `query`."""
        tokens = self.tokens[d]
        # A query about the past needs the present turn in its context: it is what came after.
        last = turn + 1 if self.repeat_turn or query != turn else turn
        asked = tokens[query].query[-(self.limit - 1) :]
        room = self.max_length - 1 - len(asked)
        past = _whole_turns(reversed(tokens[max(0, turn - self.context_turns) : last]), room)
        future = _whole_turns(tokens[turn + 1 : turn + 1 + self.future_turns], room - sum(map(len, past)))
        context = [token for said in (*reversed(past), *future) for token in said]
        ids = (self.start, *context, *asked)
        owner = self.dialogues[d].turns[query]
        assert owner.label is not None
        mask = len(ids) - 2
        return Sample(Input(ids), mask, mask + 1, owner.label, self.dialogues[d].id, owner.id)


def _whole_turns(turns: Iterable[_Tokens], room: int) -> list[list[int]]:
    """What was said in the turns, up to the first that no longer fits into `room` tokens."""
    fitting = []
    for turn in turns:
        room -= len(turn.said)
        if room < 0:
            break
        fitting.append(turn.said)
    return fitting


def _tokenise(dialogues: Sequence[Dialogue], tokenizer: Any) -> list[list[_Tokens]]:
    end = special(tokenizer, "sep_token_id", "eos_token_id")
    mask = special(tokenizer, "mask_token_id")
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]

    def ids(text: Callable[[Turn], str]) -> Iterator[list[int]]:
        batch = [text(turn) for turn in turns]
        # verbose: a turn beyond the encoder's limit is cut here, not by the tokenizer, and needs no warning
        return iter(tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"] if batch else [])

    said = ids(lambda turn: f"{turn.speaker}: {turn.text}")
    query = ids(lambda turn: f"For utterance: {turn.text}")
    feels = ids(lambda turn: f"{turn.speaker} feels")
    return [
        [_Tokens([*next(said), end], [*next(query), end, *next(feels), mask, end]) for _ in dialogue.turns]
        for dialogue in dialogues
    ]
