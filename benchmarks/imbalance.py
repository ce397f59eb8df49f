"""The table of docs/howto/imbalance.md: examples/long_tail.py with more seeds and further arms.

Batches of 32 also have the sampler and variants of SPCL.

python benchmarks/imbalance.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import save

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import long_tail
from long_tail import ARMS, BATCHES, Arm

VARIANTS = {
    "SPCL, class weights": Arm(contrastive=1, class_weights=True),
    "SPCL, support 1": Arm(contrastive=1, support_size=1),
    "SPCL, queue 16, support 16": Arm(contrastive=1, queue_size=16, support_size=16),
    "SPCL, queue 1024": Arm(contrastive=1, queue_size=1024),
}
PUBLISHED = list(ARMS)
ARMS.update(VARIANTS)  # here, and so in each process that is started


def cell(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return " ".join(f"{number:.4f}" for number in value)
    return float(value) if isinstance(value, np.floating) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    others = [size for size in BATCHES if size != 32]
    without_sampler = [name for name in PUBLISHED if not ARMS[name].sampler]
    runs = long_tail.all_runs(options.seeds, [32], [*PUBLISHED, *VARIANTS], options.steps)
    runs += long_tail.all_runs(options.seeds, others, without_sampler, options.steps)
    recalls = long_tail.score_all(runs, options.output / "long_tail.jsonl", options.workers)
    table = long_tail.present(recalls, options.steps, options.output / "long_tail.png")
    save(options.output / "long_tail.csv", [{key: cell(value) for key, value in row.items()} for row in table])


if __name__ == "__main__":
    main()
