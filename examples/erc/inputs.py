"""What goes into the encoder: dialogues as token sequences, and the tokens that represent each utterance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .data import Dialogue
from .files import InputError
from .settings import Settings

AFTER_ALL = torch.iinfo(torch.int32).max
PAST_QUERIES = 0.2  # share of the turns that also ask for an earlier turn's emotion, in training


@dataclass(frozen=True)
class Input:
    """Tokens that are encoded together."""

    ids: tuple[int, ...]
    turns: tuple[int, ...] | None = None  # each token's turn: it sees this one and those before. None: all see all


@dataclass(frozen=True)
class Sample:
    """A labelled utterance; the mean of the hidden states from `start` to before `end` represents it."""

    input: Input  # samples may share one; it is then encoded once
    start: int
    end: int
    label: int
    dialogue: str
    turn: str

    @property
    def length(self) -> int:
        """How many tokens of the input it needs."""
        return len(self.input.ids) if self.input.turns is None else self.end


class Windows:
    """A split's dialogues, tokenised once: `[CLS] speaker: text [SEP] speaker: text [SEP] ...`.

    The mean of a turn's own tokens represents it. They see the turn itself and those before it, never a later one, so
    one encoding serves all turns of a window. A dialogue of more than `max_length` tokens takes several windows. A
    further window repeats up to `context_turns` of the turns before, as far as they fit into half of it.
    """

    def __init__(self, dialogues: Sequence[Dialogue], tokenizer: Any, *, context_turns: int, max_length: int) -> None:
        self.context_turns, self.max_length = context_turns, max_length
        self.start, end = special_tokens(tokenizer, max_length)
        texts = [f"{turn.speaker}: {turn.text}" for dialogue in dialogues for turn in dialogue.turns]
        said = ([*tokens[: max_length - 2], end] for tokens in tokenise(tokenizer, texts))
        self.samples = [s for d in dialogues for s in self._samples(d, [next(said) for _ in d.turns])]  # labelled turns

    def past_queries(self, generator: torch.Generator) -> list[Sample]:
        """None, since every turn of a window has its sample already."""
        return []

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


class Prompts:
    """The SPCL authors' inputs, one for each turn, tokenised once.

    `[CLS] speaker:text [SEP] ... For utterance: speaker:text [SEP] speaker feels [MASK] [SEP]`: up to `context_turns`
    before, the turn itself, then the question. Text and truncation are those of the authors' code. The oldest turns are
    left out until the rest is estimated to fit. An input that is still too long loses its beginning.
    """

    def __init__(self, dialogues: Sequence[Dialogue], tokenizer: Any, *, context_turns: int, max_length: int) -> None:
        self.dialogues, self.context_turns, self.max_length = dialogues, context_turns, max_length
        self.start, end = special_tokens(tokenizer, max_length)
        turns = [turn for dialogue in dialogues for turn in dialogue.turns]
        said = iter(tokenise(tokenizer, [f"{turn.speaker}:{turn.text}" for turn in turns]))
        feels = iter(tokenise(tokenizer, [f"{turn.speaker} feels {tokenizer.mask_token}" for turn in turns]))
        (self.asks,) = tokenise(tokenizer, ["For utterance:"])
        self.said = [[[*next(said), end] for _ in dialogue.turns] for dialogue in dialogues]
        self.feels = [[[*next(feels), end] for _ in dialogue.turns] for dialogue in dialogues]
        labelled = [[i for i, turn in enumerate(dialogue.turns) if turn.label is not None] for dialogue in dialogues]
        self.samples = [self._sample(d, turn, turn) for d, turns in enumerate(labelled) for turn in turns]
        self.may_ask = []  # from a dialogue's fifth turn on: where, and the labelled turns before that are shown
        for d, turns in enumerate(labelled):
            for turn in (turn for turn in turns if turn > 3):
                first = self._first_shown(d, turn)
                if earlier := [i for i in turns if first <= i < turn]:
                    self.may_ask.append((d, turn, earlier))

    def past_queries(self, generator: torch.Generator) -> list[Sample]:
        """Samples that ask about an earlier turn, for a random fifth of the turns from a dialogue's fifth turn on.

        Their number does not depend on the draw, so that every epoch has equally many samples.
        """
        asking = round(PAST_QUERIES * len(self.may_ask))
        chosen = torch.randperm(len(self.may_ask), generator=generator)[:asking]
        samples = []
        for index in chosen.sort().values.tolist():
            d, turn, earlier = self.may_ask[index]
            samples.append(self._sample(d, turn, earlier[int(torch.randint(len(earlier), (), generator=generator))]))
        return samples

    def _first_shown(self, d: int, turn: int) -> int:
        """The oldest turn shown. At least one turn before stays, however little room there is; `_sample` may cut it."""
        said, first = self.said[d], 0
        shown = sum(map(len, said[: turn + 1])) + len(said[turn]) + 8  # their estimate of the question's length
        while first < turn - 1 and shown > self.max_length:
            shown -= len(said[first])
            first += 1
        return max(first, turn - self.context_turns)

    def _sample(self, d: int, turn: int, query: int) -> Sample:
        """The dialogue as it stands after `turn`, with a question about the emotion of `query`."""
        said, asked = self.said[d], self.dialogues[d].turns[query]
        context = [token for one in said[self._first_shown(d, turn) : turn + 1] for token in one]
        ids = [self.start, *context, *self.asks, *said[query], *self.feels[d][query]][-self.max_length :]
        assert asked.label is not None
        mask = len(ids) - 2
        return Sample(Input(tuple(ids)), mask, mask + 1, asked.label, self.dialogues[d].id, asked.id)


def lay_out(dialogues: Sequence[Dialogue], tokenizer: Any, settings: Settings) -> Windows | Prompts:
    """A split's dialogues as the encoder reads them."""
    kind = Windows if settings.inputs == "dialogues" else Prompts
    return kind(dialogues, tokenizer, context_turns=settings.context_turns, max_length=settings.max_length)


def tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The token ids of each text, without special tokens around it."""
    # verbose: too long a turn is cut here, not by the tokenizer, and needs no warning
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def special_tokens(tokenizer: Any, max_length: int) -> tuple[int, int]:
    """The ids of the tokens at the ends of an input. InputError where the encoder cannot read our inputs."""
    if max_length > (limit := tokenizer.model_max_length):
        raise InputError(f"max_length must be at most {limit}, the encoder's limit; received {max_length}")
    for name in ("cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, f"{name}_id", None) is None:
            raise InputError(f"the encoder's tokenizer has no {name}: choose a masked language model")
    return tokenizer.cls_token_id, tokenizer.sep_token_id


class Batch(NamedTuple):
    """N samples in R inputs, which are padded to L tokens."""

    input_ids: Tensor  # (R, L)
    turns: Tensor  # (R, L) each token's turn; padding's is `AFTER_ALL`
    tokens: Tensor  # indices into the flat (R * L) of the tokens that represent each sample, sample by sample
    offsets: Tensor  # (N,) where each sample's tokens begin in `tokens`
    labels: Tensor  # (N,)
    by_turn: bool  # whether a token sees its own turn and those before it, else all


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch that is no longer than its members need. An input that samples share is in it once."""
    groups = group_by_input(samples, range(len(samples)))
    row = {index: r for r, group in enumerate(groups) for index in group}
    # Tokens after the last one needed are dropped: earlier tokens cannot see them.
    inputs = [(samples[group[0]].input, max(samples[index].length for index in group)) for group in groups]
    input_ids = pad_sequence([torch.tensor(one.ids[:length]) for one, length in inputs], batch_first=True)
    all_turns = [torch.tensor(one.turns[:length] if one.turns else [0] * length) for one, length in inputs]
    turns = pad_sequence(all_turns, batch_first=True, padding_value=AFTER_ALL)  # padding is seen by no token
    spans = [torch.arange(sample.start, sample.end) + row[i] * input_ids.shape[1] for i, sample in enumerate(samples)]
    offsets = torch.tensor([0, *map(len, spans[:-1])]).cumsum(0)
    labels = torch.tensor([sample.label for sample in samples])
    return Batch(input_ids, turns, torch.cat(spans), offsets, labels, by_turn=inputs[0][0].turns is not None)


def group_by_input(samples: Sequence[Sample], indices: Sequence[int]) -> list[list[int]]:
    """Groups the indices by their samples' input; groups and members keep their order."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(id(samples[index].input), []).append(index)
    return list(groups.values())
