"""Gives each turn of new dialogues a label, with the model of a finished run.

The file is a list of dialogues, a dialogue is a list of turns: [[{"speaker": "Ann", "text": "Really?"}]]. The script
prints the same with a label in each turn. It classifies with the head that chose the run's best epoch, or with --head.
Every head but the linear one is fitted to training turns first, so it needs the data that the run was trained on.

examples:
  python examples/erc_predict.py runs/meld dialogues.json
  python examples/erc_predict.py runs/meld dialogues.json --head linear     needs no training data
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erc.data import Dialogue, load_corpus
from erc.evaluate import Array, Encoded, encode, heads, reference_samples
from erc.files import InputError
from erc.folder import RunFolder
from erc.inputs import Sample, lay_out
from erc.model import EmotionModel, load_encoder, precision
from erc.own import read_dialogues
from erc.settings import HEADS, Settings


class Classifier:
    """The encoder of a run with one of its heads."""

    def __init__(self, run: Path, head: str | None = None, data_dir: Path | None = None) -> None:
        self.settings, self.labels, weights = read_weights(RunFolder(run).best)
        self.tokenizer, backbone = load_encoder(self.settings)
        model = EmotionModel(
            backbone,
            len(self.labels),
            head_trains_encoder=self.settings.head_trains_encoder,
            learns_prototypes="prototypes" in weights,
        )
        model.load_state_dict(weights)
        self.linear = (model.head.weight.detach().double().numpy(), model.head.bias.detach().double().numpy())
        self.accelerator = Accelerator(mixed_precision=precision(self.settings))
        self.model = self.accelerator.prepare(model)
        self.head, self.data_dir = head or self.settings.selects_by, data_dir

    def label(self, dialogues: Sequence[Dialogue]) -> list[list[str]]:
        """The label of every turn."""
        # The inputs are made of turns with a label; here each gets one that nothing reads.
        asked = [replace(one, turns=tuple(replace(turn, label=0) for turn in one.turns)) for one in dialogues]
        train, counts = self.training_turns()
        head = heads(*self.linear, counts, self.settings.temperature)[self.head]
        scores = head(train.features, train.labels, self.encode(self.samples(asked), "dialogues").features)
        found = iter(scores.argmax(1).tolist())
        return [[self.labels[next(found)] for _ in dialogue.turns] for dialogue in dialogues]

    def training_turns(self) -> tuple[Encoded, Array]:
        """What the head is fitted to, and the sizes of the classes: as in the run."""
        settings, classes = self.settings, len(self.labels)
        if self.head == "linear":
            return Encoded(np.empty((0, self.linear[0].shape[1])), np.empty(0)), np.ones(classes)
        corpus = load_corpus(settings.dataset, self.data_dir)
        if corpus.labels != self.labels:
            raise InputError(f"the run has the classes {self.labels}, the data at hand {corpus.labels}")
        samples = self.samples(corpus.first(settings.limit).part(settings.train_fraction, settings.seed).train)
        labels = [sample.label for sample in samples]
        chosen = [samples[i] for i in reference_samples(labels, settings.reference_turns, settings.seed)]
        return self.encode(chosen, "training turns"), np.bincount(labels, minlength=classes)

    def samples(self, dialogues: Sequence[Dialogue]) -> list[Sample]:
        return lay_out(dialogues, self.tokenizer, self.settings).own_queries()

    def encode(self, samples: Sequence[Sample], what: str) -> Encoded:
        padding, size = int(self.tokenizer.pad_token_id or 0), 4 * self.settings.batch_size
        return encode(self.model, samples, self.accelerator, padding=padding, batch_size=size, what=what)


def read_weights(path: Path) -> tuple[Settings, tuple[str, ...], dict[str, Tensor]]:
    """What best.safetensors holds: the run's settings, its classes and the weights."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Settings(**json.loads(about["settings"])), tuple(json.loads(about["labels"])), weights
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not the weights of a finished run: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("dialogues", type=Path, help="a JSON file")
    parser.add_argument("--head", choices=HEADS, help="default: the one that chose the run's best epoch")
    parser.add_argument("--data-dir", type=Path, help="the folder of the data that the run was trained on")
    arguments = parser.parse_args(argv)
    try:
        classifier = Classifier(arguments.run, arguments.head, arguments.data_dir)
        dialogues = read_dialogues(arguments.dialogues, classifier.labels)
        labels = classifier.label(dialogues)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    spoken = [
        [
            {"speaker": turn.speaker, "text": turn.text, "label": label}
            for turn, label in zip(dialogue.turns, row, strict=True)
        ]
        for dialogue, row in zip(dialogues, labels, strict=True)
    ]
    print(json.dumps(spoken, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
