"""Correctness on a GPU: the five methods through the public function, against float64.

Two kinds of input. "exact" rows hold plus and minus one in 4^k places and zero elsewhere. Their unit rows and all inner
products are exact in every precision, so the loss has to agree to the last digits of float32, and the gradient errs by
the rounding of its weights alone. "random" rows also show with how many digits the products are computed.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spcl_loss import METHODS
from spcl_loss import supervised_prototypical_contrastive_loss as loss

CLASSES = 7
# One per path of the kernels: few rows, tiles, ragged widths, sorted rows, a workspace in several bands.
SHAPES = ((33, 64), (200, 1024), (300, 100), (1500, 768), (5000, 300), (9000, 768), (20000, 64), (20500, 256))
LEARNED_PROTOTYPES, NO_PROTOTYPES = ("bcl", "eacl"), ("supcon",)
STEEP = 0.005  # a temperature at which exponentials overflow in float32


class Precision(NamedTuple):
    """How products are computed; `digits` is the largest relative error of an operand that is rounded."""

    dtype: torch.dtype
    matmul: str
    digits: float


PRECISIONS = {
    "float32": Precision(torch.float32, "highest", 2**-24),
    "tf32": Precision(torch.float32, "high", 2**-10),  # tensor cores cut operands, they do not round them
    "float16": Precision(torch.float16, "highest", 2**-11),
    "bfloat16": Precision(torch.bfloat16, "highest", 2**-8),
}


class Case(NamedTuple):
    """A comparison: the input, what is computed from it, and what float64 gives."""

    kind: str
    embeddings: Tensor
    labels: Tensor
    prototypes: Tensor | None
    method: str
    options: dict[str, Any]
    upstream: Tensor
    expected: list[Tensor]


def check_jobs(
    N: int, D: int, impl: str, device: torch.device
) -> Iterator[tuple[dict[str, Any], Callable[[], Iterator[dict[str, Any]]]]]:
    """For each kind of input, method and precision: what it is, and a function that gives a verdict for each result."""
    torch.manual_seed(N + D)
    for kind in ("exact", "random")[: 1 if N > 2000 else 2]:  # how products are rounded does not depend on N
        embeddings, labels, prototypes = inputs(N, D, kind, device)
        cases = [
            (name, 0.05 if options["similarity"] == "shifted_cosine" else 0.1) for name, options in METHODS.items()
        ]
        # Random rows at so low a temperature show how much a rounded input matters, not whether kernels are right.
        cases += [("spcl", STEEP), ("supcon", STEEP)] if kind == "exact" else []
        for method, temperature in cases:
            # An anchor whose loss lies at the easy threshold would count or not by its last digit.
            options = {**METHODS[method], "temperature": temperature, "easy_threshold": None}
            learned = None if method in NO_PROTOTYPES else prototypes
            anchors = N + CLASSES * (method == "eacl")
            upstream = torch.randn(anchors, device=device, dtype=torch.float64)
            wide = None if learned is None else learned.double()
            expected = differentiate(embeddings.double(), labels, wide, method, options, upstream, "strips")
            case = Case(kind, embeddings, labels, learned, method, options, upstream, expected)
            for name, precision in PRECISIONS.items():
                about = {"N": N, "D": D, "rows": kind, "method": method, "temperature": temperature, "products": name}
                yield about, partial(check, case, precision, impl)


def check(case: Case, precision: Precision, impl: str) -> Iterator[dict[str, Any]]:
    """A verdict for each result of one case in one precision."""
    kind, embeddings, labels, prototypes, method, options, upstream, expected = case
    # Scale, then unscale, as one trains in float16: a float16 tensor's gradient would underflow.
    scale = 256 / float(expected[1].abs().max())
    torch.set_float32_matmul_precision(precision.matmul)
    try:
        with poisoned():
            rounded = embeddings.to(precision.dtype)
            found = differentiate(rounded, labels, prototypes, method, options, scale * upstream, impl)
    finally:
        torch.set_float32_matmul_precision("highest")
    found[1:] = [gradient.double() / scale for gradient in found[1:]]
    yield from verdicts(found, expected, tolerances(embeddings.shape[1], kind, options, precision))


def inputs(N: int, D: int, kind: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and prototypes of classes that overlap, and labels of which one in twenty is ignored."""
    classes = torch.randint(CLASSES, (N,), device=device)
    labels = torch.where(torch.rand(N, device=device) < 0.05, -100, classes)
    centres = torch.randn(CLASSES, D, device=device)
    own = torch.arange(CLASSES, device=device)
    if kind == "random":
        return centres[classes] + 2 * torch.randn(N, D, device=device), labels, centres
    return _signs(centres, classes), labels, _signs(centres, own)


def _signs(centres: Tensor, classes: Tensor) -> Tensor:
    """Rows of plus and minus one in 4^k random places, three in four as the class's centre has them."""
    N, D = len(classes), centres.shape[1]
    held = max(4**k for k in range(16) if 2 * 4**k <= D)
    places = torch.rand(N, D, device=centres.device).argsort(1)[:, :held]
    kept = torch.where(torch.rand(N, held, device=centres.device) < 0.75, 1.0, -1.0)
    signs = centres.sign()[classes].gather(1, places) * kept
    return torch.zeros(N, D, device=centres.device).scatter_(1, places, signs)


def differentiate(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    method: str,
    options: dict[str, Any],
    upstream: Tensor,
    impl: str,
) -> list[Tensor]:
    """Every anchor's loss, and the gradients of their sum weighted by `upstream`."""
    leaves = [embeddings.detach().requires_grad_()]
    if prototypes is not None:
        prototypes = prototypes.detach().requires_grad_(method in LEARNED_PROTOTYPES)
        leaves += [prototypes] * prototypes.requires_grad
    losses = loss(leaves[0], labels, prototypes, reduction="none", impl=impl, **options)
    return [losses.detach(), *torch.autograd.grad(losses, leaves, upstream.to(losses.dtype))]


def tolerances(D: int, kind: str, options: dict[str, Any], precision: Precision) -> dict[str, float]:
    """What a result may err by: the loss in any anchor, a gradient as a whole and in its worst row.

    Where products are rounded, these are 1.7 to four times what was found in float64 with operands and weights rounded
    like that, for N from 33 to 2000 and D from 64 to 1024.
    """
    scale = (0.5 if options["similarity"] == "shifted_cosine" else 1.0) / options["temperature"]
    steep = options["temperature"] == STEEP
    digits = precision.digits
    cut = kind == "random" and precision.matmul == "high"  # all errors have one sign, and do not average out
    loss_error = 1e-5 + scale * 2**-20  # a few last digits of sums and logarithms
    if kind == "random":  # float32 sums of D terms, and rounded operands
        loss_error += scale * math.sqrt(D) * 2**-23 + scale * digits * (8 / math.sqrt(D) + cut)
    last_digits = 1e-4 if steep else 2e-5
    return {
        "loss": loss_error,
        "gradient": (4 if cut else 2) * digits + last_digits,
        "prototypes' gradient": (8 if cut else 2) * digits + last_digits,  # each is a sum over all rows
        "worst row": 4 * digits + (5e-4 if steep else 1e-4),
    }


def verdicts(found: list[Tensor], expected: list[Tensor], allowed: dict[str, float]) -> Iterator[dict[str, Any]]:
    """What is compared, its error, its tolerance, and whether it is right. A NaN is above every tolerance."""

    def verdict(what: str, error: Tensor, tolerance: float) -> dict[str, Any]:
        return {"what": what, "error": float(error), "tolerance": tolerance, "right": bool(error <= tolerance)}

    yield verdict("loss", (found[0].double() - expected[0]).abs().max(), allowed["loss"])
    for what, gradient, exact in zip(("gradient", "prototypes' gradient"), found[1:], expected[1:], strict=False):
        difference = gradient.double() - exact
        yield verdict(what, difference.norm() / exact.norm(), allowed[what])
        # One wrong tile of many would drown in the sum over all rows. A row errs in proportion to its own
        # gradient, or to the typical one where its own cancels.
        own = exact.norm(dim=1)
        worst = (difference.norm(dim=1) / (own + own.square().mean().sqrt())).max()
        yield verdict(f"{what}, worst row", worst, allowed["worst row"])


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New tensors hold NaN until they are written: an element that a kernel forgets cannot pass for a zero."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)  # this fills them
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def check_poison(device: torch.device) -> dict[str, Any]:
    """Whether memory that nobody wrote is seen at all."""
    with poisoned():
        # All are allocated before the first is read: reading allocates too.
        unwritten = [torch.empty(size, device=device) for size in (7, 1000, 1 << 20)]
        seen = all(bool(tensor.isnan().all()) for tensor in unwritten)
    return {"error": 0.0 if seen else math.inf, "tolerance": 0.0, "right": seen}
