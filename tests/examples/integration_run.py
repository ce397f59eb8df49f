"""What one process of test_integrations.py does: an example without, before and after an interruption."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

EXAMPLES = Path(__file__).parents[2] / "examples" / "integrations"


class Interrupted(Exception):
    """Stands for a kill signal, a power failure, the end of a time slot."""


class Watch:
    """Notes the (epoch, sample indices) of every batch that an example trains on; can interrupt the training.

    The examples know nothing of it. It replaces their `make_model` and their sampler by ones that it can look into.
    """

    def __init__(self, example: Any, stop_after: int | None = None) -> None:
        self.batches: list[tuple[int, list[int]]] = []
        self.example, self.stop_after = example, stop_after

    def __enter__(self) -> Watch:
        self.originals = {name: getattr(self.example, name) for name in ("make_model", "DifficultyCurriculumSampler")}
        self.example.make_model = self.watched_model
        self.example.DifficultyCurriculumSampler = self.watched_sampler
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(self.example, name, original)

    def watched_model(self) -> torch.nn.Module:
        model = self.originals["make_model"]()
        model.register_forward_pre_hook(self.note)
        return model

    def watched_sampler(self, *args: Any, **options: Any) -> Any:
        self.sampler = self.originals["DifficultyCurriculumSampler"](*args, **options)
        return self.sampler

    def note(self, model: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if not model.training:
            return
        if len(self.batches) == self.stop_after:
            raise Interrupted
        self.batches.append((self.sampler.epoch, self.indices(args[0])))

    def indices(self, inputs: Any) -> list[int]:
        if isinstance(inputs, dict):  # the tokens of texts: a text's first word is its number
            words = inputs["input_ids"].flatten()
            return words[words < 203].tolist()
        same = (inputs[:, None] == self.example.Points().inputs).all(2)
        assert (same.sum(1) == 1).all()
        return same.int().argmax(1).tolist()


def run(rank: int, world: int, name: str, folder: Path, stop_after: int) -> dict[str, Any]:
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "HF_HUB_OFFLINE": "1"}
    if "accelerate" in sys.modules:  # it remembers the group of the example before
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    example = importlib.import_module(name)
    whole, before, after = Watch(example), Watch(example, stop_after), Watch(example)
    with whole:
        expected = example.train(folder / "whole")
    with before, contextlib.suppress(Interrupted):
        example.train(folder / "interrupted")
    with after:
        actual = example.train(folder / "interrupted")
    states = [[part.state_dict() for part in parts] for parts in (expected, actual)]
    return {"states": states, "whole": whole.batches, "before": before.batches, "after": after.batches}
