"""A run's checkpoints: what all processes hold alike, and what each has of its own."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .files import InputError
from .folder import RunFolder, flush

_FORMAT = "spcl-erc 2"


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

    def save(self) -> None:
        """Writes a checkpoint. A process that is killed meanwhile leaves the one before."""
        accelerator, folder = self.accelerator, self.folder
        if accelerator.is_main_process:
            shutil.rmtree(folder.partial, ignore_errors=True)
            folder.partial.mkdir()
        accelerator.wait_for_everyone()
        write_state(folder.partial / self._own, {"random": self._random_state()})
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shared = {name: part.state_dict() for name, part in self.parts.items()}
            write_state(folder.partial / "shared.pt", {"processes": accelerator.num_processes, **shared})
            folder.commit(self.progress.epoch, self.progress.batch, self.progress.history)
        accelerator.wait_for_everyone()

    def restore(self, newest: Path) -> None:
        """Brings all parts, the random states and metrics.jsonl to the state of a checkpoint.

        Raises:
            InputError: it cannot be read, or another number of processes wrote it.
        """
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
            self.folder.write_metrics(self.progress.history)
        accelerator.wait_for_everyone()

    @property
    def _own(self) -> str:
        return f"process-{self.accelerator.process_index}.pt"

    def _random_state(self) -> dict[str, Any]:
        """The generators that dropout reads. Everything else that is random depends on seed and epoch alone."""
        state = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return state


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Saves nested dicts and lists of tensors, numbers and strings."""
    torch.save({"format": _FORMAT, **state}, path)
    flush(path)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` saved, on the CPU.

    Raises:
        InputError: the file is absent, broken off or something else.
    """
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
