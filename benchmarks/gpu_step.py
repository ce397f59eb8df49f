"""One training step of loss and memory at a small batch on a GPU: eager, compiled, and as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from device import launches, medians
from torch import Tensor

from spcl_loss import SupervisedPrototypicalContrastiveLoss


def step_rows(
    N: int, C: int, D: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> Iterator[dict[str, Any]]:
    """Time and launches of forward, backward and the memory's update together; a fault loses one row only."""
    torch.manual_seed(0)
    criterion = SupervisedPrototypicalContrastiveLoss(C, D, impl="triton").to(device)
    for _ in range(100):  # queues full, as they are but for the first steps
        criterion.memory.update(torch.randn(N, D, device=device), torch.randint(C, (N,), device=device))
    embeddings = torch.randn(N, D, device=device).to(dtype).requires_grad_()
    labels = torch.randint(C, (N,), device=device)
    compiled = torch.compile(criterion, dynamic=False, backend="inductor" if device.type == "cuda" else "aot_eager")

    def step(loss: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        value = loss(embeddings, labels)
        return value.detach(), torch.autograd.grad(value, embeddings)[0]

    def eager() -> tuple[Tensor, Tensor]:
        return step(criterion)

    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        "eager": lambda: eager,
        "torch.compile": lambda: lambda: step(compiled),
        "CUDA graph": lambda: _graph(eager, criterion),
    }
    for what, make in makers.items():
        row: dict[str, Any] = {"what": what, "N": N, "C": C, "D": D, "dtype": str(dtype).removeprefix("torch.")}
        if what == "CUDA graph" and device.type != "cuda":
            yield {**row, "skipped": "needs a GPU"}
            continue
        try:
            run = make()
            time = medians(device, {what: run}, seconds, least=20)[what]
            yield {**row, "microseconds": 1e6 * time, "launches": launches(device, run)}
        except Exception as error:
            yield {**row, "skipped": f"{type(error).__name__}: {str(error)[:300]}"}


def _graph(eager: Callable[[], tuple[Tensor, Tensor]], criterion: torch.nn.Module) -> Callable[[], None]:
    """The step, captured; raises where a replay does not give what the eager step gives from the same state."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = eager()
    state = {name: tensor.clone() for name, tensor in criterion.state_dict().items()}
    expected = [tensor.clone() for tensor in eager()]
    criterion.load_state_dict(state)
    graph.replay()
    for found, wanted in zip(captured, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    return graph.replay
