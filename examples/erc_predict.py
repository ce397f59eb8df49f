"""Gives each turn of new dialogues a label, with the model of a finished run.

The file is a list of dialogues, a dialogue is a list of turns: [[{"speaker": "Ann", "text": "Really?"}]]. The script
prints the same with a label in each turn. It classifies with the head that chose the run's best epoch, or with --head.

examples:
  python examples/erc_predict.py runs/meld dialogues.json
  python examples/erc_predict.py runs/meld dialogues.json --head linear
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from erc.command import Parser, exit_code
from erc.data import Dialogue, as_in_training, read_dialogues
from erc.evaluate import Encoded, Heads, encode
from erc.files import InputError
from erc.folder import RunFolder
from erc.inputs import lay_out
from erc.model import EmotionModel, load_encoder, new_accelerator
from erc.settings import ANEW, HEADS


class Classifier:
    """The encoder of a run with one of its heads."""

    def __init__(self, run: Path, head: str | None = None) -> None:
        folder = RunFolder(run)
        settings, result = folder.stored_settings(), folder.stored_result()
        if settings is None or result is None:
            raise InputError(
                f"{run} is not the folder of a finished run: train it to its end with --resume, or name another folder"
            )
        self.folder, self.settings, self.head = folder, settings, head or settings.selects_by
        self.labels = list(result["test"][self.head]["per_class_f1"])
        self.tokenizer, backbone = load_encoder(settings)
        self.accelerator = new_accelerator(settings)
        self.model = self.accelerator.prepare(EmotionModel(backbone, len(self.labels), settings))
        self.model.load_state_dict(stored(folder.best))

    def label(self, dialogues: Sequence[Dialogue]) -> list[list[str]]:
        """The label of every turn."""
        cleaned = as_in_training(dialogues, self.settings.dataset, "dialogues")
        # The inputs are made of turns with a label; here each gets one that nothing reads.
        asked = [replace(one, turns=tuple(replace(turn, label=0) for turn in one.turns)) for one in cleaned]
        samples = lay_out(asked, self.tokenizer, self.settings).samples
        encoded = encode(self.model, samples, self.accelerator, self.settings.batch_size, "dialogues")
        reference = {name: tensor.numpy() for name, tensor in stored(self.folder.reference).items()}
        heads = Heads(self.model.head, reference["class_counts"], self.settings.temperature)
        train = Encoded(reference["features"], reference["labels"])
        found = iter(heads.scores(self.head, train, encoded.features).argmax(1).tolist())
        return [[self.labels[next(found)] for _ in dialogue.turns] for dialogue in dialogues]


def stored(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no file of a finished run of this version ({error}); {ANEW}") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("dialogues", type=Path, help="a JSON file")
    parser.add_argument("--head", choices=HEADS, help="default: the one that chose the run's best epoch")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _run(arguments), "nothing was labelled")


def _run(arguments: argparse.Namespace) -> None:
    classifier = Classifier(arguments.run, arguments.head)
    dialogues = read_dialogues(arguments.dialogues, classifier.labels)
    labelled = []
    for dialogue, labels in zip(dialogues, classifier.label(dialogues), strict=True):
        turns = zip(dialogue.turns, labels, strict=True)
        labelled.append([{"speaker": turn.speaker, "text": turn.text, "label": label} for turn, label in turns])
    print(json.dumps(labelled, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    raise SystemExit(main())
