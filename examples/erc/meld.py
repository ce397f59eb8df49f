"""MELD (Poria et al., ACL 2019): three CSV files from its public repository."""

from __future__ import annotations

from pathlib import Path

from .dialogues import Corpus, Dialogue, Turn, plain_quotes
from .sources import Source, locate
from .tables import fault, label_index, read_csv, whole_number

MELD = Source(
    name="MELD",
    folder="meld",
    files={
        "train_sent_emo.csv": "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db",
        "dev_sent_emo.csv": "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c",
        "test_sent_emo.csv": "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888",
    },
    url="https://raw.githubusercontent.com/declare-lab/MELD/master/data/MELD",
    obtain="get them from https://github.com/declare-lab/MELD (folder data/MELD)",
)
LABELS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def load_meld(data_dir: str | Path | None = None) -> Corpus:
    """MELD from `data_dir`, else from `locate`'s places."""
    folder = locate(MELD, data_dir)
    splits = {name.split("_")[0]: read_meld_csv(folder / name) for name in MELD.files}
    return Corpus("MELD", LABELS, **splits)


def read_meld_csv(path: Path) -> tuple[Dialogue, ...]:
    """One split's dialogues; a fault in the file is an InputError that names file, line and column."""
    dialogues: dict[str, dict[int, Turn]] = {}
    for line, row in read_csv(path, COLUMNS):
        dialogue = str(whole_number(path, line, row, "Dialogue_ID"))
        position = whole_number(path, line, row, "Utterance_ID")
        turns = dialogues.setdefault(dialogue, {})
        if position in turns:
            raise fault(path, line, "Utterance_ID", f"{position} occurs twice in dialogue {dialogue}")
        label = label_index(path, line, "Emotion", row["Emotion"], LABELS)
        turns[position] = Turn(str(position), plain_quotes(row["Speaker"]), plain_quotes(row["Utterance"]), label)
    # Utterance_ID has gaps in some dialogues but always gives the spoken order.
    return tuple(Dialogue(name, tuple(turns[i] for i in sorted(turns))) for name, turns in dialogues.items())
