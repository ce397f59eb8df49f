"""CSV and JSON files read so that a fault in one is an InputError that names the place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .dialogues import InputError


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows with the lines on which they begin; every one has all `columns`."""
    # surrogateescape carries undecodable bytes as far as the field they are in, so that its column can be named
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = fields
                for column in columns:
                    if column not in header:
                        raise fault(path, line, column, f"missing; the columns are {', '.join(header)}")
            elif fields:
                yield line, _row(path, line, header, fields, columns)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not readable as CSV ({error})") from error
    if line <= 2:
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
    """The place of an emotion, written in any case, among `labels`."""
    name = emotion.strip().lower()
    if name not in labels:
        raise fault(path, line, column, f"{emotion!r} is none of {', '.join(labels)}")
    return labels.index(name)


def fault(path: Path, line: int, column: str, what: str) -> InputError:
    """What is wrong with a CSV file, and where."""
    return InputError(f"{path}, line {line}, column {column}: {what}")


class Json:
    """A value in a JSON file, which knows its place: `value["scenes"][3]` fails with the file and "scenes[3]"."""

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
        return self.content

    def fault(self, what: str) -> InputError:
        return InputError(f"{self.path}, {self.place or 'top'}: {what}")
