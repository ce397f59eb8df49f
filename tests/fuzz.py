"""Random calls of the loss: every backend against the float64 loops of `support.oracle`, loss and gradients.

    python tests/fuzz.py --cases 10000                        # what `make fuzz` runs
    python tests/fuzz.py --only 123 --backends dense          # one case again

A case is a function of the seed and its number.

The tolerance of a case follows from its numbers. A score is a rounded cosine times the scale, 1 / temperature or half
of it. So it is off by ROUNDINGS * eps * max(1, scale), and so is the relative size of each d loss / d s_ij = G_ij.
The gradient of a row i of length n_i is ``scale / n_i * sum_j H_ij (u_j - cos_ij u_i)``, with H = G + G^T. The vector
in brackets has the length sin_ij and is itself off by ROUNDINGS * eps. Therefore the gradient is off by

    ROUNDINGS * eps * scale / n_i * sum_j |H_ij| * (1 + max(1, scale) * sin_ij)

With ``positives="outside"`` G_ij is the difference of two terms, whose sum 2 * weight takes the place of |G_ij|.
Gradients of half precision rows are rounded once more. eps is that of float64 for float64 rows, else of float32.
"""

import argparse
import itertools
import math
import os
import random
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from support import oracle

ROUNDINGS = 16
CHOICES = {
    "dtype": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "layout": ("contiguous", "transposed", "every second", "part of wider rows"),
    "directions": ("random", "few", "lattice", "one cluster", "entries of any size"),
    "lengths": ("as drawn", "any", "tiny", "huge"),
    "classes": ("random", "one", "all different", "pairs", "one rare", "sorted"),
    "ignored": ("no row", "some rows", "most rows"),
    "labels": (  # dtype and ignore_index
        (torch.int64, -100), (torch.int64, 0), (torch.int32, -1), (torch.int16, 3), (torch.int8, -100),
        (torch.uint8, 255), (torch.uint8, 1),
    ),
    "poison": (False, True),  # NaN or infinity in rows that take no part
    "prototypes": ("none", "all", "some", "anchors", "some, anchors"),
    "candidates": ("none", "empty", "all", "some ignored"),
    "differentiated": ("all", "embeddings", "prototypes", "candidates"),
    "temperature": (0.005, 0.02, 0.1, 0.5, 2.0, 10.0),
    "similarity": ("shifted_cosine", "cosine"),
    "positives": ("inside", "outside"),
    "contrast": ("all", "negatives", "class_balanced"),
    "easy_threshold": (None, 0.0, 0.3, 1.1),
    "class_weights": ("none", "any", "some zero"),
    "sample_weight": ("none", "any", "some zero"),
    "reduction": ("mean", "sum", "none"),
}  # fmt: skip
EQUATION = ("temperature", "similarity", "positives", "contrast", "easy_threshold", "reduction")
OPTIONS = (*EQUATION, "prototypes", "candidates", "class_weights", "sample_weight")
REACH = {torch.float64: 100, torch.float32: 30, torch.bfloat16: 30, torch.float16: 3}  # powers of ten of the lengths


class Case(NamedTuple):
    """One call. `clean` are the tensors without poison, which the oracle takes."""

    choice: dict
    tensors: dict[str, Tensor]
    clean: dict[str, Tensor]
    labels: Tensor
    options: dict
    differentiated: tuple[str, ...]


class Exact(NamedTuple):
    """What the oracle says, and how far from it a backend may be."""

    names: tuple[str, ...]
    values: list[Tensor]
    allowed: list[Tensor]


def case(seed: int, number: int, largest: int = 8) -> Case:
    draw = random.Random(f"{seed} {number}")
    choice = {name: draw.choice(values) for name, values in CHOICES.items()}
    generator = torch.Generator().manual_seed(draw.getrandbits(40))
    N, C, D = draw.randint(0, largest), draw.randint(1, 4), draw.choice((1, 2, 3, 8, 17))
    M = {"none": 0, "empty": 0}.get(choice["candidates"], draw.randint(1, largest // 2 + 1))
    P = 0 if choice["prototypes"] == "none" else C
    rows = _rows(N + P + M, D, choice, draw, generator)
    labels, candidate_labels = _labels(N, C, choice, generator), torch.randint(C, (M,), generator=generator)
    label_dtype, ignore_index = choice["labels"]
    options = {name: choice[name] for name in EQUATION} | {"ignore_index": ignore_index}
    share = {"no row": 0.0, "some rows": 0.3, "most rows": 0.8}[choice["ignored"]]
    labels[torch.rand(N, generator=generator) < share] = ignore_index
    blocks = dict(zip(("embeddings", "prototypes", "candidates"), rows.split([N, P, M]), strict=True))
    absent = {"embeddings": labels == ignore_index}
    if P:
        options["prototype_anchors"] = choice["prototypes"].endswith("anchors")
        if choice["prototypes"].startswith("some"):
            options["prototype_mask"] = torch.rand(C, generator=generator) < 0.6
            absent["prototypes"] = ~options["prototype_mask"]
    if choice["candidates"] != "none":
        if choice["candidates"] == "some ignored":
            candidate_labels[::2] = ignore_index
        options["candidate_labels"] = candidate_labels.to(label_dtype)
        absent["candidates"] = candidate_labels == ignore_index
    for name, size in (("class_weights", C), ("sample_weight", N)):
        if choice[name] != "none":
            weight = torch.rand(size, generator=generator) + 0.1
            options[name] = weight * (torch.rand(size, generator=generator) < 0.5) if "zero" in choice[name] else weight
    used = ("embeddings", *["prototypes"] * (P > 0), *["candidates"] * (choice["candidates"] != "none"))
    clean = {name: blocks[name] for name in used}
    tensors = {name: _laid_out(_poisoned(clean[name], absent.get(name), choice), choice) for name in used}
    wanted = choice["differentiated"]
    differentiated = (wanted,) if wanted in used else used
    return Case(choice, tensors, clean, labels.to(label_dtype).repeat_interleave(2)[::2], options, differentiated)


def _rows(count, width, choice, draw, generator) -> Tensor:
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    if choice["directions"] == "few":  # duplicates and antipodes
        signs = 1 - 2.0 * torch.randint(2, (count, 1), generator=generator)
        rows = (
            signs * torch.randn(3, width, generator=generator).double()[torch.randint(3, (count,), generator=generator)]
        )
    elif choice["directions"] == "lattice":  # and zero rows
        rows = torch.randint(-1, 2, (count, width), generator=generator).double()
    elif choice["directions"] == "one cluster":
        rows = torch.randn(width, generator=generator) + 1e-3 * rows
    elif choice["directions"] == "entries of any size":
        rows = rows * 10.0 ** torch.randint(-3, 3, (count, width), generator=generator)
    reach = REACH[choice["dtype"]]
    spread = 2 * torch.rand(count, 1, generator=generator).double() - 1
    powers = {"as drawn": 0 * spread, "any": spread * reach, "tiny": 0 * spread - reach, "huge": 0 * spread + reach}
    limit = torch.finfo(choice["dtype"]).max / 4
    return (rows * 10.0 ** powers[choice["lengths"]]).clamp(-limit, limit).to(choice["dtype"])


def _labels(count, classes, choice, generator) -> Tensor:
    if choice["classes"] == "one":
        return torch.full((count,), classes - 1)
    if choice["classes"] == "all different":  # as far as there are classes
        return torch.arange(count) % classes
    if choice["classes"] == "pairs":
        return torch.arange(count) // 2 % classes
    if choice["classes"] == "one rare":
        return (torch.arange(count) == count // 2).long() * (classes - 1)
    labels = torch.randint(classes, (count,), generator=generator)
    return labels.sort().values if choice["classes"] == "sorted" else labels


def _poisoned(rows, absent, choice) -> Tensor:
    if absent is None or not choice["poison"]:
        return rows
    poison = torch.tensor([torch.nan, torch.inf], dtype=rows.dtype)[torch.arange(len(rows)) % 2]
    return torch.where(absent[:, None], poison[:, None], rows)


def _laid_out(rows, choice) -> Tensor:
    if choice["layout"] == "transposed":
        return rows.mT.contiguous().mT
    if choice["layout"] == "every second":
        return rows.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    if choice["layout"] == "part of wider rows":
        return torch.cat([rows, rows, rows], 1)[:, rows.shape[1] : 2 * rows.shape[1]]
    return rows


def exact(problem: Case) -> tuple[Case, Exact]:
    """The oracle's numbers; the case without its threshold if rounding would decide which anchors count."""
    options, kept = dict(problem.options), {}
    values = _of_the_oracle(problem, options, kept)
    scale = (0.5 if options["similarity"] == "shifted_cosine" else 1.0) / options["temperature"]
    unit = {"eps": torch.finfo(torch.float64 if problem.choice["dtype"] == torch.float64 else torch.float32).eps}
    threshold = options["easy_threshold"]
    if threshold is not None:
        doubt = 4 * ROUNDINGS * unit["eps"] * max(1, scale)
        losses = [value.item() for key, value in kept.items() if not _is_pair(key)]
        if any(abs(loss - threshold) <= doubt * (1 + abs(loss)) for loss in losses):
            options["easy_threshold"], kept = None, {}
            values = _of_the_oracle(problem, options, kept)
    problem = problem._replace(options=options)
    return problem, Exact(("loss", *problem.clean), values, _allowed(problem, values, kept, scale, unit["eps"]))


def _is_pair(key) -> bool:
    return isinstance(key, tuple)


def _of_the_oracle(problem, options, kept) -> list[Tensor]:
    blocks = {name: rows.double() for name, rows in problem.clean.items()}
    embeddings, prototypes = blocks.pop("embeddings"), blocks.pop("prototypes", None)
    return oracle.value_and_gradients(
        oracle.loss, embeddings, problem.labels, prototypes, **blocks, **options, kept=kept
    )


def _allowed(problem, values, kept, scale, eps) -> list[Tensor]:
    """For each of the values how far a backend may be from it."""
    options, N = problem.options, len(problem.labels)
    outside, steep = options["positives"] == "outside", max(1, scale)
    weight = {key: abs(float(loss.grad)) if loss.grad is not None else 0.0 for key, loss in kept.items()
              if not _is_pair(key)}  # fmt: skip
    total = sum(weight.values())
    flat, sloped, of_anchor = {}, {}, {}  # sums of |H_ij|, of |H_ij| sin_ij, of |G_ij|
    for key, score in kept.items():
        if _is_pair(key) and score.grad is not None:
            cosine = float(score.detach()) * options["temperature"]
            cosine = cosine if options["similarity"] == "cosine" else 2 * cosine - 1
            pull = abs(float(score.grad))
            of_anchor[key[0]] = of_anchor.get(key[0], 0.0) + pull
            for row in key:
                flat[row] = flat.get(row, 0.0) + pull
                sloped[row] = sloped.get(row, 0.0) + pull * math.sqrt(max(0.0, 1 - cosine * cosine))
    oracles = torch.finfo(torch.float64).eps * steep  # the oracle is itself rounded, and float32 has a smallest number
    error = {
        key: ROUNDINGS * eps * (steep * (of_anchor.get(key, 0.0) + 2 * outside * w) + w * (1 + abs(kept[key].item())))
        + ROUNDINGS * oracles * w
        for key, w in weight.items()
    }  # fmt: skip
    if options["reduction"] == "none":
        losses = torch.tensor([error.get(i, 0.0) for i in range(len(values[0]))])
    else:
        losses = torch.tensor(sum(error.values()))
    allowed = [losses.double()]
    starts = {"embeddings": lambda i: i, "prototypes": lambda i: N + i, "candidates": lambda i: ("candidate", i)}
    for gradient, (name, rows) in zip(values[1:], problem.clean.items(), strict=True):
        norms = rows.double().norm(dim=1)
        keys = [starts[name](i) for i in range(len(rows))]
        pulls = torch.tensor([flat.get(key, 0.0) + steep * sloped.get(key, 0.0) for key in keys], dtype=torch.float64)
        pulls = ROUNDINGS * eps * (pulls + 2 * outside * steep * total) + (ROUNDINGS * oracles + 1e-36) * total
        bound = scale * pulls / norms.masked_fill(norms == 0, 1)
        bound = bound.masked_fill(norms == 0, torch.inf)[:, None]  # a zero row has no direction: any finite gradient
        half = torch.finfo(rows.dtype)
        allowed.append(bound + half.eps * gradient.abs() + half.tiny)
    return allowed


def found(problem: Case, **how) -> dict[str, Tensor]:
    """{"loss": value, name: gradient} by a backend."""
    leaves = {n: t.detach().requires_grad_(n in problem.differentiated) for n, t in problem.tensors.items()}
    loss = spcl(labels=problem.labels, **leaves, **problem.options, **how)
    loss.sum().backward()
    return {"loss": loss.detach()} | {name: leaves[name].grad for name in problem.differentiated}


def faults(answer: Exact, ours: dict[str, Tensor], dtype: torch.dtype, ranks: int = 1) -> tuple[float, str]:
    """The largest deviation as a share of what is allowed, and what it is about.

    A gradient beyond the largest number of the dtype is infinite, rightly. A rank holds `ranks` times its share.
    """
    worst, about = 0.0, ""
    for name, expected, allowed in zip(*answer, strict=True):
        if name not in ours:
            continue
        value = ours[name]
        if value is None or value.shape != expected.shape:
            return math.inf, f"{name} has the shape {None if value is None else tuple(value.shape)}"
        if name == "loss" and value.dtype != (torch.float64 if dtype == torch.float64 else torch.float32):
            return math.inf, f"the loss has the dtype {value.dtype}"
        if value.isnan().any() or (name == "loss" and not value.isfinite().all()):
            return math.inf, f"{name} is not finite"
        limit = torch.finfo(value.dtype if name == "loss" else dtype).max / (2 * ranks)
        off = (value.double().clamp(-limit, limit) - expected.clamp(-limit, limit)).abs()
        share = torch.where(off == 0, 0.0, off / allowed)
        if share.numel() and float(share.max()) > worst:
            at = int(share.argmax())
            worst = float(share.max())
            about = f"{name}, entry {at}: off by {off.flatten()[at]:.3g} of {expected.flatten()[at]:.6g}"
    return worst, about


# The backends. Each takes a case and its number, and gives what `found` gives.


def dense(problem, number):
    return found(problem, impl="dense")


def strips(problem, number):
    """In tiles of 512 bytes, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPCL_TILE_BYTES", "512")
        return found(problem, impl="strips")


def kernels(problem, number):
    """By Triton's interpreter, on each of the kernels' paths in turn. They take no float64."""
    interpreted = _interpreter()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, on infinities that are meant
        interpreted.interpret(patch)
        interpreted.choose(patch, interpreted.PATHS[number % len(interpreted.PATHS)])
        return found(problem, impl="triton")


def _interpreter():
    """What the tests of the kernels use. Import it before anything else imports triton, which PyTorch may do."""
    folder = str(Path(__file__).parent / "kernels")
    if folder not in sys.path:
        sys.path.append(folder)
    import interpreted

    return interpreted


def on_a_rank(rank, world_size, seed, numbers, largest):
    """The rows of a case shared among the ranks: {"loss", this rank's part of the gradients}, averaged as DDP does."""
    os.environ["SPCL_TILE_BYTES"] = "512"
    answers = []
    for number in numbers:
        problem, _ = exact(case(seed, number, largest))
        own = slice(*(part * len(problem.labels) // world_size for part in (rank, rank + 1)))
        part = {name: rows[own] if name == "embeddings" else rows for name, rows in problem.tensors.items()}
        options = dict(problem.options)
        if "sample_weight" in options:
            options["sample_weight"] = options["sample_weight"][own]
        problem = problem._replace(tensors=part, labels=problem.labels[own], options=options)
        answers.append(found(problem, impl=("dense", "strips")[number % 2], gather_distributed=True))
    return answers


def together(pool, world_size, seed, numbers, largest):
    """What all ranks say of the cases, put together."""
    results = []
    for answers in zip(*pool.ask(on_a_rank, world_size, seed, list(numbers), largest), strict=True):
        joined = {"loss": answers[0]["loss"]}
        for name in answers[0].keys() - {"loss"}:
            parts = [answer[name].double() for answer in answers]
            joined[name] = torch.cat(parts) / world_size if name == "embeddings" else torch.stack(parts).mean(0)
        results.append(joined)
    return results


def uncovered(numbers, seed: int, names=tuple(CHOICES)) -> set:
    """The pairs of choices that none of the cases has."""
    seen = set()
    for number in numbers:
        draw = random.Random(f"{seed} {number}")
        choice = [(name, draw.choice(values)) for name, values in CHOICES.items()]
        seen |= set(itertools.combinations([pair for pair in choice if pair[0] in names], 2))
    all_choices = [[(name, value) for value in CHOICES[name]] for name in CHOICES if name in names]
    wanted = {pair for one, other in itertools.combinations(all_choices, 2) for pair in itertools.product(one, other)}
    return wanted - seen


def check(seed, number, largest, backends) -> tuple[Case, dict[str, tuple[float, str]]]:
    """One case by the backends of this process: {backend: (largest share of the tolerance, what it is about)}."""
    problem, answer = exact(case(seed, number, largest))
    dtype = problem.choice["dtype"]
    return problem, {
        name: faults(answer, BACKENDS[name](problem, number), dtype)
        for name in backends
        if name != "kernels" or dtype != torch.float64
    }


BACKENDS = {"dense": dense, "strips": strips, "kernels": kernels}
RARE = {"dense": 1, "strips": 1, "kernels": 20, "ranks": 10}  # of so many cases one goes through the slow backends


def describe(problem: Case) -> str:
    shapes = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in problem.tensors.items())
    return f"{shapes}, " + ", ".join(f"{name} {value}" for name, value in problem.choice.items())


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description="Compares every backend of the loss with float64 loops.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest", type=int, default=8, help="rows of a batch, at most")
    parser.add_argument("--only", type=int, help="the number of a single case, which all named backends compute")
    parser.add_argument("--backends", nargs="+", default=list(RARE), choices=list(RARE))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if "kernels" in args.backends:
        _interpreter()
    started, tried, failed, largest_share = time.monotonic(), dict.fromkeys(args.backends, 0), 0, 0.0

    def judge(name, number, problem, share, about):
        nonlocal failed, largest_share
        tried[name] += 1
        if share > 1:
            failed += 1
            again = f"--seed {args.seed} --largest {args.largest} --only {number} --backends {name}"
            print(f"FAILED python tests/fuzz.py {again}\n  {about}, {share:.3g} times what is allowed")
            print(f"  {describe(problem)}", flush=True)
        else:
            largest_share = max(largest_share, share)

    numbers = range(args.cases) if args.only is None else [args.only]
    for number in numbers:
        due = [b for b in args.backends if b in BACKENDS and (args.only is not None or number % RARE[b] == 0)]
        problem, shares = check(args.seed, number, args.largest, due)
        for name, (share, about) in shares.items():
            judge(name, number, problem, share, about)
    if "ranks" in args.backends:
        from support.ranks import Pool

        shared = [number for number in numbers if args.only is not None or number % RARE["ranks"] == 0]
        pool = Pool(3)
        try:
            for number, ours in zip(shared, together(pool, 3, args.seed, shared, args.largest), strict=True):
                problem, answer = exact(case(args.seed, number, args.largest))
                judge("ranks", number, problem, *faults(answer, ours, problem.choice["dtype"], ranks=3))
        finally:
            pool.end()
    counts = ", ".join(f"{name} {count}" for name, count in tried.items())
    print(
        f"{len(numbers)} cases of seed {args.seed} in {time.monotonic() - started:.0f} s: {counts}; {failed} failed; "
        f"the largest deviation of the others is {largest_share:.2f} of what is allowed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
