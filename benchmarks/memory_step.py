"""One training step of loss and memory at a small batch, against a bare dense loss without memory.

Eager steps are compared with the eager dense loss, compiled ones with the compiled dense loss.

python benchmarks/memory_step.py
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import dense_loss, interleaved, machine, median_ratio, save, table
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from spcl_loss import SupervisedPrototypicalContrastiveLoss
from spcl_loss import supervised_prototypical_contrastive_loss as spcl

BARE, STEP = "bare dense loss", "loss + memory"
COMPILED = ", compiled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    N, C, D = options.rows, options.classes, options.width

    torch.manual_seed(0)
    criterion = SupervisedPrototypicalContrastiveLoss(C, D)
    for _ in range(100):  # queues full, as they are but for the first steps
        criterion.memory.update(torch.randn(N, D), torch.randint(C, (N,)))
    runs = contestants(criterion, torch.randn(N, D, requires_grad=True), torch.randint(C, (N,)))
    calls = compiled_calls(runs[STEP + COMPILED])
    rows = results(interleaved(runs, options.seconds, least=200))
    save(options.output / "memory_step.csv", rows)
    print(f"N={N}, C={C}, D={D}, {machine()}\n{table(rows)}\n\n{calls} calls a compiled step")


def contestants(
    criterion: SupervisedPrototypicalContrastiveLoss, embeddings: Tensor, labels: Tensor
) -> dict[str, Callable[[], Any]]:
    memory = criterion.memory
    prototypes, exists = memory.prototypes()
    compiled_loss, compiled_step = (torch.compile(run, dynamic=True) for run in (dense_loss, criterion))

    def gradient(loss: Tensor) -> Any:
        return torch.autograd.grad(loss, embeddings)

    return {
        BARE: lambda: gradient(dense_loss(embeddings, labels)),
        STEP: lambda: gradient(criterion(embeddings, labels)),
        BARE + COMPILED: lambda: gradient(compiled_loss(embeddings, labels)),
        STEP + COMPILED: lambda: gradient(compiled_step(embeddings, labels)),
        "of which the loss": lambda: gradient(spcl(embeddings, labels, prototypes, prototype_mask=exists)),
        "of which the draw": lambda: memory.prototypes(),
        "of which the update": lambda: memory.update(embeddings, labels),
    }


def results(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each contestant, with the ratio to the bare dense loss of its kind, eager or compiled."""
    return [
        {
            "what": name,
            "microseconds": round(1e6 * statistics.median(values)),
            "ratio to bare": median_ratio(values, times[BARE + COMPILED if name.endswith(COMPILED) else BARE]),
        }
        for name, values in times.items()
    ]


def compiled_calls(step: Callable[[], Any]) -> int:
    """How many fused kernels, products and other operators the code calls that inductor writes for a step."""
    _, codes = run_and_get_code(step)
    called = re.compile(r"cpp_fused\w*\(|extern_kernels\.\w+\(|torch\.ops\.\S+?\(")
    return sum(len(called.findall(code.split("def call(")[-1])) for code in codes)


if __name__ == "__main__":
    main()
