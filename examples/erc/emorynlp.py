"""EmoryNLP (Zahiri and Choi, AAAI workshops 2018): three JSON files from its public repository.

Some papers use a reduced release, the CSV files in MELD's repository, and score on its 984 test utterances instead of
1328. The two are not comparable, so the reduced one has a name of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from .dialogues import Corpus, Dialogue, InputError, Turn, plain_quotes
from .sources import Source, locate
from .tables import Json, fault, label_index, read_csv, whole_number

NAME = "EmoryNLP"
REDUCED_NAME = "EmoryNLP (reduced release)"
COMMIT = "289b967a34556f0d86b52ea36571c2a0c90740ae"
EMORYNLP = Source(
    name=NAME,
    folder="emorynlp",
    files={  # git object ids
        "emotion-detection-trn.json": "0f40b44b249e199bfd9c75f8383688f9c81a2d67",
        "emotion-detection-dev.json": "86a45e9dc41db662a67b38d888c14c92fbbbbe38",
        "emotion-detection-tst.json": "0ec777fee3aa4bc41e24b879622db9493fc27b64",
    },
    url=f"https://raw.githubusercontent.com/emorynlp/emotion-detection/{COMMIT}/json",
    obtain="get them from https://github.com/emorynlp/emotion-detection (folder json)",
)
REDUCED_FILES = tuple(f"emorynlp_{split}_final.csv" for split in ("train", "dev", "test"))
REDUCED_COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")
REDUCED_TEST = 984  # utterances
LABELS = ("neutral", "joyful", "scared", "mad", "peaceful", "powerful", "sad")


def load_emorynlp(data_dir: str | Path | None = None) -> Corpus:
    """The release that `data_dir` holds, else the full one from `locate`'s places."""
    if data_dir is not None and all((Path(data_dir) / name).is_file() for name in REDUCED_FILES):
        splits = [read_reduced_csv(Path(data_dir) / name) for name in REDUCED_FILES]
        return Corpus(REDUCED_NAME, LABELS, *splits)
    folder = locate(EMORYNLP, data_dir)
    train, dev, test = (read_emorynlp_json(folder / name) for name in EMORYNLP.files)
    # the reduced release also goes round in the full one's format
    reduced = sum(len(scene.turns) for scene in test) == REDUCED_TEST
    return Corpus(REDUCED_NAME if reduced else NAME, LABELS, train, dev, test)


def read_emorynlp_json(path: Path) -> tuple[Dialogue, ...]:
    """One split's scenes; a fault in the file is an InputError that names the place."""
    scenes = [scene for episode in Json.read(path)["episodes"] for scene in episode["scenes"]]
    if not scenes:
        raise InputError(f"{path}: no scenes")
    return tuple(Dialogue(scene["scene_id"].text(), tuple(_turn(u) for u in scene["utterances"])) for scene in scenes)


def _turn(utterance: Json) -> Turn:
    emotion = utterance["emotion"].text().strip().lower()
    if emotion not in LABELS:
        raise utterance["emotion"].fault(f"{utterance['emotion'].text()!r} is none of {', '.join(LABELS)}")
    speakers = [speaker.text() for speaker in utterance["speakers"]]
    text = plain_quotes(utterance["transcript"].text())
    return Turn(utterance["utterance_id"].text(), speaker_name(speakers), text, LABELS.index(emotion))


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
        label = label_index(path, line, "Emotion", row["Emotion"], LABELS)
        speaker = speaker_name(_listed(path, line, row["Speaker"]))
        turns[position] = Turn(str(position), speaker, plain_quotes(row["Utterance"]), label)
    return tuple(Dialogue(name, tuple(turns[i] for i in sorted(turns))) for name, turns in scenes.items())


def _listed(path: Path, line: int, text: str) -> list[str]:
    """The speakers, which a field holds as a Python list."""
    try:
        return [str(name) for name in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        raise fault(path, line, "Speaker", f"{text!r} is not a list of names") from None


def speaker_name(speakers: Sequence[str]) -> str:
    """Who speaks, by first names: `["Carol Willick", "Susan Bunch"]` becomes "Carol and Susan", `["#ALL#"]` "All"."""
    return " and ".join(_first_name(plain_quotes(name)) for name in speakers) or "Somebody"


def _first_name(name: str) -> str:
    if name.startswith("#"):
        return name.strip("#").capitalize()
    words = name.split()
    return words[0] if len(words) == 2 and not words[0].endswith(".") else name  # "Mr. Geller" keeps his surname
