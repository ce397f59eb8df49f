"""Looks at a curriculum: how hard the samples of each class are, what each epoch keeps, the easiest and the hardest.

The difficulties are those under the weights that a run has chosen:
  python examples/erc_meld.py --output runs/demo
  python examples/curriculum_figure.py runs/demo
writes curriculum.png and curriculum.md into the run's folder. The table quotes the dataset, unless --no-text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor

from erc.data import load_corpus
from erc.dialogues import Corpus, InputError
from erc.encoder import EmotionModel, load_model, load_tokenizer_and_backbone
from erc.evaluation import encode
from erc.figures import COLORS, MARKERS
from erc.layouts import lay_out
from erc.objectives import build_criterion
from erc.run_folder import RunFolder
from erc.settings import Settings
from spcl_loss import DifficultyCurriculumSampler, prototype_difficulty


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run of an ERC example")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the folder with the dataset's files")
    parser.add_argument("--rows", type=int, default=8, help="utterances at either end of the table")
    parser.add_argument("--no-text", action="store_true", help="name the utterances in the table, do not quote them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: the run's folder)")
    options = parser.parse_args()
    try:
        settings = RunFolder(options.run).stored_settings()
        if settings is None or not RunFolder(options.run).best.exists():
            raise InputError(f"{options.run} holds no finished run: train one with --output {options.run}")
        corpus = load_corpus(settings.dataset, options.data_dir).first(settings.limit)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    difficulty, labels = difficulties(settings, corpus, RunFolder(options.run).best)
    output = options.output or options.run
    output.mkdir(parents=True, exist_ok=True)
    figure(difficulty, labels, corpus, settings).savefig(output / "curriculum.png", dpi=150)
    text = table(difficulty, corpus, options.rows, quote=not options.no_text)
    (output / "curriculum.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def difficulties(settings: Settings, corpus: Corpus, weights: Path) -> tuple[Tensor, Tensor]:
    """(n,) difficulty and class of every labelled training utterance, in the corpus's order."""
    tokenizer, backbone = load_tokenizer_and_backbone(settings)
    classes, learned = len(corpus.labels), settings.learns_prototypes
    model = EmotionModel(backbone, classes, head_trains_encoder=False, learns_prototypes=learned)
    criterion = build_criterion(settings, classes, model.width, gather_distributed=False)
    load_model(weights, model, criterion.memory)
    accelerator = Accelerator()
    layout = lay_out(settings, corpus.train, tokenizer)
    encoded = encode(
        model.to(accelerator.device),
        layout.own_queries(),
        accelerator,
        padding=layout.padding,
        batch_size=settings.encoding_batch_size,
        what="encoding the training set",
    )
    return prototype_difficulty(encoded.features, encoded.labels).cpu(), encoded.labels.cpu()


def figure(difficulty: Tensor, labels: Tensor, corpus: Corpus, settings: Settings) -> Figure:
    """Histogram of difficulty by class; share of each fifth of the difficulties and of each class kept, by epoch."""
    drawing = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = drawing.subfigures(1, 2, width_ratios=(1, 2))
    edges = np.linspace(float(difficulty.min()), float(difficulty.max()), 41)
    rows = left.subplots(len(corpus.labels), 1, sharex=True)
    for c, (axes, name) in enumerate(zip(rows, corpus.labels, strict=True)):
        own = difficulty[labels == c].numpy()
        axes.hist(own, edges, color=COLORS[c])
        axes.text(1, 0.5, f"{name} ({len(own)})", transform=axes.transAxes, ha="right", fontsize=8)
        axes.set_yticks([])
        axes.spines[["top", "left", "right"]].set_visible(False)
    rows[-1].set_xlabel("difficulty")
    left.suptitle("difficulty by class", fontsize=10)

    kept = kept_by_epoch(difficulty, settings)
    epochs = range(1, settings.epochs + 1)
    fifths, classes = right.subplots(1, 2, sharey=True)
    fifth = difficulty.argsort().argsort() * 5 // len(difficulty)
    for part, name in enumerate(("easiest fifth", "second", "third", "fourth", "hardest fifth")):
        fifths.plot(epochs, kept[:, fifth == part].mean(1), ".-", color=str(0.8 - 0.2 * part), label=name)
    for c, name in enumerate(corpus.labels):
        classes.plot(epochs, kept[:, labels == c].mean(1), color=COLORS[c], marker=MARKERS[c], label=name)
    for axes, title in ((fifths, "by difficulty"), (classes, "by class")):
        axes.set(xlabel="epoch", xticks=epochs, ylim=(0, 1), title=title)
        axes.legend(fontsize=7, frameon=False)
    fifths.set_ylabel("share kept")
    drawing.suptitle(f"{corpus.name}, {len(difficulty)} training utterances", fontsize=11)
    return drawing


def kept_by_epoch(difficulty: Tensor, settings: Settings) -> Tensor:
    """(epochs, n), one where an epoch of the curriculum keeps the sample."""
    sampler = DifficultyCurriculumSampler(
        difficulty, num_epochs=settings.epochs, draw=settings.draw, seed=settings.seed
    )
    kept = torch.zeros(settings.epochs, len(difficulty))
    for epoch in range(settings.epochs):
        sampler.set_epoch(epoch)
        kept[epoch, sampler.indices] = 1
    return kept


def table(difficulty: Tensor, corpus: Corpus, rows: int, *, quote: bool) -> str:
    """Markdown: the easiest and the hardest utterances."""
    places = [(dialogue, turn) for dialogue in corpus.train for turn in dialogue.turns if turn.label is not None]
    order = difficulty.argsort().tolist()
    lines = ["| difficulty | label | dialogue, utterance |" + " said |" * quote, "|---|---|---|" + "---|" * quote]
    for index in order[:rows] + order[-rows:]:
        dialogue, turn = places[index]
        line = f"| {difficulty[index]:.3f} | {corpus.labels[turn.label]} | {dialogue.id}, {turn.id} |"
        said = f"{turn.speaker}: {turn.text}".replace("|", "\\|")
        lines.append(f"{line} {said} |" if quote else line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
