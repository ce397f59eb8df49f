"""Times on a GPU: the loss, the whole step with its memory, dense PyTorch, and public kernels of related losses."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import dense_loss, extra_peak_bytes, interleaved
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from spcl_loss import SupervisedPrototypicalContrastiveLoss
from spcl_loss import supervised_prototypical_contrastive_loss as spcl

SIZES = (65536, 32, 4096, 256, 16384, 1024)  # those of the goals first: time may run out
WIDTHS = (768, 256, 1024)
CLASSES = 7
PEERS = {"memeff": "memeff, CLIP", "inf_cl": "inf-cl, one-way softmax", "siglip_kernel": "siglip-kernel, sigmoid"}
# Copies of the N x N matrix that each holds at its peak, roughly: what cannot fit is not tried.
MATRICES = {"dense, eager": 6, "dense, compiled": 4}

Row = dict[str, Any]
Job = tuple[Row, Callable[[], list[Row]]]


def time_jobs(dtype: torch.dtype, impl: str, device: torch.device, plan: Row) -> Iterator[Job]:
    """A job for every contestant at every size. Those that PyTorch compiles, which takes minutes, come last."""
    about = {"dtype": str(dtype).removeprefix("torch.")}
    product = f"product of two {plan['product']}-square matrices"
    yield {**about, "what": product}, partial(product_rate, dtype, device, plan)
    for name, what in PEERS.items():
        if not installed(name):
            yield {**about, "what": what}, lambda: [{"skipped": "not installed"}]
    for D in plan["widths"]:
        compiled = compiler(device)
        losses = {
            f"ours, {impl}": partial(spcl, impl=impl),
            "ours, strips": partial(spcl, impl="strips"),
            "dense, eager": dense_loss,
            "dense, compiled": compiled(dense_loss),
        }
        criterion, steps = whole_steps(D, impl, device, compiled)
        steps |= {f"{how}, CUDA graph": step for how, step in steps.items()}
        jobs: list[Job] = []
        for N in plan["sizes"]:
            shape = {"N": N, "D": D, **about}
            for what, loss in losses.items():
                jobs.append(({**shape, "what": what}, partial(ours_or_dense, what, loss, N, D, dtype, device, plan)))
            for how, step in steps.items():
                run = partial(whole_step, how, step, criterion, N, D, dtype, device, plan)
                jobs.append(({**shape, "what": f"ours with memory, {how}"}, run))
            for name, what in PEERS.items():
                if installed(name):
                    jobs.append(({**shape, "what": what}, partial(peer, name, N, D, dtype, device, plan)))
        yield from sorted(jobs, key=lambda job: "compiled" in job[0]["what"])


def count_jobs(impl: str, device: torch.device, plan: Row) -> Iterator[Job]:
    """How much a whole step launches at every size. A process of its own: having profiled slows all that it does."""
    D = plan["widths"][0]
    _, steps = whole_steps(D, impl, device, compiler(device))
    for N in plan["sizes"]:
        for how, step in steps.items():
            yield {"N": N, "D": D, "what": f"ours with memory, {how}"}, partial(launches, step, N, D, device)


def compiler(device: torch.device) -> Callable[..., Any]:
    torch._dynamo.reset()  # after some recompilations it would stop compiling, and say so nowhere
    return partial(torch.compile, dynamic=True, backend="inductor" if device.type == "cuda" else "aot_eager")


def whole_steps(D: int, impl: str, device: torch.device, compiled: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """The loss with its memory, and the ways to call it. Queues are full in all but a run's first steps."""
    criterion = SupervisedPrototypicalContrastiveLoss(CLASSES, D, impl=impl).to(device)
    rows = 4 * CLASSES * 256
    criterion.memory.update(torch.randn(rows, D, device=device), torch.randint(CLASSES, (rows,), device=device))
    return criterion, {"eager": criterion, "compiled": compiled(criterion)}


def product_rate(dtype: torch.dtype, device: torch.device, plan: Row) -> list[Row]:
    """What this GPU's own matrix product reaches, in 10^12 operations a second."""
    size = plan["product"]
    left = torch.randn(size, size, device=device).to(dtype)
    times = interleaved({"product": lambda: left @ left}, plan["seconds"], plan["least"], device)["product"]
    return [{"TFLOP/s": 2 * size**3 / statistics.median(times) / 1e12}]


def batch(N: int, D: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(N + D)
    return torch.randn(N, D, device=device).to(dtype).requires_grad_(), torch.randint(CLASSES, (N,), device=device)


def ours_or_dense(
    what: str,
    loss: Callable[[Tensor, Tensor], Tensor],
    N: int,
    D: int,
    dtype: torch.dtype,
    device: torch.device,
    plan: Row,
) -> list[Row]:
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 2**30
    if N * N * dtype.itemsize * MATRICES.get(what, 0) > free:
        return [{"skipped": "needs more memory than there is"}]
    embeddings, labels = batch(N, D, dtype, device)
    return passes(lambda: loss(embeddings, labels), [embeddings], device, plan)


def passes(loss: Callable[[], Tensor], leaves: list[Tensor], device: torch.device, plan: Row) -> list[Row]:
    """Milliseconds of forward, backward and both, and how far memory rises."""

    def both() -> Any:
        return torch.autograd.grad(loss(), leaves)

    both()  # compilers and libraries keep part of what they allocate at the first call
    peak = extra_peak_bytes(both, device)
    runs = {"forward": loss, "backward": (loss, lambda value: torch.autograd.grad(value, leaves)), "both": both}
    times = interleaved(runs, plan["seconds"], plan["least"], device)
    found = {f"{name} ms": 1e3 * statistics.median(values) for name, values in times.items()}
    N, D = leaves[0].shape
    operations = 6 * N * N * D  # of the dense computation, whatever the contestant saves
    mebibytes = None if peak is None else round(peak / 2**20)
    return [{**found, "TFLOP/s": operations / found["both ms"] / 1e9, "extra peak MiB": mebibytes}]


def whole_step(
    how: str,
    step: Callable[[Tensor, Tensor], Tensor],
    criterion: torch.nn.Module,
    N: int,
    D: int,
    dtype: torch.dtype,
    device: torch.device,
    plan: Row,
) -> list[Row]:
    """Draw, loss, gradient and the memory's update together."""
    captured = how.endswith("CUDA graph")
    if captured and device.type != "cuda":
        return [{"skipped": "needs a GPU"}]
    embeddings, labels = batch(N, D, dtype, device)

    def both() -> tuple[Tensor, Tensor]:
        value = step(embeddings, labels)
        return value.detach(), torch.autograd.grad(value, embeddings)[0]

    run = graph(both, criterion) if captured else both
    times = interleaved({"step": run}, plan["seconds"], plan["least"], device)["step"]
    return [{"both ms": 1e3 * statistics.median(times)}]


def graph(step: Callable[[], tuple[Tensor, Tensor]], criterion: torch.nn.Module) -> Callable[[], None]:
    """The step, captured. Raises where a replay does not give what the step itself gives from the same state."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        captured = step()
    state = {name: tensor.clone() for name, tensor in criterion.state_dict().items()}
    expected = [tensor.clone() for tensor in (*step(), *criterion.state_dict().values())]
    criterion.load_state_dict(state)
    recorded.replay()
    for found, wanted in zip((*captured, *criterion.state_dict().values()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-6)
    return recorded.replay


def launches(
    step: Callable[[Tensor, Tensor], Tensor], N: int, D: int, device: torch.device, repeats: int = 3
) -> list[Row]:
    """Kernels, copies and fills that a step in bfloat16 starts; on a CPU, calls of PyTorch operators."""
    embeddings, labels = batch(N, D, torch.bfloat16, device)
    activity, kind = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if device.type == "cuda" else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    torch.autograd.grad(step(embeddings, labels), embeddings)  # compiles
    with profile(activities=[activity]) as profiled:
        for _ in range(repeats):
            torch.autograd.grad(step(embeddings, labels), embeddings)
        if device.type == "cuda":
            torch.cuda.synchronize()
    count = sum(event.device_type == kind for event in profiled.events())
    return [{"launches": count / repeats} if count else {"skipped": "the profiler saw no kernel"}]


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def peer(name: str, N: int, D: int, dtype: torch.dtype, device: torch.device, plan: Row) -> list[Row]:
    """A public kernel over two towers of N rows, on its own loss: more products than ours, and no labels."""
    left, right = (
        torch.nn.functional.normalize(torch.randn(N, D, device=device), dim=1).to(dtype).requires_grad_()
        for _ in range(2)
    )
    module = importlib.import_module(name)
    if name == "memeff":
        loss = module.MemoryEfficientCLIPLoss(temperature=0.1, normalized_inputs=True)
    elif name == "inf_cl":
        loss = partial(inf_cl, module)
    else:
        log_temperature, bias = torch.tensor(2.3, device=device), torch.tensor(-10.0, device=device)
        loss = partial(module.fused_siglip_loss, log_temperature=log_temperature, bias=bias)
    return passes(lambda: loss(left, right), [left, right], device, plan)


def inf_cl(module: Any, left: Tensor, right: Tensor) -> Tensor:
    return module.cal_flash_loss(left, right, scale=10.0).mean()
