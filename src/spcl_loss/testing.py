"""Checks any loss on several processes against one process. `import spcl_loss` does not load it: import it by name."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from spcl_loss._checks import check_number, check_size

Loss = Callable[[Tensor, Tensor], Tensor]
Train = Callable[[list[list[int]], int], dict[str, Any]]


def assert_matches_single_process(
    loss_factory: Callable[[], Loss],
    *,
    num_classes: int,
    embedding_dim: int,
    batch_sizes: Sequence[Sequence[int]] = ((4, 4), (7, 2), (3, 0, 5)),
    tolerance: float = 1e-6,
    timeout: float = 300.0,
) -> None:
    """Asserts that ranks which share a batch train as one process with the whole batch does.

    It starts the processes of a gloo group on this machine. Each rank puts its part of a random batch through the same
    small encoder, and the gradients are averaged as DDP does. It then compares with one process, in float64: the loss
    on every rank, and the gradient of every parameter of encoder and loss. The buffers of the loss must be the same on
    all ranks.

    Args:
        loss_factory: makes the loss, once on every rank; called without arguments after the process group has started.
            The loss takes embeddings (n, D) and labels (n,) and gives a scalar. Processes are spawned, so the factory
            must be picklable: a class, a function of a module, or a `functools.partial` of these. In a script, call
            this below ``if __name__ == "__main__":``.
        num_classes: C; labels are drawn from 0 .. C - 1.
        embedding_dim: D.
        batch_sizes: one entry per step: the number of rows of each rank. The length of an entry is the number of ranks.
        tolerance: largest difference allowed, relative to the largest entry of the tensor that is compared.
        timeout: seconds for each number of ranks, after which the processes are killed.

    Raises:
        AssertionError: the ranks differ from one process. The message says where, by which factor, and what that
            suggests.
        TypeError: an argument has the wrong kind, or `loss_factory` cannot be pickled.
        ValueError: a size or a number does not fit.

    Examples:
        It starts processes, so this one is not run; the one in ``docs/howto/distributed.md`` is::

            from functools import partial
            from spcl_loss import SupervisedPrototypicalContrastiveLoss
            from spcl_loss.testing import assert_matches_single_process

            if __name__ == "__main__":
                factory = partial(SupervisedPrototypicalContrastiveLoss, 3, 16, gather_distributed=True)
                assert_matches_single_process(factory, num_classes=3, embedding_dim=16)
    """
    check_size("num_classes", num_classes)
    check_size("embedding_dim", embedding_dim)
    check_number("tolerance", tolerance, minimum=0, example="1e-5")
    check_number("timeout", timeout, minimum=0, example="60")
    if not batch_sizes or not all(isinstance(counts, Sequence) and counts for counts in batch_sizes):
        raise ValueError(
            f"batch_sizes must hold the rows of each rank for at least one step; received {batch_sizes!r}. "
            "Pass for example [(4, 4)]"
        )
    try:
        pickle.dumps(loss_factory)
    except Exception as error:
        raise TypeError(
            f"loss_factory must be picklable, because processes are spawned; received {loss_factory!r}: {error}. "
            "Use a class, a function of a module, or functools.partial instead of a lambda or an inner function"
        ) from error
    train = partial(_train, loss_factory, num_classes, embedding_dim)
    for world_size in sorted({len(counts) for counts in batch_sizes}):
        steps = [list(counts) for counts in batch_sizes if len(counts) == world_size]
        with tempfile.TemporaryDirectory() as folder:
            _run_ranks(folder, train, steps, timeout)
            expected, *ranks = (
                torch.load(Path(folder) / name, weights_only=True)
                for name in ("single.pt", *(f"{rank}.pt" for rank in range(world_size)))
            )
        problems = list(_problems(expected, ranks, tolerance))
        if problems:
            raise AssertionError(f"{world_size} ranks do not match a single process:\n  " + "\n  ".join(problems))


def _run_ranks(folder: str, train: Train, steps: list[list[int]], timeout: float) -> None:
    """Saves what `train` gives in one process and on each rank; `steps` hold the number of rows of each rank."""
    world_size = len(steps[0])
    context = start_processes(  # type: ignore[no-untyped-call]
        _rank, (folder, train, steps, timeout), nprocs=world_size, join=False, daemon=True, start_method="spawn"
    )
    deadline = time.monotonic() + timeout
    try:
        while not context.join(timeout=max(0.1, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{world_size} ranks have not come to an end after {timeout:g} seconds. One may be waiting in a "
                    "collective call that another never makes. If they are only slow, raise timeout"
                )
    except (ProcessRaisedException, ProcessExitedException) as error:
        raise AssertionError(f"one of {world_size} ranks failed:\n{error}") from error
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def _rank(rank: int, folder: str, train: Train, steps: list[list[int]], timeout: float) -> None:
    torch.set_num_threads(1)
    # A script that sets a default device sets it in its spawned processes too. Not `with torch.device("cpu")`: gloo of
    # torch 2.6 waits for itself for ever if the group ends while its thread frees such a mode, or a reduced tensor.
    torch.set_default_device(None)

    def run(name: str, rank: int, steps: list[list[int]]) -> None:
        world_size = len(steps[0])
        store = dist.FileStore(f"{folder}/store of {world_size}", world_size)  # type: ignore[attr-defined]
        limit = timedelta(seconds=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
        torch.save(train(steps, rank), f"{folder}/{name}.pt")
        dist.destroy_process_group()

    if rank == 0:
        run("single", 0, [[sum(counts)] for counts in steps])
    run(str(rank), rank, steps)
    sys.stdout.flush()
    sys.stderr.flush()
    # An interpreter that comes to its end while a thread of gloo frees a tensor aborts the process.
    os._exit(0)


def _train(
    loss_factory: Callable[[], Loss], num_classes: int, embedding_dim: int, steps: list[list[int]], rank: int
) -> dict[str, Any]:
    """The loss of each step, the averaged gradients summed over the steps, and the loss's buffers at the end."""
    torch.manual_seed(0)
    encoder, loss = nn.Linear(8, embedding_dim).double(), loss_factory()
    trained = {f"encoder.{name}": parameter for name, parameter in encoder.named_parameters()}
    buffers: dict[str, Tensor] = {}
    if isinstance(loss, nn.Module):
        loss.double()
        trained |= {f"loss.{name}": parameter for name, parameter in loss.named_parameters()}
        buffers = dict(loss.named_buffers())
    generator = torch.Generator().manual_seed(0)
    losses = []
    for counts in steps:
        labels = torch.randint(num_classes, (sum(counts),), generator=generator)
        inputs = torch.randn(sum(counts), 8, generator=generator, dtype=torch.float64)
        own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        value = loss(encoder(inputs[own]), labels[own])
        if not isinstance(value, Tensor) or value.dim():
            received = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the loss must give a scalar tensor; received {received}. Take its mean or its sum")
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.detach().double())
    gradients = {}
    for name, parameter in trained.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(gradient)
        gradients[name] = gradient.div_(dist.get_world_size())  # in place: the caller holds what gloo has reduced
    return {"losses": torch.stack(losses), "gradients": gradients, "buffers": buffers}


def _problems(expected: dict[str, Any], ranks: list[dict[str, Any]], tolerance: float) -> Iterator[str]:
    def differ(a: Tensor, b: Tensor) -> bool:
        return not bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-12))

    losses = torch.stack([rank["losses"] for rank in ranks])
    for step in range(losses.shape[1]):
        shown = ", ".join(f"{value:.6g}" for value in losses[:, step])
        if differ(losses[:, step], losses[:1, step]):
            yield (
                f"step {step}: the loss differs between ranks ({shown}). Each rank seems to see only its own rows: "
                "pass gather_distributed=True, or gather the rows in the loss"
            )
        elif differ(losses[:, step], expected["losses"][step]):
            yield f"step {step}: the loss is {shown} on the ranks and {expected['losses'][step]:.6g} in one process"
    for name, gradient in expected["gradients"].items():
        if differ(ranks[0]["gradients"][name], gradient):
            yield f"gradients of {name} are {_difference(ranks[0]['gradients'][name], gradient, len(ranks))}"
    for name, buffer in ranks[0]["buffers"].items():
        if not all(torch.equal(rank["buffers"][name], buffer) for rank in ranks):
            yield f"buffer {name} of the loss differs between ranks: each rank must update it with the rows of all"


def _difference(gradient: Tensor, expected: Tensor, world_size: int) -> str:
    """Describes it in words, as a factor if the two are proportional."""
    factor = float((gradient * expected).sum() / expected.square().sum())
    error = float((gradient - factor * expected).norm() / expected.norm())
    if not error < 1e-3:
        share = float((gradient - expected).norm() / expected.norm())
        return f"not the single-process ones: they differ by {share:.2g} of their norm"
    named = {world_size: ": the world size", 1 / world_size: ": one over the world size"}
    suggestion = next((text for value, text in named.items() if abs(factor / value - 1) < 1e-3), "")
    return f"{factor:.4g}x the single-process ones{suggestion}"
