"""One training step of loss and memory at a small batch, against a bare dense loss without memory.

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
from torch._inductor.utils import run_and_get_code
from torch.profiler import ProfilerActivity, profile

from spcl_loss import SupervisedPrototypicalContrastiveLoss
from spcl_loss import supervised_prototypical_contrastive_loss as spcl


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
    embeddings, labels = torch.randn(N, D, requires_grad=True), torch.randint(C, (N,))
    prototypes, exists = criterion.memory.prototypes()
    memory = criterion.memory

    def gradient(loss: torch.Tensor) -> Any:
        return torch.autograd.grad(loss, embeddings)

    compiled = torch.compile(criterion, dynamic=True)
    calls = compiled_calls(lambda: compiled(embeddings, labels).backward())
    bare = "bare dense loss"
    runs = {
        bare: lambda: gradient(dense_loss(embeddings, labels)),
        "loss + memory": lambda: gradient(criterion(embeddings, labels)),
        "loss + memory, compiled": lambda: gradient(compiled(embeddings, labels)),
        "of which the loss": lambda: gradient(spcl(embeddings, labels, prototypes, prototype_mask=exists)),
        "of which the draw": lambda: memory.prototypes(),
        "of which the update": lambda: memory.update(embeddings, labels),
    }
    times = interleaved(runs, options.seconds, least=200)
    rows = [
        {
            "what": name,
            "microseconds": round(1e6 * statistics.median(values)),
            "ratio to bare": median_ratio(values, times[bare]),
        }
        for name, values in times.items()
    ]
    save(options.output / "memory_step.csv", rows)
    print(f"N={N}, C={C}, D={D}, {machine()}\n{table(rows)}\n\n{calls} calls a compiled step\n")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(100):
            runs["loss + memory"]()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=45))


def compiled_calls(step: Callable[[], Any]) -> int:
    """How many fused kernels, products and other operators the code calls that inductor writes for a step."""
    _, codes = run_and_get_code(step)
    called = re.compile(r"cpp_fused\w*\(|extern_kernels\.\w+\(|torch\.ops\.\S+?\(")
    return sum(len(called.findall(code.split("def call(")[-1])) for code in codes)


if __name__ == "__main__":
    main()
