"""A short version of `make soak`, and that its checks notice faults; parts of the other programs of this folder."""

import json
import math
import os
import subprocess
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


def test_memory_that_cannot_be_measured_does_not_count_as_growth(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(soak, "Path", lambda _: tmp_path / "missing")
    assert math.isnan(soak.soak(soak.Epochs(), 20).growth)
    assert soak.main(["--steps", "20", "--parts", "sampler"]) == 0


def test_runs_that_are_too_short_are_refused(capsys):
    with pytest.raises(SystemExit):
        soak.main(["--steps", "19"])
    assert "--steps must be at least 20" in capsys.readouterr().err


def test_every_run_has_ten_parts():
    assert [len(soak.soak(soak.Epochs(), steps).times) for steps in (20, 22, 91)] == [10, 10, 10]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 spells tuples otherwise than mutation.json")
def test_every_explained_change_of_the_code_exists():
    for module, explained in json.loads(mutation.RECORD.read_text(encoding="utf-8"))["explained"].items():
        assert explained.keys() - {change.name for change in mutation.changes(module)} == set()


def test_changes_of_the_code_have_different_names():
    names = [change.name for change in mutation.changes("_checks.py")]
    assert len(names) == len(set(names)) > 100


def run(program):
    """What the program says, in a process of its own."""
    return subprocess.run([sys.executable, "-c", program], cwd=mutation.TESTS, capture_output=True, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no forks")
@pytest.mark.parametrize(
    ("call", "last_line"),
    [
        ("1 / 0", "RuntimeError: the process of the tests ended with exit code 1"),
        ("os._exit(3)", "RuntimeError: the process of the tests ended with exit code 3"),
        ("os.abort()", "mutation.KilledError: SIGABRT ended the process of the tests"),
    ],
)
def test_only_a_signal_counts_as_the_end_of_a_changed_program(call, last_line):
    said = run(f"import os, mutation; mutation.in_a_fork(lambda: {call})")
    assert said.stderr.strip().splitlines()[-1] == last_line


def test_a_change_replaces_code_defaults_and_constants():
    """Of functions that others have imported, and of classes."""
    program = """
import mutation
from spcl_loss import _checks, difficulty, memory

def outcome():
    try:
        return memory.check_size("x", 1)
    except ValueError:
        return "refused"

program = mutation.Program()
for module, name in [
    ("_checks.py", "check_size: if value <= minimum:"),
    ("_checks.py", "check_size: def check_size(name: str, value: int, minimum: int=2"),
    ("_numerics.py", ": _PART_ELEMENTS = 2 << 20"),
    ("_numerics.py", "_UnitRows: generate_vmap_rule = False"),
]:
    change = next(change for change in mutation.changes(module) if change.name.startswith(name))
    program.run_instead(module, change.code())
    numerics = difficulty.unit_rows.__globals__
    print(outcome(), numerics["_PART_ELEMENTS"] >> 20, numerics["_UnitRows"].generate_vmap_rule)
    path = mutation.SOURCE / module
    program.run_instead(module, compile(path.read_text(encoding="utf-8"), path, "exec"))
print(outcome(), numerics["_PART_ELEMENTS"] >> 20)
"""
    said = run(program)
    assert said.stdout.splitlines() == ["refused 1 True", "refused 1 True", "None 2 True", "None 1 False", "None 1"], (
        said.stderr
    )


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
