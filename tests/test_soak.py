"""A short version of `make soak`, and that its checks notice faults; that `mutation.json` is of the present code."""

import json
import sys
from collections import OrderedDict

import pytest
import torch

import mutation
import soak
from support.same import same


@pytest.mark.parametrize("name", ["eager", "sampler", "observe"])
def test_nothing_drifts(name):
    assert max(soak.soak(soak.PARTS[name](), 20, warm_up=20).deviations) <= soak.DEVIATION


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        (lambda memory: memory.queue[2, 3].mul_(1.001), "the queues after 20 steps"),
        (lambda memory: memory.cursors[1].add_(soak.M), "the cursors after 20 steps"),
        (lambda memory: memory.draws.add_(1), "the draws after 20 steps"),
    ],
)
def test_a_memory_that_drifts_is_noticed(fault, noticed):
    part = soak.Training(None)
    for number in range(20):
        part.step(number)
    with torch.no_grad():
        fault(part.criterion.memory)
    with pytest.raises(AssertionError, match=noticed):
        part.checked_step(20)


def test_a_wrong_prototype_and_a_wrong_gradient_are_noticed(monkeypatch):
    part = soak.Training(None)
    for number in range(20):
        part.step(number)
    part.criterion.temperature *= 1.01
    assert part.checked_step(20) > 100 * soak.DEVIATION
    memory = part.criterion.memory
    drawn = memory.prototypes
    monkeypatch.setattr(memory, "prototypes", lambda **options: (1.001 * drawn(**options)[0], drawn(**options)[1]))
    part.criterion.temperature = 0.05
    assert part.checked_step(21) > 10 * soak.DEVIATION


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 spells tuples otherwise than mutation.json")
def test_every_explained_change_of_the_code_exists():
    for module, explained in json.loads(mutation.RECORD.read_text(encoding="utf-8"))["explained"].items():
        assert explained.keys() - {change.name for change in mutation.changes(module)} == set()


@pytest.mark.parametrize(
    "other",
    [
        {"a": [torch.ones(2)], "b": 1, "c": 0},
        {"a": [torch.ones(2)]},
        {"a": [torch.tensor([1.0, 2.0])], "b": 1},
        {"a": [torch.ones(2, dtype=torch.float64)], "b": 1},
        {"a": [torch.ones(2), 1], "b": 1},
        {"a": torch.ones(1, 2), "b": 1},
        {"a": [torch.ones(2)], "b": 2},
        {"a": [torch.ones(2)], "b": True},
        OrderedDict(a=[torch.ones(2)], b=1),
    ],
)
def test_what_differs_is_not_the_same(other):
    one = {"a": [torch.ones(2)], "b": 1}
    assert same(one, {"a": [torch.ones(2)], "b": 1})
    assert not same(one, other)
    assert not same(other, one)
