"""The datasets: MELD, IEMOCAP and EmoryNLP become a `Corpus` of dialogues, counted against the published sizes."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from .files import InputError, Json, Source, fault, label_index, locate, read_csv, warn_of_changes, whole_number

KNOWN = json.loads(Path(__file__).with_name("datasets.json").read_text(encoding="utf-8"))


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


def _source(name: str) -> Source:
    return Source(name=name, **KNOWN[name]["source"])


def _labels(name: str) -> tuple[str, ...]:
    return tuple(KNOWN[name]["labels"])


# MELD (Poria et al., ACL 2019): three CSV files.

MELD, MELD_LABELS = _source("MELD"), _labels("MELD")
MELD_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def load_meld(data_dir: str | Path | None = None) -> Corpus:
    folder = locate(MELD, data_dir)
    corpus = Corpus("MELD", MELD_LABELS, *(read_meld_csv(folder / name) for name in MELD.files))
    warn_of_changes(MELD, folder)
    return corpus


def read_meld_csv(path: Path) -> tuple[Dialogue, ...]:
    """One split's dialogues; a fault in the file is an InputError that names file, line and column."""
    dialogues: dict[str, dict[int, Turn]] = {}
    for line, row in read_csv(path, MELD_COLUMNS):
        dialogue = str(whole_number(path, line, row, "Dialogue_ID"))
        position = whole_number(path, line, row, "Utterance_ID")
        turns = dialogues.setdefault(dialogue, {})
        if position in turns:
            raise fault(path, line, "Utterance_ID", f"{position} occurs twice in dialogue {dialogue}")
        label = label_index(path, line, "Emotion", row["Emotion"], MELD_LABELS)
        turns[position] = Turn(str(position), plain_text(row["Speaker"]), plain_text(row["Utterance"]), label)
    return _in_order(dialogues)


def _in_order(dialogues: dict[str, dict[int, Turn]]) -> tuple[Dialogue, ...]:
    """The turns by their numbers, which have gaps in some dialogues but always give the spoken order."""
    return tuple(Dialogue(name, tuple(turns[i] for i in sorted(turns))) for name, turns in dialogues.items())


# IEMOCAP (Busso et al., 2008), six emotions: three JSON files that users make from the release they are granted. A file
# is a list of dialogues, a dialogue a list of turns {"text": ..., "speaker": ..., "label": ...}. A turn on which the
# annotators did not agree on one of the six emotions has no label.

IEMOCAP, IEMOCAP_LABELS = _source("IEMOCAP"), _labels("IEMOCAP")
IEMOCAP_CODES = ("neu", "fru", "sad", "ang", "exc", "hap")  # of the labels
# The files' speakers are "Ses01F_impro01_M": session, scene and gender. First names that go with any gender replace
# them, in the order in which the speakers first talk.
NEUTRAL_NAMES = ("Robin", "Alex", "Sam", "Jamie", "Charlie", "Casey", "Jordan", "Taylor", "Morgan", "Riley")
TRANSCRIBERS_MARK = re.compile(r"\[(?:LAUGHTER|BREATHING|GARBAGE|LIPSMACK)\]", re.IGNORECASE)


def load_iemocap(data_dir: str | Path | None = None) -> Corpus:
    folder = locate(IEMOCAP, data_dir)
    return Corpus("IEMOCAP", IEMOCAP_LABELS, *(read_iemocap_json(folder / name) for name in IEMOCAP.files))


def read_iemocap_json(path: Path) -> tuple[Dialogue, ...]:
    """One split's dialogues; a fault in the file is an InputError that names the place."""
    dialogues = tuple(_iemocap_dialogue(dialogue, str(number)) for number, dialogue in enumerate(Json.read(path)))
    if not dialogues:
        raise InputError(f"{path}: no dialogues")
    return dialogues


def _iemocap_dialogue(turns: Json, name: str) -> Dialogue:
    names: dict[str, str] = {}
    spoken: list[Turn] = []
    for number, turn in enumerate(turns):
        speaker = turn["speaker"].text().upper()
        if speaker not in names:
            if len(names) == len(NEUTRAL_NAMES):
                raise turn["speaker"].fault(f"more than {len(NEUTRAL_NAMES)} speakers in a dialogue")
            names[speaker] = NEUTRAL_NAMES[len(names)]
        text = " ".join(plain_text(TRANSCRIBERS_MARK.sub(" ", turn["text"].text())).split())
        spoken.append(Turn(str(number), names[speaker], text, _iemocap_label(turn.get("label"))))
    if not spoken:
        raise turns.fault("an empty dialogue; leave it out")
    return Dialogue(name, tuple(spoken))


def _iemocap_label(label: Json | None) -> int | None:
    if label is None:
        return None
    if label.text() not in IEMOCAP_CODES:
        codes = ", ".join(IEMOCAP_CODES)
        raise label.fault(f"{label.text()!r} is none of {codes}; a turn of another kind has no label")
    return IEMOCAP_CODES.index(label.text())


# EmoryNLP (Zahiri and Choi, AAAI workshops 2018): three JSON files. Some papers use a reduced release, the CSV files in
# MELD's repository, and score on its 984 test utterances instead of 1328. The two are not comparable, so the reduced
# one has a name of its own.

EMORYNLP, EMORYNLP_LABELS = _source("EmoryNLP"), _labels("EmoryNLP")
EMORYNLP_REDUCED = "EmoryNLP (reduced release)"
REDUCED_FILES = tuple(f"emorynlp_{split}_final.csv" for split in ("train", "dev", "test"))
REDUCED_COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")
REDUCED_TEST = 984  # utterances


def load_emorynlp(data_dir: str | Path | None = None) -> Corpus:
    """The release that `data_dir` holds, else the full one."""
    if data_dir is not None and all((Path(data_dir) / name).is_file() for name in REDUCED_FILES):
        splits = [read_reduced_csv(Path(data_dir) / name) for name in REDUCED_FILES]
        return Corpus(EMORYNLP_REDUCED, EMORYNLP_LABELS, *splits)
    folder = locate(EMORYNLP, data_dir)
    train, dev, test = (read_emorynlp_json(folder / name) for name in EMORYNLP.files)
    warn_of_changes(EMORYNLP, folder)
    # The reduced release also circulates in the full one's format.
    reduced = sum(len(scene.turns) for scene in test) == REDUCED_TEST
    return Corpus(EMORYNLP_REDUCED if reduced else "EmoryNLP", EMORYNLP_LABELS, train, dev, test)


def read_emorynlp_json(path: Path) -> tuple[Dialogue, ...]:
    """One split's scenes; a fault in the file is an InputError that names the place."""
    scenes = [scene for episode in Json.read(path)["episodes"] for scene in episode["scenes"]]
    if not scenes:
        raise InputError(f"{path}: no scenes")
    return tuple(map(_emorynlp_scene, scenes))


def _emorynlp_scene(scene: Json) -> Dialogue:
    name, turns = scene["scene_id"].text(), tuple(_emorynlp_turn(utterance) for utterance in scene["utterances"])
    if not turns:
        raise scene["utterances"].fault("an empty dialogue; leave it out")
    return Dialogue(name, turns)


def _emorynlp_turn(utterance: Json) -> Turn:
    emotion = utterance["emotion"].text().strip().lower()
    if emotion not in EMORYNLP_LABELS:
        raise utterance["emotion"].fault(f"{utterance['emotion'].text()!r} is none of {', '.join(EMORYNLP_LABELS)}")
    speaker = speaker_name([speaker.text() for speaker in utterance["speakers"]])
    text = plain_text(utterance["transcript"].text())
    return Turn(utterance["utterance_id"].text(), speaker, text, EMORYNLP_LABELS.index(emotion))


def read_reduced_csv(path: Path) -> tuple[Dialogue, ...]:
    """One split's scenes of the reduced release."""
    scenes: dict[str, dict[int, Turn]] = {}
    for line, row in read_csv(path, REDUCED_COLUMNS):
        season, episode, scene, position = (
            whole_number(path, line, row, column) for column in ("Season", "Episode", "Scene_ID", "Utterance_ID")
        )
        turns = scenes.setdefault(f"s{season:02}_e{episode:02}_c{scene:02}", {})
        if position in turns:
            raise fault(path, line, "Utterance_ID", f"{position} occurs twice in scene {scene}")
        label = label_index(path, line, "Emotion", row["Emotion"], EMORYNLP_LABELS)
        try:
            speakers = [str(name) for name in ast.literal_eval(row["Speaker"])]
        except (ValueError, SyntaxError, TypeError):
            raise fault(path, line, "Speaker", f"{row['Speaker']!r} is not a list of names") from None
        turns[position] = Turn(str(position), speaker_name(speakers), plain_text(row["Utterance"]), label)
    return _in_order(scenes)


def speaker_name(speakers: Sequence[str]) -> str:
    """First names: `["Carol Willick", "Susan Bunch"]` becomes "Carol and Susan", `["#ALL#"]` "All"."""
    return " and ".join(_first_name(plain_text(name)) for name in speakers) or "Somebody"


def _first_name(name: str) -> str:
    if name.startswith("#"):
        return name.strip("#").capitalize()
    words = name.split()
    return words[0] if len(words) == 2 and not words[0].endswith(".") else name  # "Mr. Geller" keeps his surname


# All of them by name.

DATASETS: dict[str, Callable[[str | Path | None], Corpus]] = {
    "MELD": load_meld, "IEMOCAP": load_iemocap, "EmoryNLP": load_emorynlp, EMORYNLP_REDUCED: load_emorynlp,
}  # fmt: skip


def load_corpus(name: str, data_dir: str | Path | None = None) -> Corpus:
    """A corpus by its name; `data_dir` is searched instead of the usual places."""
    from .practice import PRACTICE, practice_corpus

    if name == PRACTICE:
        return practice_corpus()
    if name not in DATASETS:
        raise InputError(f"the corpus must be one of {', '.join([*DATASETS, PRACTICE])}; received {name!r}")
    return DATASETS[name](data_dir)


def counts(corpus: Corpus, split: str) -> tuple[int, int, tuple[int, ...]]:
    """Dialogues, turns, labelled turns by class."""
    dialogues = getattr(corpus, split)
    labels = Counter(turn.label for dialogue in dialogues for turn in dialogue.turns)
    return len(dialogues), sum(labels.values()), tuple(labels[label] for label in range(len(corpus.labels)))


def split_table(corpus: Corpus) -> str:
    """The sizes of the splits as a table of text."""
    rows = [("", "dialogues", "turns", "labelled", *corpus.labels)]
    for split in ("train", "dev", "test"):
        dialogues, turns, classes = counts(corpus, split)
        rows.append((split, *(str(number) for number in (dialogues, turns, sum(classes), *classes))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def departures(corpus: Corpus) -> list[str]:
    """How the splits differ from the published ones; empty where none are published."""
    found = []
    for split, published in KNOWN.get(corpus.name, {"published": {}})["published"].items():
        what = ("dialogues", "turns", *(f"{label} turns" for label in corpus.labels))
        (*sizes, classes), (*other_sizes, other_classes) = counts(corpus, split), published
        for name, one, other in zip(what, (*sizes, *classes), (*other_sizes, *other_classes), strict=True):
            if one != other:
                found.append(f"{split} has {one} {name}, published {other}")
    return found
