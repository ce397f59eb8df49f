"""A run's checkpoints: what all processes hold alike, what each has of its own, and the best weights so far."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .dialogues import InputError
from .progress import Progress
from .run_folder import RunFolder, flush, link

_FORMAT = "spcl-erc 1"


class Checkpoints:
    """Saves and restores a run.

    Args:
        folder: of the run.
        progress: how far it has come.
        parts: what else it continues from, by name, and all processes hold alike; each has a state dict.
    """

    def __init__(self, folder: RunFolder, progress: Progress, parts: dict[str, Any], accelerator: Accelerator) -> None:
        self.folder, self.progress, self.accelerator = folder, progress, accelerator
        self.parts = {**parts, "progress": progress}

    def save(self, write_best: Callable[[Path], None] | None) -> None:
        """Writes a checkpoint, with the best weights so far in it, which makes it whole in itself.

        `write_best` writes them to a file, where they are the present ones; else the checkpoint before has them.
        """
        progress, accelerator, folder = self.progress, self.accelerator, self.folder
        before = folder.checkpoint()
        if accelerator.is_main_process:
            folder.clear_partial()
        accelerator.wait_for_everyone()
        write(folder.partial / _own(accelerator), {"random": random_state(accelerator.device)})
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shared = {name: part.state_dict() for name, part in self.parts.items()}
            write(folder.partial / "shared.pt", {"processes": accelerator.num_processes, **shared})
            best = folder.partial / folder.best.name
            if write_best is not None:
                write_best(best)
            elif before is not None and (before / best.name).exists():
                link(before / best.name, best)
            folder.commit(progress.epoch, progress.batch, progress.history)
        accelerator.wait_for_everyone()

    def restore(self, newest: Path) -> None:
        """Brings all parts, the random states and the folder to the state of a checkpoint.

        Raises:
            InputError: it cannot be read, or another number of processes wrote it.
        """
        accelerator = self.accelerator
        shared = read(newest / "shared.pt")
        if shared["processes"] != accelerator.num_processes:
            raise InputError(
                f"{newest} is the checkpoint of a run with {shared['processes']} processes; received "
                f"{accelerator.num_processes}. Continue with as many, or begin anew with --overwrite"
            )
        own = read(newest / _own(accelerator))
        for name, part in self.parts.items():
            part.load_state_dict(shared[name])
        set_random_state(own["random"], accelerator.device)
        if accelerator.is_main_process:
            self.folder.publish(newest, self.progress.history)
        accelerator.wait_for_everyone()


def _own(accelerator: Accelerator) -> str:
    return f"process-{accelerator.process_index}.pt"


def write(path: Path, state: dict[str, Any]) -> None:
    """Saves nested dicts and lists of tensors, numbers and strings."""
    torch.save({"format": _FORMAT, **state}, path)
    flush(path)


def read(path: Path) -> dict[str, Any]:
    """What `write` saved, on the CPU.

    Raises:
        InputError: the file is absent, broken off or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there, so its checkpoint is not whole; {_remedy(path)}") from error
    except (EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read, it is broken off or no checkpoint; {_remedy(path)}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise InputError(f"{path} is no checkpoint of these examples, format {_FORMAT!r}; {_remedy(path)}")
    return state


def _remedy(path: Path) -> str:
    return f"remove the folder {path.parent} and --resume goes on from the checkpoint before it"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators that dropout reads; everything else that is random depends on seed and epoch alone."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
