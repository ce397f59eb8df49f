"""The curriculum sampler and the difficulty of large data sets: time, processor time and memory.

python benchmarks/sampler.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import extra_peak_bytes, save, table

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
    return [measured(f"{what}, {samples:,}", run, rounds, scores.nbytes) for what, run in runs.items()]


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
    return [measured(f"{what}, {rows:,} x {width}", run, rounds, None) for what, run in runs.items()]


def measured(what: str, run: Callable[[], Any], rounds: int, score_bytes: int | None) -> dict[str, Any]:
    """Medians; processor time tells more than time where others use the machine too."""
    run()
    seconds, processor = [], []
    for _ in range(rounds):
        start, own = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - own)
    peak = extra_peak_bytes(run)
    return {
        "what": what,
        "seconds": round(statistics.median(seconds), 3),
        "processor seconds": round(statistics.median(processor), 3),
        "extra peak MiB": None if peak is None else round(peak / 2**20),
        "times the scores": round(peak / score_bytes, 1) if peak is not None and score_bytes else None,
    }


if __name__ == "__main__":
    main()
