"""One file of a checkpoint: tensors and plain values, on the disk before anything relies on it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from .dialogues import InputError
from .run_folder import flush

_FORMAT = "spcl-erc 1"


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
