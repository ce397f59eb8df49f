"""A run's folder: nothing in it is ever half written, and an interrupted run goes on from its last checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import InputError
from .settings import Settings, differences

if TYPE_CHECKING:
    from accelerate import Accelerator

FIGURES: tuple[str, ...] = ()
_CHECKPOINTS = "checkpoint-*"
_FORMAT = "spcl-erc 2"


class RunFolder:
    """Names the files of a run, and writes each so that it is whole or absent even if the process is killed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.best = self.path / "best.safetensors"
        self.predictions = self.path / "predictions.csv"
        self.report = self.path / "report.md"
        self.partial = self.path / "partial-checkpoint"

    def check(self) -> None:
        """Raises InputError where the path cannot be a folder, before any work is done."""
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise InputError(f"{place} is a file: --output must name a folder")

    def open(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Makes the folder, or takes up the run that it holds.

        Raises:
            InputError: it is a file, it holds a run and neither `resume` nor `overwrite` was asked for, or it holds a
                run of other settings.
        """
        self.check()
        if overwrite and not resume:
            self.clear()
        stored = self.stored_settings()
        if stored is None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                write_json(self.settings, asdict(settings))
            except OSError as error:
                raise InputError(f"{self.path} cannot be written: {error}") from error
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
        return max(self.path.glob(_CHECKPOINTS), default=None)

    def commit(self, epoch: int, batch: int, history: list[dict[str, Any]]) -> None:
        """Makes the partial checkpoint the newest, and keeps the one before it in case a disk spoils this one."""
        older = sorted(self.path.glob(_CHECKPOINTS))
        newest = self.path / f"checkpoint-{epoch:04d}-{batch:07d}"
        _flush(self.partial)
        self.partial.replace(newest)
        _flush(self.path)
        for checkpoint in older[:-1]:
            shutil.rmtree(checkpoint)
        self.publish(newest, history)

    def publish(self, checkpoint: Path, history: list[dict[str, Any]]) -> None:
        """Brings best.safetensors and metrics.jsonl to the state of the checkpoint."""
        best = checkpoint / self.best.name
        # Renaming one of two names of a file onto the other would do nothing.
        if best.exists() and not (self.best.exists() and self.best.samefile(best)):
            atomically(self.best, lambda partial: _link(best, partial))
        lines = "".join(json.dumps(line) + "\n" for line in history)
        atomically(self.metrics, lambda partial: partial.write_text(lines, encoding="utf-8"))

    def drop_checkpoints(self) -> None:
        """A finished run needs none."""
        for checkpoint in [*self.path.glob(_CHECKPOINTS), self.partial]:
            shutil.rmtree(checkpoint, ignore_errors=True)

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else."""
        self.drop_checkpoints()
        figures = [self.path / name for name in FIGURES]
        for file in (self.settings, self.metrics, self.result, self.best, self.predictions, self.report, *figures):
            file.unlink(missing_ok=True)


@dataclass
class Progress:
    """How far a run has come: what a checkpoint needs beside weights, memory, sampler and random states."""

    epoch: int = 0
    batch: int = 0  # within the epoch
    update: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums over the epoch's batches
    difficulty: dict[str, list[float]] = field(default_factory=dict)  # histograms of the epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Checkpoints:
    """Saves and restores a run.

    Args:
        folder: of the run.
        progress: how far it has come.
        parts: what else it continues from, by name; all processes hold it alike, and each part has a state dict.
    """

    def __init__(self, folder: RunFolder, progress: Progress, parts: dict[str, Any], accelerator: Accelerator) -> None:
        self.folder, self.progress, self.accelerator = folder, progress, accelerator
        self.parts = {**parts, "progress": progress}

    def save(self, write_best: Callable[[Path], None] | None) -> None:
        """Writes a checkpoint that also holds the best weights so far, so that it needs no other file.

        Args:
            write_best: writes the best weights to a file; None: those of the checkpoint before are still the best.
        """
        progress, accelerator, folder = self.progress, self.accelerator, self.folder
        before = folder.checkpoint()
        if accelerator.is_main_process:
            shutil.rmtree(folder.partial, ignore_errors=True)
            folder.partial.mkdir()
        accelerator.wait_for_everyone()
        write_state(folder.partial / self._own, {"random": self._random_state()})
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shared = {name: part.state_dict() for name, part in self.parts.items()}
            write_state(folder.partial / "shared.pt", {"processes": accelerator.num_processes, **shared})
            best = folder.partial / folder.best.name
            if write_best is not None:
                write_best(best)
            elif before is not None and (before / best.name).exists():
                _link(before / best.name, best)
            folder.commit(progress.epoch, progress.batch, progress.history)
        accelerator.wait_for_everyone()

    def restore(self, newest: Path) -> None:
        """Brings all parts, the random states and the folder to the state of a checkpoint.

        Raises:
            InputError: it cannot be read, or another number of processes wrote it.
        """
        import torch

        accelerator = self.accelerator
        shared = read_state(newest / "shared.pt")
        if shared["processes"] != accelerator.num_processes:
            raise InputError(
                f"{newest} is the checkpoint of a run with {shared['processes']} processes; received "
                f"{accelerator.num_processes}. Continue with as many, or begin anew with --overwrite"
            )
        random = read_state(newest / self._own)["random"]
        for name, part in self.parts.items():
            part.load_state_dict(shared[name])
        torch.set_rng_state(random["cpu"])
        if accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], accelerator.device)
        if accelerator.is_main_process:
            self.folder.publish(newest, self.progress.history)
        accelerator.wait_for_everyone()

    @property
    def _own(self) -> str:
        return f"process-{self.accelerator.process_index}.pt"

    def _random_state(self) -> dict[str, Any]:
        """The generators that dropout reads. Everything else that is random depends on seed and epoch alone."""
        import torch

        state = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return state


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Saves nested dicts and lists of tensors, numbers and strings."""
    import torch

    torch.save({"format": _FORMAT, **state}, path)
    _flush(path)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` saved, on the CPU.

    Raises:
        InputError: the file is absent, broken off or something else.
    """
    import torch

    remedy = f"remove the folder {path.parent} and --resume goes on from the checkpoint before it"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there, so its checkpoint is not whole; {remedy}") from error
    except (EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read, it is broken off or no checkpoint; {remedy}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise InputError(f"{path} is no checkpoint of these examples, format {_FORMAT!r}; {remedy}")
    return state


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in its place."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    write(partial)
    _flush(partial)
    partial.replace(path)
    _flush(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, whole or absent."""
    text = json.dumps(content, indent=2) + "\n"
    atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # flushes no folder, and no file that is open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links. Neither is ever rewritten."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
