"""An epoch of the ERC example against a loop that works as the SPCL authors' published one does.

The loop is written anew after their code (github.com/caskcsg/SPCL) and does what costs time there: every input is
padded to 256 tokens, everything is computed in float32, each epoch begins with a pass over all training data in the
batches of training, and the loss keeps Python lists of embeddings, one append, shuffle and `.item()` a sample, and
compares all pairs by expansion. What else slows theirs is not followed: centres and difficulties are vectorised,
attention is PyTorch's fused one, models are not pickled and the test set is never scored.

Encoder, utterances, batch size, epochs, optimiser and schedule are the same for all, and so is what is timed: from the
raw corpus to the dev score after the last epoch. The example runs twice: with the same prompts as the loop (8 turns of
context, 256 tokens) and embedding tables that learn as there, and as it does by default, with one input for several
turns of a dialogue and tables that stay.

    python benchmarks/erc_epoch.py
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import machine, median_ratio, save, table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from erc.data import Corpus, load_corpus
from erc.evaluate import score
from erc.inputs import AFTER_ALL, Batch, Prompts, Sample, collate
from erc.model import CLIP_NORM, EmotionModel, load_encoder, rate_factor
from erc.settings import PRESETS, Settings
from erc.train import train
from spcl_loss import DifficultyCurriculumSampler, prototype_difficulty

AS_THE_AUTHORS = {
    name: PRESETS["paper"][name] for name in ("inputs", "context_turns", "max_length", "freeze_embeddings")
}


class PerSampleLoss:
    """SPCL with a Python list of embeddings for each class."""

    def __init__(self, centers: Tensor, settings: Settings) -> None:
        self.centers, self.settings = centers, settings
        self.pools = [[center] for center in centers]

    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        prototypes = torch.stack([self._prototype(label) for label in range(len(self.pools))])
        for embedding, label in zip(embeddings, labels, strict=True):
            pool = self.pools[label.item()]
            pool.append(embedding.detach())
            random.shuffle(pool)
            del pool[: -self.settings.queue_size]
        rows = torch.cat([embeddings, prototypes])
        classes = torch.cat([labels, torch.arange(len(prototypes))])
        size = len(rows), *rows.shape  # every pair as a row of its own
        cosine = F.cosine_similarity(rows.expand(size), rows[:, None].expand(size), dim=-1)
        scores = ((1 + cosine) / 2 / self.settings.temperature)[: len(embeddings)]
        scores = (scores - scores.max().item()).exp()
        other = 1 - torch.eye(len(rows))[: len(embeddings)]
        positive = (labels[:, None] == classes).float() * other
        share = (scores * positive).sum(1) / (scores * other).sum(1) / positive.sum(1)
        return -share.log().mean()

    def _prototype(self, label: int) -> Tensor:
        pool, size = self.pools[label], self.settings.support_size
        if len(pool) < size:
            return self.centers[label]
        return torch.stack(pool)[torch.randperm(len(pool))[:size]].mean(0)


class PlainLoop:
    """Training as the authors' loop does it."""

    def __init__(self, settings: Settings, corpus: Corpus) -> None:
        self.settings, self.corpus = settings, corpus
        torch.manual_seed(settings.seed)
        self.tokenizer, backbone = load_encoder(replace(settings, as_authors=True))  # dropout in attention too
        backbone.set_attn_implementation("sdpa")
        self.model = EmotionModel(backbone, len(corpus.labels), replace(settings, contrastive_weight=None))
        self.optimizer = torch.optim.AdamW(self.model.parameter_groups(settings))
        sizes = {"context_turns": settings.context_turns, "max_length": settings.max_length}
        self.samples, self.dev = (
            Prompts(split, self.tokenizer, **sizes).samples for split in (corpus.train, corpus.dev)
        )

    def run(self) -> list[float]:
        """Dev weighted-F1 after each epoch."""
        scores, sampler = [], None
        for epoch in range(self.settings.epochs + 1):
            embeddings, labels = self._encode(self.samples)
            centers = torch.stack([embeddings[labels == c].mean(0) for c in range(len(self.corpus.labels))])
            centers = centers.nan_to_num()  # of classes that a part of the data lacks
            if epoch:
                scores.append(self._score(centers))
                print(f"epoch {epoch}: {scores[-1]:.4f} on dev", file=sys.stderr)
            if epoch < self.settings.epochs:
                difficulty = prototype_difficulty(embeddings, labels)
                sampler = sampler or DifficultyCurriculumSampler(difficulty, num_epochs=self.settings.epochs)
                sampler.set_epoch(epoch, difficulty)
                self._train([self.samples[i] for i in sampler], PerSampleLoss(centers, self.settings), epoch)
        return scores

    def _batches(self, samples: list[Sample]) -> Any:
        size = self.settings.batch_size
        return (self._padded(samples[i : i + size]) for i in range(0, len(samples), size))

    def _padded(self, samples: list[Sample]) -> Batch:
        """A batch as wide as the longest input may be."""
        pad, width = self.tokenizer.pad_token_id, self.settings.max_length
        ids = torch.tensor([[*s.input.ids, *[pad] * (width - len(s.input.ids))] for s in samples])
        places = torch.tensor([s.start for s in samples]) + width * torch.arange(len(samples))
        return collate(samples)._replace(input_ids=ids, turns=torch.where(ids == pad, AFTER_ALL, 0), tokens=places)

    @torch.no_grad()
    def _encode(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        self.model.eval()
        parts = [(self.model(batch)[0], batch.labels) for batch in self._batches(samples)]
        return torch.cat([features for features, _ in parts]), torch.cat([labels for _, labels in parts])

    def _train(self, samples: list[Sample], criterion: PerSampleLoss, epoch: int) -> None:
        self.model.train()
        batches = -(-len(samples) // self.settings.batch_size)
        for number, batch in enumerate(self._batches(samples)):
            factor = rate_factor(self.settings, epoch, number, batches, epoch * batches + number)
            for group in self.optimizer.param_groups:
                group["lr"] = group["full_rate"] * factor
            features, scores = self.model(batch)
            loss = F.cross_entropy(scores, batch.labels) + criterion(features, batch.labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()  # for the progress bar

    def _score(self, centers: Tensor) -> float:
        features, labels = self._encode(self.dev)
        guess = F.cosine_similarity(features[:, None], centers, dim=-1).argmax(1)
        return float(score(labels.numpy(), guess.numpy(), self.corpus.labels)["weighted_f1"])


def run_plain(settings: Settings, corpus: Corpus, _: Path) -> tuple[float, list[float]]:
    """Seconds, and the dev scores after each epoch."""
    start = time.perf_counter()
    scores = PlainLoop(settings, corpus).run()
    return time.perf_counter() - start, scores


def run_ours(settings: Settings, corpus: Corpus, folder: Path) -> tuple[float, list[float]]:
    """The same, of the example, which writes checkpoints meanwhile; what follows the last epoch does not count."""
    train(settings, corpus, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return lines[-1]["seconds"], [line["dev"]["prototype"]["weighted_f1"] for line in lines]


def results(times: dict[str, list[float]], scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each contestant that has finished: its median epoch and, against the first of all, its median ratio."""
    yardstick = next(iter(times.values()))
    return [
        {
            "loop": name,
            "seconds an epoch": statistics.median(values),
            "ratio": median_ratio(values, yardstick[: len(values)]),
            "dev weighted-F1 by epoch": " ".join(f"{score:.4f}" for score in scores[name]),
        }
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="MELD")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--encoder", default=Settings().encoder)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="smaller ones let a part of the data teach more")
    parser.add_argument("--limit", type=int, help="only the first so many dialogues of each split")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is timed, in turn")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    corpus = load_corpus(options.dataset, options.data_dir).first(options.limit)
    common = {name: getattr(options, name) for name in ("encoder", "epochs", "batch_size")}
    ours = Settings(dataset=corpus.name, **common)
    same_prompts = replace(ours, **AS_THE_AUTHORS)
    plain = replace(same_prompts, precision="fp32")
    contestants = {
        "as the authors": (run_plain, plain),
        "ours, the same prompts": (run_ours, same_prompts),
        "ours, by default": (run_ours, ours),
    }
    about = {"dataset": corpus.name, **common, "limit": options.limit}
    times: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, (run, settings) in contestants.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds, scores[name] = run(settings, corpus, Path(folder) / "run")
            times.setdefault(name, []).append(seconds / options.epochs)
            rows = [{**row, **about} for row in results(times, scores)]
            save(options.output / "erc_epoch.csv", rows)  # of what is done: a whole dataset takes hours
    print(f"{about}\n{machine()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
