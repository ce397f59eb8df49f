"""A dataset's files: finding them, downloading them, and reading them with errors that name the place."""

from __future__ import annotations

import csv
import hashlib
import http.client
import io
import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one sentence and is shown without a traceback."""


class NoDataError(InputError):
    """The dataset is not on this machine and cannot be downloaded."""


@dataclass(frozen=True)
class Source:
    """A dataset as datasets.json describes it."""

    name: str
    labels: tuple[str, ...]
    published: dict[str, tuple[int, int, list[int]]]  # by split: dialogues, turns, labelled turns by class
    folder: str  # in `$SPCL_DATA_DIR` and in the cache
    files: dict[str, str]  # of train, dev and test, each with its checksum; "" where none is published
    url: str | None  # the public folder that holds the files
    obtain: str  # how to get the files by hand, as the middle of a sentence

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.files if not (folder / name).is_file()]


def locate(source: Source, data_dir: str | Path | None = None) -> Path:
    """The folder with the files: `data_dir` if given, else `$SPCL_DATA_DIR`, the user's cache, a download into it."""
    if data_dir is not None:
        if missing := source.missing(Path(data_dir)):
            raise NoDataError(f"{data_dir} lacks {', '.join(missing)}: --data-dir must name the folder that holds them")
        return Path(data_dir)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spcl-loss" / source.folder
    shared = os.environ.get("SPCL_DATA_DIR")
    for place in ([Path(shared) / source.folder] if shared else []) + [cache]:
        if not source.missing(place):
            return place
    reason = "cannot be downloaded"
    if source.url is not None:
        try:
            for name, expected in source.files.items():
                download(f"{source.url}/{name}", cache / name, expected)
            print(f"downloaded {source.name} into {cache}", file=sys.stderr)
            return cache
        except (OSError, http.client.HTTPException) as error:
            reason = f"could not be downloaded ({error})"
    raise NoDataError(
        f"{source.name} is not on this machine and {reason}: {source.obtain} and put {', '.join(source.files)} into "
        f"{cache}, or name their folder with --data-dir, or run with --practice, which needs no data."
    )


SILENCE = 30  # seconds without a byte, after which a download is given up


def download(url: str, target: Path, expected: str) -> None:
    """Fetches a few megabytes to `target`, which appears only once it is whole and has the expected checksum."""
    with urllib.request.urlopen(url, timeout=SILENCE) as response:
        content = response.read()
    if (found := checksum(content, expected)) != expected:
        raise OSError(f"{url} has the checksum {found}, expected {expected}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")  # other processes may fetch it too
    partial.write_bytes(content)
    partial.replace(target)


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


_HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # of surrogates: legal in JSON, but no file in UTF-8 can hold it


class Value:
    """A part of a dataset's file. Its faults say file and place, what was expected there, and what was received."""

    def __init__(self, content: Any, place: str) -> None:
        self.content, self.place = content, place  # such as "train.csv, line 3, Emotion" or "train.json[0][2], text"

    def __getitem__(self, key: str) -> Value:
        if not isinstance(self.content, dict) or key not in self.content:
            raise self.fault(f'an object with "{key}"')
        return Value(self.content[key], f"{self.place}, {key}")

    def __contains__(self, key: str) -> bool:
        return isinstance(self.content, dict) and self.content.get(key) is not None

    def __iter__(self) -> Iterator[Value]:
        if not isinstance(self.content, list):
            raise self.fault("a list")
        return (Value(part, f"{self.place}[{i}]") for i, part in enumerate(self.content))

    def text(self) -> str:
        if not isinstance(self.content, str) or "\0" in self.content:
            raise self.fault("text without NUL bytes")
        if _HALF_A_PAIR.search(self.content):
            raise self.fault("text that UTF-8 can hold")
        return self.content

    def number(self) -> int:
        digits = self.text().strip()
        if not digits.isdecimal() or len(digits) > 18:
            raise self.fault("a whole number")
        return int(self.content)

    def index(self, names: Sequence[str], remedy: str = "") -> int:
        """Its place among `names`, written in any case."""
        name = self.text().strip().lower()
        if name not in names:
            raise self.fault(f"one of {', '.join(names)}", remedy)
        return names.index(name)

    def fault(self, expected: str, remedy: str = "") -> InputError:
        return InputError(f"{self.place}: expected {expected}; received {shortened(self.content)}{remedy}")


def read_json(path: Path) -> Value:
    try:
        return Value(json.loads(path.read_bytes()), str(path))
    except (ValueError, RecursionError) as error:  # of decoding too
        raise InputError(f"{path}: not readable as JSON ({error})") from error


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[Value]:
    """The rows, each with all `columns`. A row that spans several lines is known by its last line."""
    content = path.read_bytes()
    try:
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        if missing := [column for column in columns if column not in header]:
            raise InputError(f"{path}, line 1: expected a column {missing[0]}; received {', '.join(header) or 'none'}")
        for fields in rows:
            place = f"{path}, line {rows.line_num}"
            if fields and len(fields) != len(header):
                raise InputError(f"{place}: expected {len(header)} fields, as in line 1; received {len(fields)}")
            if fields:  # no blank line
                yield Value(dict(zip(header, fields, strict=True)), place)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: expected UTF-8; save the file with that encoding") from error
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not readable as CSV ({error})") from error
