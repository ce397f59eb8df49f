"""The curriculum sampler and the difficulty of large data sets: time, processor time and memory.

python benchmarks/sampler.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import extra_peak_bytes, interleaved, save, table

from spcl_loss import DifficultyCurriculumSampler, prototype_difficulty, prototype_difficulty_blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000, help="of the sampler")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the embeddings")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = sampler_rows(options.samples, options.rounds) + difficulty_rows(options.rows, options.width, options.rounds)
    save(options.output / "sampler.csv", rows)
    print(table(rows))


def sampler_rows(samples: int, rounds: int) -> list[dict[str, Any]]:
    scores = torch.rand(samples)
    fixed, coins = (DifficultyCurriculumSampler(scores, num_epochs=1000, draw=draw) for draw in ("fixed", "bernoulli"))
    epochs = iter(range(1, 1000))
    runs = {
        "torch.randperm, the yardstick": lambda: torch.randperm(samples),
        "sort and coin flips in plain PyTorch": lambda: plain_epoch(scores, next(epochs) / 1000),
        "construction": lambda: DifficultyCurriculumSampler(scores, num_epochs=10),
        "set_epoch": lambda: fixed.set_epoch(next(epochs)),
        "set_epoch, new scores": lambda: fixed.set_epoch(next(epochs), scores),
        'set_epoch, draw="bernoulli"': lambda: coins.set_epoch(next(epochs)),
        "state_dict": fixed.state_dict,
        "iteration over an epoch": lambda: sum(1 for _ in fixed),
    }
    return measured(runs, rounds, f"{samples:,}", scores.nbytes)


def plain_epoch(scores: torch.Tensor, progress: float) -> torch.Tensor:
    """The paper's draw of an epoch in a few lines, without the fixed length, ranks, or random ties."""
    order = scores.argsort()
    keep = torch.linspace(1 - progress, progress, len(scores))
    kept = order[torch.rand(len(scores)) < keep]
    return kept[torch.randperm(len(kept))]


def difficulty_rows(rows: int, width: int, rounds: int) -> list[dict[str, Any]]:
    embeddings, labels = torch.randn(rows, width), torch.randint(100, (rows,))
    centers = torch.randn(100, width)
    parts = torch.arange(rows).split(8192)
    blocks = [(part, embeddings[part[0] : part[-1] + 1], labels[part]) for part in parts]
    runs = {
        "prototype_difficulty, class means included": lambda: prototype_difficulty(embeddings, labels),
        "with given centres": lambda: prototype_difficulty(embeddings, labels, centers),
        "prototype_difficulty_blocks, two passes": lambda: prototype_difficulty_blocks(blocks, rows),
        "one pass with given centres": lambda: prototype_difficulty_blocks(blocks, rows, centers),
    }
    return measured(runs, rounds, f"{rows:,} x {width}", None)


def measured(
    runs: dict[str, Callable[[], Any]], rounds: int, about: str, score_bytes: int | None
) -> list[dict[str, Any]]:
    """A row for each run, of medians. Processor time tells more than time where others use the machine too."""
    processor: dict[str, list[float]] = {what: [] for what in runs}

    def watched(what: str) -> None:
        begin = time.process_time()
        runs[what]()
        processor[what].append(time.process_time() - begin)

    seconds = interleaved({what: partial(watched, what) for what in runs}, seconds=0, least=rounds)
    peaks = {what: extra_peak_bytes(run) for what, run in runs.items()}
    return [
        {
            "what": f"{what}, {about}",
            "seconds": round(statistics.median(seconds[what]), 3),
            "processor seconds": round(statistics.median(processor[what][-rounds:]), 3),
            "extra peak MiB": None if peak is None else round(peak / 2**20),
            "times the scores": round(peak / score_bytes, 1) if peak is not None and score_bytes else None,
        }
        for what, peak in peaks.items()
    ]


if __name__ == "__main__":
    main()
