"""A run's checkpoints. Each is one file with everything that the run needs to continue."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .files import InputError
from .folder import RunFolder, atomically, write_text

FORMAT = "spcl-erc 3"


@dataclass
class Progress:
    """How far a run has come. A checkpoint holds it beside weights, memory, sampler and random states."""

    epoch: int = 0
    batch: int = 0  # within the epoch
    update: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums over the epoch's batches
    difficulty: dict[str, float] = field(default_factory=dict)  # means of the epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1


def save_checkpoint(folder: RunFolder, progress: Progress, parts: dict[str, Any], accelerator: Accelerator) -> None:
    """Writes metrics.jsonl and a checkpoint. If the process is killed meanwhile, the previous checkpoint remains.

    Every part has a state dict, and is the same in all processes.
    """
    # Dropout reads these generators. Everything else that is random depends on seed and epoch alone.
    random = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    everyones = gather_object([random])
    if accelerator.is_main_process:
        write_text(folder.metrics, "".join(json.dumps(line) + "\n" for line in progress.history))
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"format": FORMAT, "progress": asdict(progress), "random": everyones}
        newest = folder.path / f"checkpoint-{progress.epoch:04d}-{progress.batch:07d}.pt"
        atomically(newest, partial(torch.save, state))
        needed = {newest, folder.best_of(progress.best_epoch)}
        for file in {*folder.checkpoints(), *folder.path.glob("best-*")} - needed:  # only now: a kill may come before
            file.unlink()
    accelerator.wait_for_everyone()


def restore_checkpoint(path: Path, progress: Progress, parts: dict[str, Any], accelerator: Accelerator) -> None:
    """Brings progress, parts and random states to where `save_checkpoint` saved them."""
    state = read_checkpoint(path)
    if len(state["random"]) != accelerator.num_processes:
        raise InputError(
            f"{path} is the checkpoint of a run with {len(state['random'])} processes; received "
            f"{accelerator.num_processes}. Continue with as many, or begin anew with --overwrite"
        )
    vars(progress).update(state["progress"])
    for name, part in parts.items():
        part.load_state_dict(state[name])
    random = state["random"][accelerator.process_index]
    torch.set_rng_state(random["cpu"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], accelerator.device)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. An incomplete or unknown file is an InputError."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load would read changed numbers without complaint
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can make the readers raise anything
        state = None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is no whole checkpoint of format {FORMAT!r}; begin anew with --overwrite")
    return state
