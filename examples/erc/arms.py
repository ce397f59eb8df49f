"""The arms of the comparison: which settings each changes, and what a finished run is called by its settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from .settings import Settings, preset

# Everything but the curriculum's own arm trains without one, so that arms differ in the one thing they are named for.
# The paper preset's easy_threshold is SPCL's; the other methods have their own.
ARMS: dict[str, dict[str, Any]] = {
    "cur": {"objective": "spcl", "curriculum": "on"},
    "all": {"objective": "spcl", "curriculum": "all"},
    "half": {"objective": "spcl", "curriculum": "half"},
    "ce": {"objective": "ce", "curriculum": "all", "easy_threshold": None},
    "supcon": {"objective": "supcon", "curriculum": "all", "easy_threshold": None},
    "spdcl": {"objective": "spdcl", "curriculum": "all", "easy_threshold": None},
    "bcl": {"objective": "bcl", "curriculum": "all", "easy_threshold": None},
    "eacl": {"objective": "eacl", "curriculum": "all", "easy_threshold": None},
}
BATCHES = {
    f"{name}_b{size}": ARMS[arm] | {"batch_size": size}
    for size in (4, 8, 16, 32)
    for name, arm in (("spcl", "all"), ("supcon", "supcon"))
}
MEMORIES = {
    f"spcl_q{queue}_s{support}": ARMS["all"] | {"queue_size": queue, "support_size": support}
    for queue, support in ((64, 64), (256, 4), (256, 16), (256, 64), (256, 256), (1024, 64), (1024, 256))
}
PROMPTS = {
    "inputs": "prompts", "context_turns": 3, "max_length": 96, "past_queries": 0.2,  # what two cores can bear
    "freeze_embeddings": False,  # the mask's embedding has to learn
}  # fmt: skip
SWITCHES: dict[str, dict[str, Any]] = {
    "joint": {"joint": True},
    "layers": {"layer_decay": 0.9},
    "average": {"average": 0.995},
    "balanced": {"contrast": "class_balanced"},
    "anchors": {"prototype_anchors": True},
    "names": {"prototypes": "label_text"},
    "every": {"difficulty_pass": "every"},
    "first": {"difficulty_pass": "first"},
    "long": {"context_turns": 8, "max_length": 384},
    "prompts": PROMPTS,
    "future": PROMPTS | {"future_turns": 2},
}  # each on top of "cur"
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "methods": {name: ARMS[name] for name in ("cur", "all", "ce", "supcon", "spdcl", "bcl", "eacl")},
    "curriculum": {name: ARMS[name] for name in ("cur", "all", "half")},
    "batch": BATCHES,
    "memory": MEMORIES,
    "switches": {"cur": ARMS["cur"], **{name: ARMS["cur"] | change for name, change in SWITCHES.items()}},
}
ALL_ARMS: dict[str, dict[str, Any]] = {name: arm for study in STUDIES.values() for name, arm in study.items()}
METHODS = {
    "spcl": "SPCL", "spdcl": "SPDCL", "supcon": "SupCon", "bcl": "BCL", "eacl": "EACL-style anchors",
    "ce": "cross-entropy",
}  # fmt: skip
CURRICULA = {"on": ", curriculum", "all": "", "half": ", random half"}


def arm_settings(arm: str, preset_name: str, dataset: str, seed: int, given: dict[str, Any]) -> Settings:
    """One run of an arm. A curriculum's epoch holds half the data, so the other arms have half as many epochs.

    `given` changes the preset in all arms, and the arm's own settings change both.
    """
    values: dict[str, Any] = preset(preset_name, dataset) | given | ALL_ARMS[arm]
    settings = Settings(dataset=dataset, seed=seed, **values)
    if settings.curriculum == "all":
        settings = Settings(dataset=dataset, seed=seed, **values | {"epochs": max(1, settings.epochs // 2)})
    return settings


def without_seed(settings: Settings) -> tuple[tuple[str, Any], ...]:
    """What the runs of one arm share."""
    return tuple((entry.name, getattr(settings, entry.name)) for entry in fields(settings) if entry.name != "seed")


def labels(settings: Sequence[Settings]) -> list[str]:
    """A name for each of several arms on one dataset: method, curriculum, and what else is unusual about it."""
    usual = {curriculum: _usual(s for s in settings if s.curriculum == curriculum) for curriculum in CURRICULA}
    return [METHODS[s.objective] + CURRICULA[s.curriculum] + _differences(s, usual[s.curriculum]) for s in settings]


def _usual(settings: Iterable[Settings]) -> dict[str, Any]:
    """The most common value of each setting, the default where several are equally common."""
    counts: dict[str, Counter[Any]] = {name: Counter({value: 0}) for name, value in without_seed(Settings())}
    for one in settings:
        for name, value in without_seed(one):
            counts[name][value] += 1
    return {name: values.most_common(1)[0][0] for name, values in counts.items()}  # the first of equal counts


def _differences(settings: Settings, usual: dict[str, Any]) -> str:
    named = ("objective", "curriculum", "dataset")
    unusual = [
        (name.replace("_", " "), value)
        for name, value in without_seed(settings)
        if name not in named and value != usual[name]
    ]
    return "".join(f", {name}" if value is True else f", {name} {str(value).lower()}" for name, value in unusual)
