"""A run's folder. No file in it is ever half written, so that an interrupted run can continue."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .files import InputError
from .settings import NAMES, Settings

try:
    import fcntl
except ImportError:  # on Windows, where a folder cannot be locked
    fcntl = None

FIGURES = ("curves.png", "confusion.png")  # of a single run


class RunFolder:
    """Names the files of a run and opens its folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.best = self.path / "best.safetensors"
        self.predictions = self.path / "predictions.csv"
        self.report = self.path / "report.md"

    def check(self) -> None:
        """Raises InputError where the path cannot be a folder, before any work is done."""
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise InputError(f"{place} is a file: --output must name a folder")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from training in the folder. A killed process keeps nobody out."""
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        if fcntl is None:
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{self.path} is in use: another process trains there. Wait for its end, or name another folder with "
                "--output"
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            os.close(descriptor)

    def open(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Begins a run in the folder, or takes up the one that it holds. InputError where that is not allowed."""
        self.check()
        if overwrite and not resume:
            self.clear()
        stored = self.stored_settings()
        if stored is None:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.settings, asdict(settings))
        elif not resume:
            raise InputError(
                f"{self.path} already holds a run: --resume continues it, --overwrite replaces it, "
                "--output names another folder"
            )
        elif stored != settings:
            pairs = ((name, getattr(stored, name), getattr(settings, name)) for name in NAMES)
            changed = ", ".join(f"{name} ({before!r}, now {now!r})" for name, before, now in pairs if before != now)
            raise InputError(
                f"{self.path} holds a run of other settings: {changed}; leave these options as they were, or name "
                "another folder with --output"
            )

    def stored_settings(self) -> Settings | None:
        """The settings of the run that the folder holds, if it holds one."""
        if not self.settings.exists():
            return None
        try:
            return Settings(**json.loads(self.settings.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.settings} holds no settings of this version: {error}") from error

    def stored_result(self) -> dict[str, Any] | None:
        """The result, if the run is finished."""
        return json.loads(self.result.read_text(encoding="utf-8")) if self.result.exists() else None

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one for each finished epoch."""
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def checkpoints(self) -> list[Path]:
        """Its checkpoints, the newest last."""
        return sorted(self.path.glob("checkpoint-*"))

    def best_of(self, epoch: int) -> Path:
        """The weights of an epoch that was the best when it ended."""
        return self.path / f"best-{epoch:04d}.safetensors"

    def drop_checkpoints(self) -> None:
        """Removes what only an unfinished run needs."""
        for pattern in ("checkpoint-*", "best-*", "partial-*"):
            for path in self.path.glob(pattern):
                path.unlink()

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else."""
        self.drop_checkpoints()
        files = (self.settings, self.metrics, self.result, self.best, self.predictions, self.report)
        for file in (*files, *(self.path / name for name in FIGURES)):
            file.unlink(missing_ok=True)


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill another file, then renames it to `path`: at any time `path` is complete or absent."""
    partial = path.with_name(f"partial-{path.name}")
    try:
        write(partial)
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two are how writers report a full disk
        partial.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error}. Mend that, and continue with --resume") from error


def write_text(path: Path, text: str) -> None:
    atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # flushes no folder, and no file that is open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
