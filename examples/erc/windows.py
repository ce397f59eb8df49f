"""Dialogues as the encoder's input: stretches of them, in which every turn is represented by its own tokens.

A turn sees itself and what was said before, so one encoding of a stretch serves all its turns: as causal as a prompt
for each, at a fraction of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .dialogues import Dialogue
from .inputs import Input, Sample, length_limit, special


class Windows:
    """A split's dialogues, tokenised once: `[CLS] speaker: text [SEP] speaker: text [SEP] ...`.

    Args:
        tokenizer: of the encoder.
        context_turns: a dialogue that is too long goes on in a further window, which begins with so many of the turns
            before, as far as they fit into half of it.
        max_length: tokens of a window. A turn that is longer is cut.
    """

    def __init__(self, dialogues: Sequence[Dialogue], tokenizer: Any, *, context_turns: int, max_length: int) -> None:
        length_limit(tokenizer, max_length)
        self.context_turns, self.max_length = context_turns, max_length
        self.padding: int = tokenizer.pad_token_id or 0
        self.start = special(tokenizer, "cls_token_id", "bos_token_id")
        self.end = special(tokenizer, "sep_token_id", "eos_token_id")
        turns = [turn for dialogue in dialogues for turn in dialogue.turns]
        texts = [f"{turn.speaker}: {turn.text}" for turn in turns]
        said = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
        self.samples = [
            sample
            for dialogue in dialogues
            for sample in self._samples(dialogue, [self._ended(next(said)) for _ in dialogue.turns])
        ]

    def own_queries(self) -> list[Sample]:
        """A sample for every labelled turn."""
        return list(self.samples)

    def _ended(self, tokens: list[int]) -> list[int]:
        return [*tokens[: self.max_length - 2], self.end]

    def _samples(self, dialogue: Dialogue, said: list[list[int]]) -> Iterator[Sample]:
        first = 0
        while first < len(said):
            begin, stop = self._bounds(said, first)
            ids, turns, spans = [self.start], [begin], []
            for turn in range(begin, stop):
                spans.append((len(ids), len(ids) + len(said[turn])))
                ids += said[turn]
                turns += [turn] * len(said[turn])
            window = Input(tuple(ids), tuple(turns))
            for turn in range(first, stop):
                own = dialogue.turns[turn]
                if own.label is not None:
                    yield Sample(window, *spans[turn - begin], own.label, dialogue.id, own.id)
            first = stop

    def _bounds(self, said: list[list[int]], first: int) -> tuple[int, int]:
        """The turns of the window that asks for the turn `first` and as many after it as fit."""
        begin, room = first, self.max_length - 1 - len(said[first])
        spare = min(room, self.max_length // 2)
        while begin > 0 and first - begin < self.context_turns and len(said[begin - 1]) <= spare:
            begin -= 1
            spare -= len(said[begin])
            room -= len(said[begin])
        stop = first + 1
        while stop < len(said) and len(said[stop]) <= room:
            room -= len(said[stop])
            stop += 1
        return begin, stop
