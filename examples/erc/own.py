"""Dialogues of one's own: JSON files, each a list of dialogues, a dialogue a list of turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .data import Corpus, Dialogue, Turn
from .files import InputError, Value, read_json

OWN = "own"
FILES = ("train.json", "dev.json", "test.json")


def own_corpus(folder: Path | None) -> Corpus:
    """The corpus in a folder with the three files. The classes are those of the training file, in alphabetic order."""
    if folder is None:
        raise InputError(f"--data-dir must name the folder with your {', '.join(FILES)}")
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise InputError(f"{folder} has no {', '.join(missing)}; it must hold {', '.join(FILES)}")
    turns = (turn for dialogue in read_json(folder / FILES[0]) for turn in dialogue)
    labels = tuple(sorted({turn["label"].text().strip().lower() for turn in turns if "label" in turn}))
    if len(labels) < 2:
        raise InputError(f"{folder / FILES[0]} must have turns of at least two classes; it has {len(labels)}")
    return Corpus(OWN, labels, *(read_dialogues(folder / file, labels) for file in FILES))


def read_dialogues(path: Path, labels: Sequence[str]) -> tuple[Dialogue, ...]:
    """A file's dialogues. A turn without a label is context."""
    dialogues = tuple(
        Dialogue(str(number), tuple(_turn(str(place), turn, labels) for place, turn in enumerate(dialogue)))
        for number, dialogue in enumerate(read_json(path))
    )
    if not dialogues:
        raise InputError(f"{path}: expected dialogues; received none")
    return dialogues


def _turn(name: str, turn: Value, labels: Sequence[str]) -> Turn:
    remedy = "; the training file decides which classes there are"
    label = turn["label"].index(labels, remedy) if "label" in turn else None
    return Turn(name, turn["speaker"].text(), turn["text"].text(), label)
