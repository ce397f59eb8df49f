"""600 random calls by the quick backends, and that the comparison notices faults; `make fuzz` runs 10,000 by all."""

import pytest
import torch

import fuzz

CASES = 600
PARTS = 40


@pytest.mark.parametrize("part", range(PARTS))
def test_backends_agree_with_the_oracle(part):
    for number in range(part, CASES, PARTS):
        problem, shares = fuzz.check(0, number, 8, ["dense", "strips"])
        for name, (share, about) in shares.items():
            assert share <= 1, f"case {number} by {name}: {about}; {fuzz.describe(problem)}"


def test_the_cases_have_every_pair_of_options():
    """And those of `make fuzz` every pair of all choices."""
    assert not fuzz.uncovered(range(CASES), 0, fuzz.OPTIONS)
    assert not fuzz.uncovered(range(10_000), 0)


@pytest.mark.parametrize("name", ["embeddings", "prototypes", "candidates", "loss"])
def test_a_deviation_of_five_percent_is_noticed(name):
    """In most cases. In the others the exact number is zero or nearly so: all rows on one line, say."""
    noticed = tried = 0
    for number in range(80):
        problem, answer = fuzz.exact(fuzz.case(1, number))
        ours = fuzz.found(problem, impl="dense")
        if name not in ours or not ours[name].any():
            continue
        at = answer.names.index(name)
        entry = int((answer.values[at].abs() / answer.allowed[at]).argmax())
        wrong = ours | {name: ours[name].clone(memory_format=torch.contiguous_format)}
        wrong[name].view(-1)[entry] *= 1.05
        tried += 1
        noticed += fuzz.faults(answer, wrong, problem.choice["dtype"])[0] > 1
    assert tried >= 5
    assert noticed >= 0.6 * tried, (noticed, tried)


@pytest.mark.parametrize(
    ("name", "value"), [("loss", torch.nan), ("loss", torch.inf), ("embeddings", torch.nan), ("embeddings", torch.inf)]
)
def test_what_is_not_finite_is_noticed(name, value):
    problem, answer = fuzz.exact(fuzz.case(0, 0))
    ours = fuzz.found(problem, impl="dense")
    ours[name] = torch.full_like(ours[name], value)
    assert fuzz.faults(answer, ours, problem.choice["dtype"])[0] > 1
