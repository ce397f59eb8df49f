"""The examples for training frameworks: epochs advance, ranks share them, an interrupted run continues exactly."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import integration_run
from support import ranks

EPOCHS, SAVE_EVERY, STOP_AFTER = 3, 5, 9
RANKS = {
    "ddp": 2,
    "stateful_loader": 2,
    "accelerate_loop": 2,
    "huggingface_trainer": 2,
    "lightning_module": 2,
    "sentence_transformers_trainer": 2,
    "metric_learning_trainer": 1,
}


def test_every_example_is_tested():
    assert sorted(RANKS) == sorted(path.stem for path in integration_run.EXAMPLES.glob("*.py"))


ONE_BY_ONE = """
import runpy, sys
from accelerate.state import AcceleratorState
for example in sys.argv[1:]:
    AcceleratorState._reset_state(reset_partial_state=True)  # of the example before
    sys.argv = [example, "checkpoints of " + example.rpartition("/")[2]]
    runpy.run_path(example, run_name="__main__")
"""


def test_plain_python_prints_an_accuracy(tmp_path):
    """In one process, since importing the frameworks takes longest."""
    command = [sys.executable, "-c", ONE_BY_ONE, *(str(integration_run.EXAMPLES / f"{name}.py") for name in RANKS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    accuracies = re.findall(r"^accuracy on new \w+: (\d\.\d\d)$", run.stdout, re.MULTILINE)
    assert len(accuracies) == len(RANKS)
    assert min(map(float, accuracies)) > 0.5  # of four classes


@pytest.fixture(scope="module")
def pool():
    pool = ranks.Pool(max(RANKS.values()))
    yield pool
    pool.end()


@pytest.mark.parametrize(("name", "world"), RANKS.items())
def test_example(pool, name, world, tmp_path):
    answers = pool.ask(integration_run.run, world, name, tmp_path, STOP_AFTER)
    assert_epochs_advance_and_are_shared([answer["whole"] for answer in answers])
    for answer in answers:
        assert_continues_exactly(answer)
    if name == "sentence_transformers_trainer":
        assert_grouped_by_label(answers[0]["whole"])


@pytest.mark.parametrize("during", ["save_state", "rename"])
def test_a_kill_while_accelerate_saves_leaves_a_whole_checkpoint(during, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(integration_run.EXAMPLES)
    example = importlib.import_module("accelerate_loop")
    expected = example.train(tmp_path / "whole")
    owner = example.Accelerator if during == "save_state" else example.Path
    real, whole_ones = getattr(owner, during), iter(range(1 if during == "save_state" else 2))

    def killed(self, target):
        if next(whole_ones, None) is None:
            for path in Path(target).glob("*"):
                path.write_bytes(b"broken off")
            raise integration_run.Interrupted
        return real(self, target)

    # In the second save: while it writes, or between its two renames.
    with monkeypatch.context() as patch:
        patch.setattr(owner, during, killed)
        with pytest.raises(integration_run.Interrupted):
            example.train(tmp_path / "killed")
    for actual, wanted in zip(example.train(tmp_path / "killed"), expected, strict=True):
        torch.testing.assert_close(actual.state_dict(), wanted.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["huggingface_trainer", "sentence_transformers_trainer"])
@pytest.mark.parametrize("during", ["optimizer", "curriculum"])
def test_a_kill_while_a_trainer_saves_leaves_the_checkpoint_before(name, during, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(integration_run.EXAMPLES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    example, real = importlib.import_module(name), torch.save
    expected = example.train(tmp_path / "whole")

    def killed(state, path, *args, **options):
        if (Path(path).parent.name, Path(path).stem) == (f"checkpoint-{2 * SAVE_EVERY}", during):
            Path(path).write_bytes(b"broken off")
            raise integration_run.Interrupted
        real(state, path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(integration_run.Interrupted):
            example.train(tmp_path / "killed")
    kept = tmp_path / "killed" / f"checkpoint-{SAVE_EVERY}-kept"  # a copy by hand is none of the trainer's
    shutil.copytree(tmp_path / "killed" / f"checkpoint-{SAVE_EVERY}", kept)
    for actual, wanted in zip(example.train(tmp_path / "killed"), expected, strict=True):
        torch.testing.assert_close(actual.state_dict(), wanted.state_dict(), rtol=0, atol=0)


def assert_epochs_advance_and_are_shared(ranks):
    drawn = []
    for epoch in range(EPOCHS):
        shares = [[index for at, batch in batches if at == epoch for index in batch] for batches in ranks]
        assert len({len(share) for share in shares}) == 1
        seen = [index for share in shares for index in share]
        assert len(set(seen)) == len(seen)  # no rank twice, and no two ranks the same
        assert 88 <= len(seen) <= 101  # half of 203, but for what does not fill the batches
        drawn.append(set(seen))
    assert [at for at, _ in ranks[0]] == sorted(at for at, _ in ranks[0])
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def assert_grouped_by_label(batches):
    for _, batch in batches:
        members = Counter(index % 4 for index in batch)  # the task's labels
        assert sum(count >= 2 for count in members.values()) >= 2


def assert_continues_exactly(rank):
    saved = STOP_AFTER // SAVE_EVERY * SAVE_EVERY
    assert len(rank["before"]) == STOP_AFTER
    assert rank["before"] + rank["after"][STOP_AFTER - saved :] == rank["whole"]
    assert rank["after"] == rank["whole"][saved:]
    for expected, actual in zip(*rank["states"], strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
