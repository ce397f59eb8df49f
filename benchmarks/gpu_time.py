"""Timings on a GPU: its matrix products, the loss, what one would use instead, and public kernels of other losses."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.config as functorch
from device import extra_peak_bytes, free, medians
from plain import dense_loss
from torch import Tensor

from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity import launch

Run = Callable[[], Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
PEERS = {"memeff": "memeff", "inf_cl": "inf-cl", "siglip_kernel": "siglip-kernel"}
# Copies of the N x N matrix in float32 that each holds at its peak, roughly: what cannot fit is not tried.
_MATRICES = {"dense": 6, "dense, compiled": 4}


def set_products(dtype: str) -> None:
    """What float32 products are made of; "float32" obeys PyTorch's default, which is no tensor core."""
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")


def ceiling(
    dtype: str, device: torch.device, seconds: float, sizes: tuple[tuple[int, int, int], ...]
) -> dict[str, Any]:
    """The fastest of a few matrix products (n x k times k x m): what this GPU does, not what its data sheet says."""
    set_products(dtype)
    best: dict[str, Any] = {"dtype": dtype, "operations a second": 0.0}
    for n, k, m in sizes:
        left, right = (torch.randn(*shape, device=device).to(DTYPES[dtype]) for shape in ((n, k), (k, m)))
        time = medians(device, {"product": lambda left=left, right=right: left @ right}, seconds)["product"]
        if 2 * n * k * m / time > best["operations a second"]:
            best |= {"operations a second": 2 * n * k * m / time, "n, k, m": f"{n}, {k}, {m}"}
    return best


def executed_products(N: int, D: int, dtype: str) -> float:
    """N x N x D products (2 N^2 D operations each) that our kernels execute, by the path that the launcher takes."""
    if N <= launch.SMALL_ROWS:  # the backward pass makes the scores again for every slice of 64 columns
        return 1 + -(-D // 64) + 1
    if dtype == "bfloat16" and D <= launch.NARROW and launch.NARROW_ROWS <= N:
        return 0.5 + 2
    return 0.5 + 0.5 + 1


def batch(N: int, D: int, dtype: str, device: torch.device, classes: int = 7) -> tuple[Tensor, Tensor]:
    torch.manual_seed(N + D)
    embeddings = torch.randn(N, D, device=device).to(DTYPES[dtype]).requires_grad_()
    return embeddings, torch.randint(classes, (N,), device=device)


def passes(device: torch.device, loss: Run, leaves: list[Tensor], seconds: float, least: int) -> dict[str, Any]:
    """Milliseconds of forward, backward and both, and how far memory rises."""

    def both() -> Any:
        return torch.autograd.grad(loss(), leaves)

    peak = extra_peak_bytes(device, both)
    value = loss()
    runs = {
        "forward": loss,
        "backward": lambda: torch.autograd.grad(value, leaves, retain_graph=True),
        "both": both,
    }
    times = medians(device, runs, seconds, least)
    return {**{f"{name} ms": 1e3 * time for name, time in times.items()}, "peak MiB": peak and peak / 2**20}


def ours(N: int, D: int, dtype: str, device: torch.device, seconds: float, least: int) -> dict[str, Any]:
    set_products(dtype)
    embeddings, labels = batch(N, D, dtype, device)
    measured = passes(device, lambda: spcl(embeddings, labels, impl="triton"), [embeddings], seconds, least)
    return {"what": "ours", "N": N, "D": D, "dtype": dtype, "products": executed_products(N, D, dtype), **measured}


def variants(N: int, D: int, dtype: str, device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """What the launcher chose against what it did not: was it right?"""
    alternatives = {"ours, not sorted by class": {"SORTED_ROWS": N + 1}}
    if D <= 256:
        alternatives["ours, gradient in registers"] = {"NARROW": 256}
    for what, settings in alternatives.items():
        with patch.multiple(launch, **settings):
            yield {**ours(N, D, dtype, device, seconds, 3), "what": what}


def once(N: int, D: int, dtype: str, device: torch.device) -> dict[str, Any]:
    """Forward and backward a single time, for sizes that take seconds. A small run compiles the kernels before."""
    warm, labels = batch(launch.SORTED_ROWS, D, dtype, device)
    torch.autograd.grad(spcl(warm, labels, impl="triton"), warm)
    embeddings, labels = batch(N, D, dtype, device)
    times = {}

    def both() -> None:
        def run() -> None:
            torch.autograd.grad(spcl(embeddings, labels, impl="triton"), embeddings)

        if device.type == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            times["both"] = start.elapsed_time(stop)
        else:
            times["both"] = 1e3 * medians(device, {"both": run}, 0, 1)["both"]

    peak = extra_peak_bytes(device, both)
    described = {"what": "ours, once", "N": N, "D": D, "dtype": dtype, "products": executed_products(N, D, dtype)}
    return {**described, "both ms": times["both"], "peak MiB": peak and peak / 2**20}


def yardsticks(N: int, D: int, dtype: str, device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """The dense loss in plain PyTorch, eager and compiled, where it fits."""
    set_products(dtype)
    torch._dynamo.reset()  # after some shapes it would stop compiling, and say so nowhere
    functorch.donated_buffer = False  # compiled, a backward pass could not be repeated otherwise
    embeddings, labels = batch(N, D, dtype, device)
    compiled = torch.compile(dense_loss, dynamic=False, backend="inductor" if device.type == "cuda" else "aot_eager")
    losses: dict[str, Run] = {
        "dense": lambda: dense_loss(embeddings, labels),
        "dense, compiled": lambda: compiled(embeddings, labels),
    }
    room = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 2**30
    for what, loss in losses.items():
        row = {"what": what, "N": N, "D": D, "dtype": dtype, "products": 3.0}
        size = 2 if dtype == "bfloat16" else 4
        if _MATRICES[what] * size * N * N > room:
            yield {**row, "skipped": f"would hold {_MATRICES[what] * size * N * N / 2**30:.0f} GiB"}
            continue
        yield {**row, **passes(device, loss, [embeddings], seconds, least=3)}
        free(device)


def absent_peers() -> Iterator[dict[str, Any]]:
    for module in PEERS:
        if importlib.util.find_spec(module) is None:
            yield {"skipped row": PEERS[module], "why": "not installed"}


def peers(N: int, D: int, dtype: str, device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """Public kernels of related losses over two towers of N rows, each on its own loss.

    `products`: how many N x N x D ones their loss takes without a matrix N x N: scores and the gradients of two towers,
    and the scores again where the gradient needs a softmax's denominator first.
    """
    set_products(dtype)
    torch.manual_seed(0)
    left, right = (
        torch.nn.functional.normalize(torch.randn(N, D, device=device), dim=1).to(DTYPES[dtype]).requires_grad_()
        for _ in range(2)
    )
    log_temperature = torch.tensor(2.3, device=device)
    bias = torch.tensor(-10.0, device=device)

    def memeff(module: Any) -> Run:
        criterion = module.MemoryEfficientCLIPLoss(temperature=0.1, normalized_inputs=True)
        return lambda: criterion(left, right)

    def inf_cl(module: Any) -> Run:
        return lambda: module.cal_flash_loss(left, right, scale=10.0).mean()

    def siglip(module: Any) -> Run:
        return lambda: module.fused_siglip_loss(left, right, log_temperature, bias)

    contestants = (
        ("memeff", "memeff, CLIP", 4.0, memeff),
        ("inf_cl", "inf-cl, one-way softmax, computes in float32", 4.0, inf_cl),
        ("siglip_kernel", "siglip-kernel, sigmoid", 3.0, siglip),
    )
    for module, what, products, make in contestants:
        row = {"what": what, "N": N, "D": D, "dtype": dtype, "products": products}
        if importlib.util.find_spec(module) is None:
            continue
        try:
            loss = make(importlib.import_module(module))
            yield {**row, **passes(device, loss, [left, right], seconds, least=3)}
        except Exception as error:  # a peer's fault must not lose the others
            yield {**row, "skipped": f"{type(error).__name__}: {str(error)[:200]}"}
        free(device)
