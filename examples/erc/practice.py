"""The practice corpus: made-up dialogues to train on without a dataset. One reports an event, then speakers react.

Many replies fit any emotion: the speaker's temperament and the event decide. Splits share no sentence of practice.json.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from .data import SOURCES, Corpus, Dialogue, Turn

PRACTICE = "practice corpus"
LINES = json.loads(Path(__file__).with_name("practice.json").read_text(encoding="utf-8"))
LABELS = SOURCES["MELD"].labels
_, TURNS, COUNTS = SOURCES["MELD"].published["train"]
SHARES = tuple(count / TURNS for count in COUNTS)  # the practice corpus is as unbalanced as MELD

SPEAKERS = {speaker: LINES["temperaments"][temperament] for speaker, temperament in LINES["speakers"].items()}
KINDS = list(LINES["events"]["train"])
MIN_TURNS, MAX_TURNS = 3, 5
AMBIGUOUS_SHARE = 0.65  # of the reactions that are in the speaker's character
DIALOGUES = {"train": 2400, "dev": 250, "test": 600}


def practice_corpus(seed: int = 0) -> Corpus:
    """The corpus; the same for the same seed, on every machine."""
    splits = {}
    for split, count in DIALOGUES.items():
        generator = random.Random(f"{seed} {split}")
        splits[split] = tuple(_dialogue(split, str(number), generator) for number in range(count))
    return Corpus(PRACTICE, LABELS, **splits)


def _dialogue(split: str, name: str, generator: random.Random) -> Dialogue:
    length = generator.randint(MIN_TURNS, MAX_TURNS)
    emotions = generator.choices(LABELS, _reaction_shares(), k=length - 1)
    kind = _kind_for(emotions, generator)
    reporter = generator.choice(list(SPEAKERS))
    turns = [(reporter, _fill(generator.choice(LINES["events"][split][kind]), generator), "neutral")]
    for emotion in emotions:
        speaker = _speaker_for(emotion, kind, turns[-1][0], generator)
        turns.append((speaker, _reply(split, speaker, kind, emotion, generator), emotion))
    return Dialogue(name, tuple(Turn(str(i), who, text, LABELS.index(e)) for i, (who, text, e) in enumerate(turns)))


def _reaction_shares() -> list[float]:
    """Shares among the reactions. Every report is neutral, so reactions are neutral less often than `SHARES` says."""
    length = (MIN_TURNS + MAX_TURNS) / 2
    return [(share * length - (label == "neutral")) / (length - 1) for label, share in zip(LABELS, SHARES, strict=True)]


def _kind_for(emotions: Sequence[str], generator: random.Random) -> str:
    """A kind of event that makes somebody feel as many of the emotions as possible."""
    felt = {kind: {feels[kind] for feels in SPEAKERS.values()} for kind in KINDS}
    fits = {kind: sum(emotion in felt[kind] for emotion in emotions if emotion != "neutral") for kind in KINDS}
    return generator.choice([kind for kind in KINDS if fits[kind] == max(fits.values())])


def _speaker_for(emotion: str, kind: str, previous: str, generator: random.Random) -> str:
    """Someone other than the previous speaker, if possible one whom the event makes feel that."""
    others = [speaker for speaker in SPEAKERS if speaker != previous]
    fitting = [speaker for speaker in others if SPEAKERS[speaker][kind] == emotion]
    return generator.choice(fitting or others)


def _reply(split: str, speaker: str, kind: str, emotion: str, generator: random.Random) -> str:
    if SPEAKERS[speaker][kind] == emotion and generator.random() < AMBIGUOUS_SHARE:
        return generator.choice(LINES["ambiguous"][split])
    return _fill(generator.choice(LINES["overt"][split][emotion]), generator)


def _fill(sentence: str, generator: random.Random) -> str:
    names, places, days = (generator.choice(LINES[kind]) for kind in ("names", "places", "days"))
    return sentence.format(name=names, place=places, day=days)
