"""A dataset's files: where they are found, how they are downloaded, and how CSV and JSON are read with named faults."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one sentence and is shown without a traceback."""


class NoDataError(InputError):
    """The dataset is not on this machine and cannot be downloaded."""


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    Args:
        name: of the dataset.
        folder: its subfolder of `$SPCL_DATA_DIR` and of the cache.
        files: every file with its checksum (see `checksum`); "" where none is published.
        url: the public folder that holds the files; None where there is none.
        obtain: how to get the files by hand, as the middle of a sentence.
    """

    name: str
    folder: str
    files: dict[str, str]
    url: str | None
    obtain: str

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.files if not (folder / name).is_file()]


def locate(source: Source, data_dir: str | Path | None = None) -> Path:
    """The folder with the files: `data_dir` if given, else `$SPCL_DATA_DIR`, the user's cache, a download into it."""
    if data_dir is not None:
        if missing := source.missing(Path(data_dir)):
            raise NoDataError(f"{data_dir} lacks {', '.join(missing)}: --data-dir must name the folder that holds them")
        return Path(data_dir)
    cache = cache_folder() / source.folder
    shared = os.environ.get("SPCL_DATA_DIR")
    for place in ([Path(shared) / source.folder] if shared else []) + [cache]:
        if not source.missing(place):
            return place
    if source.url is None:
        raise NoDataError(_remedy(source, cache, "is not on this machine, and its licence lets nobody pass it on"))
    try:
        for name, expected in source.files.items():
            download(f"{source.url}/{name}", cache / name, expected)
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        what = f"is not on this machine and could not be downloaded ({reason})"
        raise NoDataError(_remedy(source, cache, what)) from error
    return cache


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/spcl-loss`, by default `~/.cache/spcl-loss`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spcl-loss"


def download(url: str, target: Path, expected: str) -> None:
    """Fetches `url` to `target`, which appears only once it is whole and has the expected checksum."""
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(url, timeout=30) as response, partial.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, desc=target.name, unit="B", unit_scale=True) as progress:
                while block := response.read(1 << 16):
                    file.write(block)
                    progress.update(len(block))
        if (found := checksum(partial.read_bytes(), expected)) != expected:
            raise OSError(f"{url} has the checksum {found}, expected {expected}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def checksum(content: bytes, like: str) -> str:
    """The content's sha256, or its git object id where `like` is as short as one.

    A repository lists the object ids of its files, so they are known without a download.
    """
    if len(like) == 40:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()


def warn_of_changes(source: Source, folder: Path) -> None:
    """Warns of files that are not the published ones. They are used all the same."""
    changed = [name for name, sha in source.files.items() if sha and checksum((folder / name).read_bytes(), sha) != sha]
    if changed:
        print(f"warning: not the published version of {source.name}: {', '.join(changed)} in {folder}", file=sys.stderr)


def _remedy(source: Source, cache: Path, what: str) -> str:
    return (
        f"{source.name} {what}: {source.obtain} and put {', '.join(source.files)} into {cache}, or name their folder "
        "with --data-dir, or run with --practice, which needs no data."
    )


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows, each with the line on which it begins. Every row has all `columns`."""
    # surrogateescape carries undecodable bytes as far as their field, so that the fault can name its column.
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    if "\0" in text:
        raise InputError(f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL byte; get the file anew")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line, empty = 1, True
    try:
        for fields in reader:
            if header is None:
                header = fields
                for column in columns:
                    if column not in header:
                        raise fault(path, line, column, f"missing; the columns are {', '.join(header)}")
            elif fields:
                empty = False
                yield line, _row(path, line, header, fields, columns)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not readable as CSV ({error})") from error
    if empty:
        raise InputError(f"{path}, line {line}: no utterances; expected the columns {', '.join(columns)}")


def _row(path: Path, line: int, header: list[str], fields: list[str], columns: Sequence[str]) -> dict[str, str]:
    if len(fields) != len(header):
        column = header[len(fields)] if len(fields) < len(header) else f"{len(header) + 1}"
        raise fault(path, line, column, f"the row has {len(fields)} fields, the header {len(header)}")
    row = dict(zip(header, fields, strict=True))
    for column in columns:
        if any(0xDC80 <= ord(character) <= 0xDCFF for character in row[column]):
            raise fault(path, line, column, "not UTF-8; save the file with that encoding")
    return row


def whole_number(path: Path, line: int, row: dict[str, str], column: str) -> int:
    """A row's value as a number."""
    try:
        return int(row[column])
    except ValueError:
        raise fault(path, line, column, f"{row[column]!r} is not a whole number") from None


def label_index(path: Path, line: int, column: str, emotion: str, labels: Sequence[str]) -> int:
    """The place among `labels` of an emotion, written in any case."""
    name = emotion.strip().lower()
    if name not in labels:
        raise fault(path, line, column, f"{emotion!r} is none of {', '.join(labels)}")
    return labels.index(name)


def fault(path: Path, line: int, column: str, what: str) -> InputError:
    """What is wrong with a CSV file, and where."""
    return InputError(f"{path}, line {line}, column {column}: {what}")


class Json:
    """A value in a JSON file that knows its place: a fault in `value["scenes"][3]` names the file and "scenes[3]"."""

    def __init__(self, content: Any, path: Path, place: str = "") -> None:
        self.content, self.path, self.place = content, path, place

    @classmethod
    def read(cls, path: Path) -> Json:
        try:
            return cls(json.loads(path.read_bytes()), path)
        except ValueError as error:  # of decoding too
            raise InputError(f"{path}: not readable as JSON ({error})") from error

    def __getitem__(self, key: str) -> Json:
        if not isinstance(self.content, dict) or key not in self.content:
            raise self.fault(f'expected an object with "{key}"')
        return Json(self.content[key], self.path, f"{self.place}.{key}" if self.place else key)

    def get(self, key: str) -> Json | None:
        """The value under `key`, None where there is none."""
        if isinstance(self.content, dict) and self.content.get(key) is None:
            return None
        return self[key]

    def __iter__(self) -> Iterator[Json]:
        if not isinstance(self.content, list):
            raise self.fault("expected a list")
        return (Json(part, self.path, f"{self.place}[{i}]") for i, part in enumerate(self.content))

    def text(self) -> str:
        if not isinstance(self.content, str):
            raise self.fault(f"expected text; received {self.content!r}")
        if "\0" in self.content:
            raise self.fault("a NUL byte; get the file anew")
        return self.content

    def fault(self, what: str) -> InputError:
        return InputError(f"{self.path}, {self.place or 'top'}: {what}")
