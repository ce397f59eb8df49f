"""Times on a GPU: the loss, the whole step with its memory, dense PyTorch, and public kernels of related losses."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import dense_loss, extra_peak_bytes, interleaved
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from spcl_loss import SupervisedPrototypicalContrastiveLoss
from spcl_loss import supervised_prototypical_contrastive_loss as spcl

SIZES = (65536, 16384, 4096, 1024, 256, 32)
WIDTHS = (768, 256, 1024)
CLASSES = 7
PEERS = {"memeff": "memeff, CLIP", "inf_cl": "inf-cl, one-way softmax", "siglip_kernel": "siglip-kernel, sigmoid"}
# Copies of the N x N matrix that each holds at its peak, roughly: what cannot fit is not tried.
MATRICES = {"dense, eager": 6, "dense, compiled": 4}

Row = dict[str, Any]
Loss = tuple[Callable[[], Tensor], list[Tensor]]  # a loss, and what it is differentiated by


def time_rows(dtype: torch.dtype, impl: str, device: torch.device, plan: Row, deadline: float) -> Iterator[Row]:
    """A row for every contestant at every size; the largest batches of the commonest width come first."""
    about = {"dtype": str(dtype).removeprefix("torch.")}
    yield {**about, "what": "product of 8192 x 8192 matrices", "TFLOP/s": product_rate(dtype, device, plan)}
    yield from ({"what": what, "skipped": "not installed"} for name, what in PEERS.items() if not installed(name))
    for D in plan["widths"]:
        torch._dynamo.reset()  # after some recompilations it would stop compiling, and say so nowhere
        compile_options = {"dynamic": True, "backend": "inductor" if device.type == "cuda" else "aot_eager"}
        compiled_dense = torch.compile(dense_loss, **compile_options)
        criterion = SupervisedPrototypicalContrastiveLoss(CLASSES, D, impl=impl).to(device)
        compiled_criterion = torch.compile(criterion, **compile_options)
        for N in plan["sizes"]:
            shape = {"N": N, "D": D, **about}
            if time.time() > deadline:
                yield {**shape, "what": "all", "skipped": "no time left"}
                continue
            embeddings, labels = batch(N, D, dtype, device)
            contestants: dict[str, Callable[[], Loss]] = {
                f"ours, {impl}": lambda: (lambda: spcl(embeddings, labels, impl=impl), [embeddings]),
                "ours, strips": lambda: (lambda: spcl(embeddings, labels, impl="strips"), [embeddings]),
                "dense, eager": lambda: (lambda: dense_loss(embeddings, labels), [embeddings]),
                "dense, compiled": lambda: (lambda: compiled_dense(embeddings, labels), [embeddings]),
            }
            towers = {PEERS[name]: lambda name=name: peer(name, N, D, dtype, device) for name in filter(installed, PEERS)}
            for what, make in {**contestants, **towers}.items():
                if N * N * embeddings.element_size() * MATRICES.get(what, 0) > free_bytes(device):
                    yield {**shape, "what": what, "skipped": "needs more memory than there is"}
                    continue
                yield {**shape, "what": what, **attempt(lambda make=make: passes(*make(), shape, device, plan))}
            fill(criterion, N, D, device)
            steps = {"eager": criterion, "compiled": compiled_criterion, "CUDA graph": None}
            for how, step in steps.items():
                if how == "CUDA graph" and device.type != "cuda":
                    continue
                row = attempt(lambda step=step: whole_step(step, criterion, embeddings, labels, device, plan))
                yield {**shape, "what": f"ours with memory, {how}", **row}


def attempt(measure: Callable[[], Row]) -> Row:
    """What was measured, or why it was not: a fault loses one row only."""
    try:
        return measure()
    except Exception as error:
        return {"skipped": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def product_rate(dtype: torch.dtype, device: torch.device, plan: Row) -> float:
    """What this GPU's own matrix product reaches, in 10^12 operations a second."""
    size = plan["product"]
    left = torch.randn(size, size, device=device).to(dtype)
    times = interleaved({"product": lambda: left @ left}, plan["seconds"], plan["least"], device)["product"]
    return 2 * size**3 / statistics.median(times) / 1e12


def batch(N: int, D: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(N + D)
    return torch.randn(N, D, device=device).to(dtype).requires_grad_(), torch.randint(CLASSES, (N,), device=device)


def passes(loss: Callable[[], Tensor], leaves: list[Tensor], shape: Row, device: torch.device, plan: Row) -> Row:
    """Milliseconds of forward, backward and both, and how far memory rises."""

    def both() -> Any:
        return torch.autograd.grad(loss(), leaves)

    peak = extra_peak_bytes(both, device)
    runs = {"forward": loss, "backward": (loss, lambda value: torch.autograd.grad(value, leaves)), "both": both}
    times = interleaved(runs, plan["seconds"], plan["least"], device)
    found = {f"{name} ms": 1e3 * statistics.median(values) for name, values in times.items()}
    operations = 6 * shape["N"] ** 2 * shape["D"]  # of the dense computation, whatever the contestant saves
    return {**found, "TFLOP/s": operations / found["both ms"] / 1e9, "extra peak MiB": peak and round(peak / 2**20)}


def fill(criterion: SupervisedPrototypicalContrastiveLoss, N: int, D: int, device: torch.device) -> None:
    """Queues are full in all but a run's first steps."""
    rows = 4 * CLASSES * 256
    criterion.memory.update(torch.randn(rows, D, device=device), torch.randint(CLASSES, (rows,), device=device))


def whole_step(
    step: Callable[[Tensor, Tensor], Tensor] | None,
    criterion: torch.nn.Module,
    embeddings: Tensor,
    labels: Tensor,
    device: torch.device,
    plan: Row,
) -> Row:
    """Draw, loss, gradient and the memory's update together: time, and the kernels and copies that they start."""

    def both() -> tuple[Tensor, Tensor]:
        value = (criterion if step is None else step)(embeddings, labels)
        return value.detach(), torch.autograd.grad(value, embeddings)[0]

    run = both if step is not None else graph(both, criterion)
    times = interleaved({"step": run}, plan["seconds"], plan["least"], device)["step"]
    return {"both ms": 1e3 * statistics.median(times), "launches": launches(run, device)}


def graph(eager: Callable[[], tuple[Tensor, Tensor]], criterion: torch.nn.Module) -> Callable[[], None]:
    """The step, captured. Raises where a replay does not give what the eager step gives from the same state."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        captured = eager()
    state = {name: tensor.clone() for name, tensor in criterion.state_dict().items()}
    expected = [tensor.clone() for tensor in eager()]
    criterion.load_state_dict(state)
    recorded.replay()
    for found, wanted in zip(captured, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-6)
    return recorded.replay


def launches(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Kernels, copies and fills that one run starts; on a CPU, calls of PyTorch operators."""
    activity, kind = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if device.type == "cuda" else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    with profile(activities=[activity]) as profiled:
        for _ in range(repeats):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return sum(event.device_type == kind for event in profiled.events()) / repeats


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else 2**30


def peer(name: str, N: int, D: int, dtype: torch.dtype, device: torch.device) -> Loss:
    """A public kernel over two towers of N rows, on its own loss: more products than ours, no labels."""
    left, right = (
        torch.nn.functional.normalize(torch.randn(N, D, device=device), dim=1).to(dtype).requires_grad_()
        for _ in range(2)
    )
    module = importlib.import_module(name)
    if name == "memeff":
        criterion = module.MemoryEfficientCLIPLoss(temperature=0.1, normalized_inputs=True)
        return lambda: criterion(left, right), [left, right]
    if name == "inf_cl":
        return lambda: module.cal_flash_loss(left, right, scale=10.0).mean(), [left, right]
    log_temperature, bias = torch.tensor(2.3, device=device), torch.tensor(-10.0, device=device)
    return lambda: module.fused_siglip_loss(left, right, log_temperature, bias), [left, right]
