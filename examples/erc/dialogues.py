"""What every dataset becomes: dialogues of turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class InputError(ValueError):
    """Something the user gave cannot be used; its text is shown as it is, without a traceback."""


@dataclass(frozen=True)
class Turn:
    """One utterance. `label` indexes `Corpus.labels`; None: the turn is context only, neither learned nor scored."""

    id: str
    speaker: str
    text: str
    label: int | None


@dataclass(frozen=True)
class Dialogue:
    """Turns in the order in which they were spoken."""

    id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Corpus:
    """A dataset's three splits; `name` is what every output calls it."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Dialogue, ...]
    dev: tuple[Dialogue, ...]
    test: tuple[Dialogue, ...]

    def first(self, count: int | None) -> Corpus:
        """The corpus cut to at most `count` dialogues a split (None: all of it)."""
        return Corpus(self.name, self.labels, self.train[:count], self.dev[:count], self.test[:count])


def plain_quotes(text: str) -> str:
    """Curly apostrophes become straight ones and double quotes go, as in the SPCL authors' preprocessing."""
    return text.translate({0x2018: "'", 0x2019: "'", 0x201C: None, 0x201D: None, 0x22: None}).strip()


def label_dialogues(labels: Sequence[str]) -> list[Dialogue]:
    """A dialogue a class, in which somebody names the emotion: its representation stands for the class's name."""
    return [Dialogue(name, (Turn("0", "Somebody", f"I feel {name}.", i),)) for i, name in enumerate(labels)]
