"""IEMOCAP (Busso et al., 2008), six emotions: three JSON files that users make from the release they are granted.

A file is a list of dialogues, a dialogue a list of turns `{"text": ..., "speaker": ..., "label": ...}`. A turn on
which the annotators did not agree on one of the six emotions has no label: it is context only.
"""

from __future__ import annotations

import re
from pathlib import Path

from .dialogues import Corpus, Dialogue, InputError, Turn, plain_quotes
from .sources import Source, locate
from .tables import Json

NAME = "IEMOCAP"
IEMOCAP = Source(
    name=NAME,
    folder="iemocap",
    files={"train_data.json": "", "dev_data.json": "", "test_data.json": ""},
    url=None,
    obtain=(
        "ask for it with the release form at https://sail.usc.edu/iemocap/iemocap_release.htm, write its transcripts "
        'as lists of dialogues, each a list of {"text", "speaker", "label"},'
    ),
)
ABBREVIATIONS = {
    "neu": "neutral", "fru": "frustrated", "sad": "sad", "ang": "angry", "exc": "excited", "hap": "happy",
}  # fmt: skip
LABELS = tuple(ABBREVIATIONS.values())
# The file's speakers are "Ses01F_impro01_M": session, scene and gender. Names that go with any gender take their place,
# in the order in which the speakers first talk.
NEUTRAL_NAMES = ("Robin", "Alex", "Sam", "Jamie", "Charlie", "Casey", "Jordan", "Taylor", "Morgan", "Riley")
TRANSCRIBERS_MARK = re.compile(r"\[(?:LAUGHTER|BREATHING|GARBAGE|LIPSMACK)\]", re.IGNORECASE)


def load_iemocap(data_dir: str | Path | None = None) -> Corpus:
    """IEMOCAP from `data_dir`, else from `locate`'s places."""
    folder = locate(IEMOCAP, data_dir)
    return Corpus(NAME, LABELS, *(read_iemocap_json(folder / name) for name in IEMOCAP.files))


def read_iemocap_json(path: Path) -> tuple[Dialogue, ...]:
    """One split's dialogues; a fault in the file is an InputError that names the place."""
    dialogues = [_dialogue(dialogue, str(number)) for number, dialogue in enumerate(Json.read(path))]
    if not dialogues:
        raise InputError(f"{path}: no dialogues")
    return tuple(dialogues)


def _dialogue(turns: Json, name: str) -> Dialogue:
    names: dict[str, str] = {}
    spoken = []
    for number, turn in enumerate(turns):
        speaker = turn["speaker"].text().upper()
        if speaker not in names:
            if len(names) == len(NEUTRAL_NAMES):
                raise turn["speaker"].fault(f"more than {len(NEUTRAL_NAMES)} speakers in a dialogue")
            names[speaker] = NEUTRAL_NAMES[len(names)]
        spoken.append(Turn(str(number), names[speaker], clean(turn["text"].text()), _label(turn.get("label"))))
    return Dialogue(name, tuple(spoken))


def clean(text: str) -> str:
    """What was said, without the transcribers' marks of other sounds."""
    return " ".join(plain_quotes(TRANSCRIBERS_MARK.sub(" ", text)).split())


def _label(label: Json | None) -> int | None:
    if label is None:
        return None
    if label.text() not in ABBREVIATIONS:
        raise label.fault(
            f"{label.text()!r} is none of {', '.join(ABBREVIATIONS)}; a turn of another kind has no label"
        )
    return LABELS.index(ABBREVIATIONS[label.text()])
