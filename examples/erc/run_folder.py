"""A run's folder: nothing in it is ever half written, and an interrupted run goes on from its last checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .dialogues import InputError
from .settings import Settings, differences

CHECKPOINTS = "checkpoint-*"


class RunFolder:
    """Names the files of a run, and writes each so that it is whole or absent even if the process is killed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.best = self.path / "best.safetensors"
        self.predictions = self.path / "predictions.csv"
        self.partial = self.path / "partial-checkpoint"

    def open(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Makes the folder, or takes up the one that is there.

        Raises:
            InputError: it holds a run and neither `resume` nor `overwrite` was asked for, or one of other settings.
        """
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
        elif different := differences(stored, settings):
            raise InputError(
                f"{self.path} holds a run of other settings: {', '.join(different)}; leave these options "
                "as they were, or name another folder with --output"
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

    def checkpoint(self) -> Path | None:
        """The newest checkpoint."""
        return max(self.path.glob(CHECKPOINTS), default=None)

    def clear_partial(self) -> None:
        """Makes `partial` an empty folder, to write the next checkpoint into."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()

    def commit(self, epoch: int, batch: int, history: list[dict[str, Any]]) -> None:
        """Makes the partial checkpoint the newest, and keeps the one before it in case a disk spoils this one."""
        older = sorted(self.path.glob(CHECKPOINTS))
        newest = self.path / f"checkpoint-{epoch:04d}-{batch:07d}"
        flush(self.partial)
        self.partial.replace(newest)
        flush(self.path)
        for checkpoint in older[:-1]:
            shutil.rmtree(checkpoint)
        self.publish(newest, history)

    def publish(self, checkpoint: Path, history: list[dict[str, Any]]) -> None:
        """Brings best.safetensors and metrics.jsonl to the state of the checkpoint."""
        best = checkpoint / self.best.name
        # renaming one of two names of the same file onto the other would do nothing
        if best.exists() and not (self.best.exists() and self.best.samefile(best)):
            atomically(self.best, lambda partial: link(best, partial))
        lines = "".join(json.dumps(line) + "\n" for line in history)
        atomically(self.metrics, lambda partial: partial.write_text(lines, encoding="utf-8"))

    def drop_checkpoints(self) -> None:
        """A finished run needs none."""
        for checkpoint in [*self.path.glob(CHECKPOINTS), self.partial]:
            shutil.rmtree(checkpoint, ignore_errors=True)

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else."""
        self.drop_checkpoints()
        figures = [self.path / name for name in FIGURES]
        for file in (self.settings, self.metrics, self.result, self.best, self.predictions, *figures):
            file.unlink(missing_ok=True)


FIGURES = ("f1_by_epoch.png", "confusion_matrix.png", "representation_map.png", "difficulty.png")


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in its place."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    write(partial)
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # flushes no folder, and no file that is open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON, whole or absent."""
    text = json.dumps(content, indent=2) + "\n"
    atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links. Neither is ever rewritten."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
