"""The datasets: MELD, IEMOCAP and EmoryNLP become a `Corpus` of dialogues."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from .files import InputError, Source, locate, read_csv, read_json, warn_of_changes

_KNOWN = json.loads(Path(__file__).with_name("datasets.json").read_text(encoding="utf-8"))
SOURCES = {
    name: Source(name=name, **{**known, "labels": tuple(known["labels"])}) for name, known in _KNOWN["datasets"].items()
}


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
        return replace(self, train=self.train[:count], dev=self.dev[:count], test=self.test[:count])

    def part(self, fraction: float, seed: int) -> Corpus:
        """A random part of the training dialogues. For one seed, a smaller part lies inside every larger one."""
        if fraction == 1:
            return self
        # A dialogue's place in the order depends on the seed alone, so parts of one seed are nested.
        order = Random(f"{seed} train fraction").sample(range(len(self.train)), len(self.train))
        kept = sorted(order[: max(1, round(fraction * len(self.train)))])
        return replace(self, train=tuple(self.train[i] for i in kept))


# Quotes become plain, as in the SPCL authors' preprocessing. Older copies of MELD hold Windows-1252 punctuation as
# C1 control characters, which tokenizers drop ("We\x92re" would become "were"): they are read as what they stand for.
_WINDOWS_1252 = {code: bytes([code]).decode("cp1252", errors="ignore") for code in range(0x80, 0xA0)}
_PLAIN = {0x2018: "'", 0x2019: "'", 0x201C: None, 0x201D: None, 0x22: None}


def plain_text(text: str) -> str:
    """The text with plain quotes and without control characters."""
    return text.translate(_WINDOWS_1252).translate(_PLAIN).strip()


# Each dataset has a reader. It yields the turns of a file in the order of the file, each with its dialogue's name and
# its position in the spoken order. `read_split` groups them.
Spoken = tuple[str, int, Turn]


def read_split(path: Path, read: Callable[[Path], Iterable[Spoken]]) -> tuple[Dialogue, ...]:
    """One split's dialogues; a fault in the file is an InputError that names file and place."""
    dialogues: dict[str, dict[int, Turn]] = {}
    for dialogue, position, turn in read(path):
        turns = dialogues.setdefault(dialogue, {})
        if position in turns:
            raise InputError(f"{path}: expected each turn once; received turn {position} of dialogue {dialogue} twice")
        turns[position] = turn
    if not dialogues:
        raise InputError(f"{path}: expected dialogues; received none")
    # MELD's numbers have gaps in some dialogues but always give the spoken order.
    return tuple(Dialogue(name, tuple(turns[i] for i in sorted(turns))) for name, turns in dialogues.items())


def read_meld(path: Path) -> Iterator[Spoken]:
    """Poria et al., ACL 2019: a CSV file, a row for each turn."""
    for row in read_csv(path, ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")):
        dialogue, position = row["Dialogue_ID"].number(), row["Utterance_ID"].number()
        speaker, text = (plain_text(row[column].text()) for column in ("Speaker", "Utterance"))
        label = row["Emotion"].index(SOURCES["MELD"].labels)
        yield str(dialogue), position, Turn(str(position), speaker, text, label)


# The speakers of IEMOCAP's files are "Ses01F_impro01_M": session, scene and gender. First names that go with any gender
# replace them, in the order in which the speakers first talk.
NEUTRAL_NAMES = ("Robin", "Alex", "Sam", "Jamie", "Charlie", "Casey", "Jordan", "Taylor", "Morgan", "Riley")
IEMOCAP_CODES = ("neu", "fru", "sad", "ang", "exc", "hap")  # of the labels
TRANSCRIBERS_MARK = re.compile(r"\[(?:LAUGHTER|BREATHING|GARBAGE|LIPSMACK)\]", re.IGNORECASE)


def read_iemocap(path: Path) -> Iterator[Spoken]:
    """Busso et al., 2008: a JSON file that users make from the release they are granted.

    It is a list of dialogues, a dialogue a list of turns {"text": ..., "speaker": ..., "label": ...}. A turn on which
    the annotators did not agree on one of the six emotions has no label.
    """
    for number, dialogue in enumerate(read_json(path)):
        names: dict[str, str] = {}
        for position, turn in enumerate(dialogue):
            speaker = turn["speaker"].text().upper()
            if speaker not in names:
                if len(names) == len(NEUTRAL_NAMES):
                    raise turn["speaker"].fault(f"at most {len(NEUTRAL_NAMES)} speakers in a dialogue")
                names[speaker] = NEUTRAL_NAMES[len(names)]
            text = " ".join(plain_text(TRANSCRIBERS_MARK.sub(" ", turn["text"].text())).split())
            remedy = "; leave the label of any other emotion out"
            label = turn["label"].index(IEMOCAP_CODES, remedy) if "label" in turn else None
            yield str(number), position, Turn(str(position), names[speaker], text, label)


def read_emorynlp(path: Path) -> Iterator[Spoken]:
    """Zahiri and Choi, AAAI workshops 2018: a JSON file of episodes with scenes."""
    for episode in read_json(path)["episodes"]:
        for scene in episode["scenes"]:
            name = scene["scene_id"].text()
            for position, turn in enumerate(scene["utterances"]):
                speaker = speaker_name([speaker.text() for speaker in turn["speakers"]])
                text, label = plain_text(turn["transcript"].text()), turn["emotion"].index(SOURCES["EmoryNLP"].labels)
                yield name, position, Turn(turn["utterance_id"].text(), speaker, text, label)


def speaker_name(speakers: Sequence[str]) -> str:
    """First names: `["Carol Willick", "Susan Bunch"]` becomes "Carol and Susan", `["#ALL#"]` "All"."""
    return " and ".join(_first_name(plain_text(name)) for name in speakers) or "Somebody"


def _first_name(name: str) -> str:
    if name.startswith("#"):
        return name.strip("#").capitalize()
    words = name.split()
    return words[0] if len(words) == 2 and not words[0].endswith(".") else name  # "Mr. Geller" keeps his surname


READERS: dict[str, Callable[[Path], Iterator[Spoken]]] = {
    "MELD": read_meld, "IEMOCAP": read_iemocap, "EmoryNLP": read_emorynlp,
}  # fmt: skip


def load_corpus(name: str, data_dir: str | Path | None = None) -> Corpus:
    """A corpus by its name; `data_dir` is searched instead of the usual places."""
    from .own import OWN, own_corpus
    from .practice import PRACTICE, practice_corpus

    if name == PRACTICE:
        return practice_corpus()
    if name == OWN:
        return own_corpus(None if data_dir is None else Path(data_dir))
    if name not in READERS:
        raise InputError(f"the corpus must be one of {', '.join([*READERS, PRACTICE])}; received {name!r}")
    source = SOURCES[name]
    folder = locate(source, data_dir)
    corpus = Corpus(name, source.labels, *(read_split(folder / file, READERS[name]) for file in source.files))
    warn_of_changes(source, folder)
    return corpus


def counts(corpus: Corpus, split: str) -> tuple[int, int, tuple[int, ...]]:
    """Dialogues, turns, labelled turns by class."""
    dialogues = getattr(corpus, split)
    labels = Counter(turn.label for dialogue in dialogues for turn in dialogue.turns)
    return len(dialogues), sum(labels.values()), tuple(labels[label] for label in range(len(corpus.labels)))


def split_table(corpus: Corpus) -> str:
    """The sizes of the splits."""
    rows = [("", "dialogues", "turns", "labelled", *corpus.labels)]
    for split in ("train", "dev", "test"):
        dialogues, turns, classes = counts(corpus, split)
        rows.append((split, *(str(number) for number in (dialogues, turns, sum(classes), *classes))))
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read on a terminal too; the first row is its head."""
    rows = [[plain_markdown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
    return "\n".join([head, "|".join(["", *("-" * (width + 2) for width in widths), ""]), *body])


def plain_markdown(text: str) -> str:
    """Text in one line that Markdown shows as it is: names in a dataset may hold anything."""
    text = re.sub(r"[\\`*|\[\]]", r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
