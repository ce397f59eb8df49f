"""The corpora by name; and MELD (Poria et al., ACL 2019): where its files are found, how they become dialogues."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from .dialogues import Corpus, Dialogue, InputError, Turn
from .practice import PRACTICE, practice_corpus

MELD_URL = "https://raw.githubusercontent.com/declare-lab/MELD/master/data/MELD"
MELD_SHA256 = {
    "train_sent_emo.csv": "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db",
    "dev_sent_emo.csv": "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c",
    "test_sent_emo.csv": "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888",
}
MELD_LABELS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
MELD_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


class NoDataError(InputError):
    """The dataset is neither on this machine nor to be downloaded."""


def load_corpus(name: str, data_dir: str | Path | None = None) -> Corpus:
    """A corpus by its name; `data_dir` as in its loader."""
    if name == PRACTICE:
        return practice_corpus()
    if name == "MELD":
        return load_meld(data_dir)
    raise InputError(f"the corpus must be MELD or {PRACTICE}; received {name!r}")


def load_meld(data_dir: str | Path | None = None) -> Corpus:
    """MELD from `data_dir`, else from `find_meld`'s places."""
    folder = find_meld(data_dir)
    splits = {name.split("_")[0]: read_meld_csv(folder / name) for name in MELD_SHA256}
    return Corpus("MELD", MELD_LABELS, **splits)


def find_meld(data_dir: str | Path | None = None) -> Path:
    """The folder with MELD's three CSV files.

    `data_dir` if given (then nowhere else is looked), `$SPCL_DATA_DIR/meld`, the user's cache, a download into it.
    """
    if data_dir is not None:
        missing = _missing(Path(data_dir))
        if missing:
            raise NoDataError(f"{data_dir} lacks {', '.join(missing)}: --data-dir must name the folder that holds them")
        return Path(data_dir)
    cache = cache_folder() / "meld"
    places = [cache]
    if os.environ.get("SPCL_DATA_DIR"):
        places.insert(0, Path(os.environ["SPCL_DATA_DIR"]) / "meld")
    for place in places:
        if not _missing(place):
            return place
    try:
        for name, sha256 in MELD_SHA256.items():
            download(f"{MELD_URL}/{name}", cache / name, sha256)
    except OSError as error:
        raise NoDataError(
            f"MELD is not on this machine and could not be downloaded ({_reason(error)}): put {', '.join(MELD_SHA256)} "
            f"from https://github.com/declare-lab/MELD (folder data/MELD) into {cache}, or name their folder with "
            "--data-dir, or run with --practice, which needs no data."
        ) from error
    return cache


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/spcl-loss`, by default `~/.cache/spcl-loss`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spcl-loss"


def download(url: str, target: Path, sha256: str) -> None:
    """Fetch `url` to `target`, which appears only when it is whole and its checksum right."""
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=30) as response, partial.open("wb") as file:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            with tqdm(total=total, desc=target.name, unit="B", unit_scale=True) as progress:
                while block := response.read(1 << 16):
                    file.write(block)
                    digest.update(block)
                    progress.update(len(block))
        if digest.hexdigest() != sha256:
            raise OSError(f"{url} has sha256 {digest.hexdigest()}, expected {sha256}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_meld_csv(path: Path) -> tuple[Dialogue, ...]:
    """One split's dialogues; a fault in the file is an InputError that names file, line and column."""
    dialogues: dict[str, dict[int, Turn]] = {}
    for line, row in _rows(path):
        dialogue = str(_whole_number(path, line, row, "Dialogue_ID"))
        position = _whole_number(path, line, row, "Utterance_ID")
        turns = dialogues.setdefault(dialogue, {})
        if position in turns:
            raise _fault(path, line, "Utterance_ID", f"{position} occurs twice in dialogue {dialogue}")
        emotion = row["Emotion"].strip().lower()
        if emotion not in MELD_LABELS:
            raise _fault(path, line, "Emotion", f"{row['Emotion']!r} is none of {', '.join(MELD_LABELS)}")
        text, speaker = plain_quotes(row["Utterance"]), plain_quotes(row["Speaker"])
        turns[position] = Turn(str(position), speaker, text, MELD_LABELS.index(emotion))
    # Utterance_ID has gaps in some dialogues but always gives the spoken order.
    return tuple(Dialogue(name, tuple(turns[i] for i in sorted(turns))) for name, turns in dialogues.items())


def plain_quotes(text: str) -> str:
    """Curly apostrophes become straight ones and double quotes go, as in the SPCL authors' preprocessing."""
    return text.translate({0x2018: "'", 0x2019: "'", 0x201C: None, 0x201D: None, 0x22: None}).strip()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    # surrogateescape carries undecodable bytes as far as the field they are in, so that its column can be named
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = fields
                for column in MELD_COLUMNS:
                    if column not in header:
                        raise _fault(path, line, column, f"missing; the columns are {', '.join(header)}")
            elif fields:
                yield line, _row(path, line, header, fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not readable as CSV ({error})") from error
    if line <= 2:
        raise InputError(f"{path}, line {line}: no utterances; expected the columns {', '.join(MELD_COLUMNS)}")


def _row(path: Path, line: int, header: list[str], fields: list[str]) -> dict[str, str]:
    if len(fields) != len(header):
        column = header[len(fields)] if len(fields) < len(header) else f"{len(header) + 1}"
        raise _fault(path, line, column, f"the row has {len(fields)} fields, the header {len(header)}")
    row = dict(zip(header, fields, strict=True))
    for column in MELD_COLUMNS:
        if any(0xDC80 <= ord(character) <= 0xDCFF for character in row[column]):
            raise _fault(path, line, column, "not UTF-8; save the file with that encoding")
    return row


def _whole_number(path: Path, line: int, row: dict[str, str], column: str) -> int:
    try:
        return int(row[column])
    except ValueError:
        raise _fault(path, line, column, f"{row[column]!r} is not a whole number") from None


def _fault(path: Path, line: int, column: str, what: str) -> InputError:
    return InputError(f"{path}, line {line}, column {column}: {what}")


def _missing(folder: Path) -> list[str]:
    return [name for name in MELD_SHA256 if not (folder / name).is_file()]


def _reason(error: OSError) -> str:
    return str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)
