"""A short version of `make soak`, and that its checks notice faults."""

import pytest
import torch

import soak


@pytest.mark.parametrize("name", ["eager", "sampler", "observe"])
def test_nothing_drifts(name):
    assert max(soak.soak(soak.PARTS[name](), 300).deviations) <= soak.DEVIATION


def test_nothing_drifts_when_compiled():
    torch._dynamo.reset()
    assert max(soak.soak(soak.Training("aot_eager"), 100).deviations) <= soak.DEVIATION


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        (lambda memory: memory.queue[2, 3].mul_(1.001), "the queues after 230 steps"),
        (lambda memory: memory.cursors[1].add_(soak.M), "the cursors after 230 steps"),
        (lambda memory: memory.draws.add_(1), "the draws after 230 steps"),
    ],
)
def test_a_memory_that_drifts_is_noticed(fault, noticed):
    part = soak.Training(None)
    for number in range(230):
        part.step(number)
    with torch.no_grad():
        fault(part.criterion.memory)
    with pytest.raises(AssertionError, match=noticed):
        part.checked_step(230)


def test_a_wrong_prototype_and_a_wrong_gradient_are_noticed(monkeypatch):
    part = soak.Training(None)
    for number in range(230):
        part.step(number)
    part.criterion.temperature *= 1.01
    assert part.checked_step(230) > 100 * soak.DEVIATION
    memory = part.criterion.memory
    drawn = memory.prototypes
    monkeypatch.setattr(memory, "prototypes", lambda **options: (1.001 * drawn(**options)[0], drawn(**options)[1]))
    part.criterion.temperature = 0.05
    assert part.checked_step(231) > 10 * soak.DEVIATION
