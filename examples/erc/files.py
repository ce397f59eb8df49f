"""A dataset's files: finding them, downloading them, and reading them with errors that name the place."""

import csv
import hashlib
import http.client
import io
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
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


def parsed(content: Any, shape: Any, place: str) -> Any:
    """The content as the shape reads it. A fault is an InputError: the place, what was expected, what was received.

    `[shape]` is a list, `{"key": shape}` an object, in which a missing key counts as None. A function returns the value
    that it reads, or raises a ValueError that says what it expects.
    """
    if isinstance(shape, list) and isinstance(content, list):
        return [parsed(part, shape[0], f"{place}[{i}]") for i, part in enumerate(content)]
    if isinstance(shape, dict) and isinstance(content, dict):
        return {key: parsed(content.get(key), part, f"{place}, {key}") for key, part in shape.items()}
    try:
        if callable(shape):
            return shape(content)
        expected = "a list" if isinstance(shape, list) else f"an object with {', '.join(shape)}"
    except ValueError as error:
        expected = str(error)
    received = "null, or the key is missing" if content is None else shortened(content)
    raise InputError(f"{place}: expected {expected}; received {received}")


def text(content: Any) -> str:
    if not isinstance(content, str):
        raise ValueError("text")
    if "\0" in content:
        raise ValueError("text without NUL bytes")
    if content.encode(errors="ignore").decode() != content:  # half a surrogate pair, which is legal in JSON
        raise ValueError("text that UTF-8 can hold")
    return content


def number(content: Any) -> int:
    digits = text(content).strip()
    if not digits.isdecimal() or len(digits) > 18:
        raise ValueError("a whole number")
    return int(digits)


def one_of(names: Sequence[str], remedy: str = "") -> Callable[[Any], int]:
    """Reads one of the names, written in any case, as its place among them."""

    def read(content: Any) -> int:
        name = text(content).strip().lower()
        if name not in names:
            raise ValueError(f"one of {', '.join(names)}{remedy}")
        return names.index(name)

    return read


def optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda content: None if content is None else read(content)


def read_json(path: Path, shape: Any) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: of decoding too
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    return parsed(content, shape, str(path))


def read_csv(path: Path, shape: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows, with the columns that the shape names. A row that spans several lines is known by its last line."""
    content = path.read_bytes()
    try:
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        if missing := [column for column in shape if column not in header]:
            raise InputError(f"{path}, line 1: expected a column {missing[0]}; received {', '.join(header) or 'none'}")
        for fields in filter(None, rows):  # no blank lines
            place = f"{path}, line {rows.line_num}"
            if len(fields) != len(header):
                raise InputError(f"{place}: expected {len(header)} fields, as in line 1; received {len(fields)}")
            yield parsed(dict(zip(header, fields, strict=True)), shape, place)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: expected UTF-8; save the file with that encoding") from error
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not readable as CSV ({error})") from error
