"""The practice corpus: made-up dialogues to train on without a dataset. One reports an event, then speakers react.

Many replies fit any emotion, so a model needs the speaker's temperament and the event. Splits share no sentence.
"""

import json
import random
from pathlib import Path

from .data import SOURCES, Corpus, Dialogue, Turn

PRACTICE = "practice corpus"
LINES = json.loads(Path(__file__).with_name("practice.json").read_text(encoding="utf-8"))
LABELS = SOURCES["MELD"].labels
_, TURNS, COUNTS = SOURCES["MELD"].published["train"]
SHARES = tuple(count / TURNS for count in COUNTS)  # the practice corpus is as unbalanced as MELD
DIALOGUES = {"train": 2400, "dev": 250, "test": 600}
MIN_TURNS, MAX_TURNS = 3, 5
MEAN_TURNS = (MIN_TURNS + MAX_TURNS) / 2
# Every report is neutral, so reactions are neutral less often than `SHARES` says.
REACTIONS = [(share * MEAN_TURNS - (label == 0)) / (MEAN_TURNS - 1) for label, share in enumerate(SHARES)]
AMBIGUOUS_SHARE = 0.65  # of the reactions that are in the speaker's character
# What each speaker feels about each kind of event.
SPEAKERS = {speaker: LINES["temperaments"][temperament] for speaker, temperament in LINES["speakers"].items()}


def practice_corpus(seed: int = 0) -> Corpus:
    """The corpus; the same for the same seed, on every machine."""
    splits = {}
    for split, count in DIALOGUES.items():
        generator = random.Random(f"{seed} {split}")
        splits[split] = tuple(_dialogue(split, str(number), generator) for number in range(count))
    return Corpus(PRACTICE, LABELS, **splits)


def _dialogue(split: str, name: str, generator: random.Random) -> Dialogue:
    choice, events = generator.choice, LINES["events"][split]
    emotions = generator.choices(LABELS, REACTIONS, k=generator.randint(MIN_TURNS, MAX_TURNS) - 1)

    def filled(sentence: str) -> str:
        return sentence.format(**{place: choice(LINES[f"{place}s"]) for place in ("name", "place", "day")})

    # The event makes somebody feel as many of the emotions as possible.
    felt = {kind: {feels[kind] for feels in SPEAKERS.values()} - {"neutral"} for kind in events}
    fits = {kind: sum(emotion in felt[kind] for emotion in emotions) for kind in events}
    event = choice([kind for kind in events if fits[kind] == max(fits.values())])
    speaker = choice(list(SPEAKERS))
    turns = [Turn("0", speaker, filled(choice(events[event])), LABELS.index("neutral"))]
    for emotion in emotions:
        others = [other for other in SPEAKERS if other != speaker]
        speaker = choice([other for other in others if SPEAKERS[other][event] == emotion] or others)
        if SPEAKERS[speaker][event] == emotion and generator.random() < AMBIGUOUS_SHARE:
            text = choice(LINES["ambiguous"][split])
        else:
            text = filled(choice(LINES["overt"][split][emotion]))
        turns.append(Turn(str(len(turns)), speaker, text, LABELS.index(emotion)))
    return Dialogue(name, tuple(turns))
