"""The datasets: MELD, IEMOCAP and EmoryNLP become a `Corpus` of dialogues."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from .files import InputError, Source, locate, number, one_of, optional, read_csv, read_json, text, warn_of_changes

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
    """A dataset's three splits. Every output shows its `name`."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Dialogue, ...]
    dev: tuple[Dialogue, ...]
    test: tuple[Dialogue, ...]

    def first(self, count: int | None) -> "Corpus":
        """The corpus cut to at most `count` dialogues a split (None: all of it)."""
        return replace(self, train=self.train[:count], dev=self.dev[:count], test=self.test[:count])

    def part(self, fraction: float, seed: int) -> "Corpus":
        """A random part of the training dialogues. For one seed, a smaller part lies inside every larger one."""
        if fraction == 1:
            return self

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


def checked(path: Path, dialogues: Iterable[Dialogue]) -> tuple[Dialogue, ...]:
    """A file's dialogues, if there are any and no two have the same id."""
    found = tuple(dialogues)
    if not any(dialogue.turns for dialogue in found):
        raise InputError(f"{path}: expected dialogues; received none")
    ((name, count),) = Counter(dialogue.id for dialogue in found).most_common(1)
    if count > 1:
        raise InputError(f"{path}: expected each dialogue once; received dialogue {name} {count} times")
    return found


def read_meld(path: Path) -> tuple[Dialogue, ...]:
    """Poria et al., ACL 2019: a CSV file, a row for each turn."""
    emotion = one_of(SOURCES["MELD"].labels)
    row = {"Utterance": text, "Speaker": text, "Emotion": emotion, "Dialogue_ID": number, "Utterance_ID": number}
    dialogues: dict[int, dict[int, Turn]] = {}
    for turn in read_csv(path, row):
        name, position = turn["Dialogue_ID"], turn["Utterance_ID"]
        turns = dialogues.setdefault(name, {})
        if position in turns:
            raise InputError(f"{path}: expected each turn once; received turn {position} of dialogue {name} twice")
        speaker, said = plain_text(turn["Speaker"]), plain_text(turn["Utterance"])
        turns[position] = Turn(str(position), speaker, said, turn["Emotion"])
    # The numbers have gaps in some dialogues but always give the spoken order.
    return checked(path, (Dialogue(str(d), tuple(turns[i] for i in sorted(turns))) for d, turns in dialogues.items()))


def read_dialogues(path: Path, labels: Sequence[str], remedy: str = "") -> tuple[Dialogue, ...]:
    """A JSON file: a list of dialogues, a dialogue a list of turns {"text": ..., "speaker": ..., "label": ...}.

    A turn without a label is context. `remedy` follows the names of the labels in the error about an unknown one.
    """
    turn = {"speaker": text, "text": text, "label": optional(one_of(labels, remedy))}
    dialogues = ([Turn(str(i), **values) for i, values in enumerate(turns)] for turns in read_json(path, [[turn]]))
    return checked(path, (Dialogue(str(number), tuple(turns)) for number, turns in enumerate(dialogues)))


# The speakers of IEMOCAP's files are "Ses01F_impro01_M": session, scene and gender. First names that go with any gender
# replace them, in the order in which the speakers first talk.
NEUTRAL_NAMES = ("Robin", "Alex", "Sam", "Jamie", "Charlie", "Casey", "Jordan", "Taylor", "Morgan", "Riley")
IEMOCAP_CODES = ("neu", "fru", "sad", "ang", "exc", "hap")  # of the labels
TRANSCRIBERS_MARK = re.compile(r"\[(?:LAUGHTER|BREATHING|GARBAGE|LIPSMACK)\]", re.IGNORECASE)


def read_iemocap(path: Path) -> tuple[Dialogue, ...]:
    """Busso et al., 2008: a JSON file that users make from the release they are granted.

    A turn on which the annotators did not agree on one of the six emotions has no label.
    """
    dialogues = read_dialogues(path, IEMOCAP_CODES, " (leave the label of any other emotion out)")
    return as_in_training(dialogues, "IEMOCAP", path)


def as_in_training(dialogues: Iterable[Dialogue], dataset: str, place: object) -> tuple[Dialogue, ...]:
    """Dialogues with names and text cleaned as in the dataset. Errors name the place; dialogues of one's own stay."""
    if dataset == OWN:
        return tuple(dialogues)
    if dataset == "IEMOCAP":
        return tuple(replace(one, turns=tuple(_neutral_turns(place, one))) for one in dialogues)

    def plain(turn: Turn) -> Turn:
        speaker = speaker_name([turn.speaker]) if dataset == "EmoryNLP" else plain_text(turn.speaker)
        return replace(turn, speaker=speaker, text=plain_text(turn.text))

    return tuple(replace(one, turns=tuple(map(plain, one.turns))) for one in dialogues)


def _neutral_turns(place: object, dialogue: Dialogue) -> Iterator[Turn]:
    speakers = list(dict.fromkeys(turn.speaker.upper() for turn in dialogue.turns))
    if len(speakers) > (most := len(NEUTRAL_NAMES)):
        raise InputError(f"{place}[{dialogue.id}]: expected at most {most} speakers; received {len(speakers)}")
    for turn in dialogue.turns:
        said = " ".join(plain_text(TRANSCRIBERS_MARK.sub(" ", turn.text)).split())
        yield replace(turn, speaker=NEUTRAL_NAMES[speakers.index(turn.speaker.upper())], text=said)


def read_emorynlp(path: Path) -> tuple[Dialogue, ...]:
    """Zahiri and Choi, AAAI workshops 2018: a JSON file of episodes with scenes."""
    emotion = one_of(SOURCES["EmoryNLP"].labels)
    turn = {"utterance_id": text, "speakers": [text], "transcript": text, "emotion": emotion}
    file = read_json(path, {"episodes": [{"scenes": [{"scene_id": text, "utterances": [turn]}]}]})
    dialogues = []
    for scene in (scene for episode in file["episodes"] for scene in episode["scenes"]):
        turns = [
            Turn(one["utterance_id"], speaker_name(one["speakers"]), plain_text(one["transcript"]), one["emotion"])
            for one in scene["utterances"]
        ]
        dialogues.append(Dialogue(scene["scene_id"], tuple(turns)))
    return checked(path, dialogues)


def speaker_name(speakers: Sequence[str]) -> str:
    """First names: `["Carol Willick", "Susan Bunch"]` becomes "Carol and Susan", `["#ALL#"]` "All"."""
    return " and ".join(_first_name(plain_text(name)) for name in speakers) or "Somebody"


def _first_name(name: str) -> str:
    if name.startswith("#"):
        return name.strip("#").capitalize()
    words = name.split()
    return words[0] if len(words) == 2 and not words[0].endswith(".") else name  # "Mr. Geller" keeps his surname


READERS = {"MELD": read_meld, "IEMOCAP": read_iemocap, "EmoryNLP": read_emorynlp}
OWN, OWN_FILES = "own", ("train.json", "dev.json", "test.json")


def own_corpus(folder: Path | None) -> Corpus:
    """Dialogues of one's own. The classes are those of the training file, in alphabetic order."""
    if folder is None:
        raise InputError(f"--data-dir must name the folder with your {', '.join(OWN_FILES)}")
    if missing := [file for file in OWN_FILES if not (folder / file).is_file()]:
        raise InputError(f"{folder} has no {', '.join(missing)}; it must hold {', '.join(OWN_FILES)}")
    dialogues = read_json(folder / OWN_FILES[0], [[{"label": optional(text)}]])
    found = (turn["label"] for turns in dialogues for turn in turns)
    labels = tuple(sorted({label.strip().lower() for label in found if label is not None}))
    if len(labels) < 2:
        raise InputError(f"{folder / OWN_FILES[0]} must have turns of at least two classes; it has {len(labels)}")
    remedy = " (the training file decides which classes there are)"
    return Corpus(OWN, labels, *(read_dialogues(folder / file, labels, remedy) for file in OWN_FILES))


def load_corpus(name: str, data_dir: str | Path | None = None) -> Corpus:
    """A corpus by its name; `data_dir` is searched instead of the usual places."""
    from .practice import PRACTICE, practice_corpus

    if name == PRACTICE:
        return practice_corpus()
    if name == OWN:
        return own_corpus(None if data_dir is None else Path(data_dir))
    if name not in READERS:
        raise InputError(f"the corpus must be one of {', '.join([*READERS, PRACTICE, OWN])}; received {name!r}")
    source = SOURCES[name]
    folder = locate(source, data_dir)
    corpus = Corpus(name, source.labels, *(READERS[name](folder / file) for file in source.files))
    warn_of_changes(source, folder)
    return corpus


def split_table(corpus: Corpus) -> str:
    """The sizes of the splits, and how many labelled turns they have of each class."""
    rows = [("", "dialogues", "turns", "labelled", *corpus.labels)]
    for split in ("train", "dev", "test"):
        dialogues = getattr(corpus, split)
        labels = Counter(turn.label for dialogue in dialogues for turn in dialogue.turns)
        classes = [labels[label] for label in range(len(corpus.labels))]
        rows.append((split, *map(str, (len(dialogues), labels.total(), sum(classes), *classes))))
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
