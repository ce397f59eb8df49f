"""A run leaves what it promises, and nothing is lost when it is interrupted."""

import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from safetensors import safe_open

import erc_tiny
from erc import checkpoint, report, training
from erc.dialogues import InputError
from erc.layouts import lay_out
from erc.report import result_table
from erc.run_folder import FIGURES, RunFolder
from erc.settings import Settings
from erc.training_data import TrainingData

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return erc_tiny.encoder(tmp_path_factory.mktemp("encoder"))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def quick_figures(monkeypatch):
    """Empty ones, for tests of other things."""
    monkeypatch.setattr(report, "draw", lambda *_: {name: Figure(figsize=(1, 1)) for name in FIGURES})


FINISHED = sorted(["settings.json", "metrics.jsonl", "result.json", "best.safetensors", "predictions.csv", *FIGURES])


def outcome(folder):
    """What a run computed, without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for part in (*lines, result):
        del part["seconds"]
    with safe_open(folder / "best.safetensors", "pt") as best:
        weights = {name: best.get_tensor(name) for name in best.keys()}  # noqa: SIM118
    return lines, result, (folder / "predictions.csv").read_text(encoding="utf-8"), weights


def assert_same(one, other):
    assert one[:3] == other[:3]
    assert one[3].keys() == other[3].keys()
    for name, tensor in one[3].items():
        assert torch.equal(tensor, other[3][name]), name


@pytest.fixture(scope="module")
def finished(encoder, tmp_path_factory):
    """A whole run, uninterrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    settings = erc_tiny.settings(encoder)
    return settings, folder, training.train(settings, erc_tiny.corpus(), folder)


def test_the_folder_holds_what_was_promised(finished):
    settings, folder, result = finished
    assert files(folder) == FINISHED
    assert Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8"))) == settings
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == result
    for name in FIGURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_result_has_both_heads_on_both_splits(finished):
    settings, _, result = finished
    for name in ("dataset", "encoder", "objective", "curriculum", "seed"):
        assert result[name] == getattr(settings, name)
    assert result["seconds"] > 0
    for split in ("dev", "test"):
        for head in ("prototype", "linear"):
            scores = result[split][head]
            assert scores.keys() == {"weighted_f1", "macro_f1", "accuracy", "per_class_f1"}
            assert scores["per_class_f1"].keys() == set(erc_tiny.LABELS)
    table = result_table(result)
    assert f"{result['test']['prototype']['weighted_f1']:.4f}" in table
    assert f"best epoch {result['best_epoch']} of 3" in table


@pytest.mark.usefixtures("quick_figures")
def test_it_learns(encoder, tmp_path):
    settings = erc_tiny.settings(encoder, epochs=6, encoder_rate=5e-3, context_turns=0)
    result = training.train(settings, erc_tiny.corpus(train=40), tmp_path)
    assert result["test"]["prototype"]["weighted_f1"] > 0.9  # the words give the emotion away; guessing gives 0.2


def test_one_line_an_epoch_and_the_best_dev_score_selects(finished):
    _, folder, result = finished
    lines, *_ = outcome(folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    scores = [line["dev"]["prototype"]["weighted_f1"] for line in lines]
    assert result["best_epoch"] == 1 + scores.index(max(scores))
    assert result["dev"] == lines[result["best_epoch"] - 1]["dev"]


def test_the_curriculum_draws_half_the_data_easy_samples_first(finished):
    _, folder, _ = finished
    lines, *_ = outcome(folder)
    shares = []
    for line in lines:
        counts = line["difficulty"]
        total = sum(counts["all"])
        assert total == 48 + round(0.2 * 36)  # each turn but the first of a dialogue has a past
        assert sum(counts["drawn"]) == total // 2
        easy = [drawn for drawn, below in zip(counts["drawn"], _below_median(counts["all"]), strict=True) if below]
        shares.append(sum(easy) / (total // 2))
    assert shares[0] > 0.5 > shares[-1]


def _below_median(counts):
    seen = 0.0
    for count in counts:
        seen += count
        yield seen <= sum(counts) / 2


def test_predictions_are_the_scored_ones(finished):
    _, folder, result = finished
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    turns = [(d.id, t.id, erc_tiny.LABELS[t.label]) for d in erc_tiny.corpus().test for t in d.turns]
    assert [(row["dialogue"], row["utterance"], row["gold"]) for row in rows] == turns
    for head in ("prototype", "linear"):
        right = sum(row["gold"] == row[head] for row in rows)
        assert right / len(rows) == pytest.approx(result["test"][head]["accuracy"])


def test_best_weights_come_with_memory_and_labels(finished):
    settings, folder, _ = finished
    with safe_open(folder / "best.safetensors", "pt") as best:
        assert json.loads(best.metadata()["labels"]) == list(erc_tiny.LABELS)
        assert json.loads(best.metadata()["settings"])["objective"] == settings.objective
        assert {"memory.queue", "memory.fallback", "model.head.weight"} <= set(best.keys())


@pytest.mark.usefixtures("quick_figures")
def test_the_same_settings_give_the_same_run(finished, tmp_path):
    settings, folder, _ = finished
    training.train(settings, erc_tiny.corpus(), tmp_path / "again")
    assert_same(outcome(folder), outcome(tmp_path / "again"))


class Interruption(Exception):
    pass


def interrupt_after(monkeypatch, batches):
    """Lets a run break off in the middle of an update."""
    count = 0
    real = training.losses

    def losses(*arguments):
        nonlocal count
        count += 1
        if count > batches:
            raise Interruption
        return real(*arguments)

    monkeypatch.setattr(training, "losses", losses)


@pytest.mark.parametrize("batches", [0, 2, 5, 7, 9, 20])
def test_an_interrupted_run_continues_as_if_nothing_had_been(
    encoder, finished, tmp_path, monkeypatch, batches, quick_figures
):
    # seven batches an epoch; a checkpoint after each second one and after each epoch
    settings, whole, _ = finished
    settings = erc_tiny.settings(encoder, checkpoint_steps=2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, batches)
        with pytest.raises(Interruption):
            training.train(settings, erc_tiny.corpus(), tmp_path / "run")
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == min(2, batches // 2 + 1)  # the last, and one before
    assert not (tmp_path / "run" / "result.json").exists()
    training.train(settings, erc_tiny.corpus(), tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == FINISHED
    assert_same(outcome(whole), outcome(tmp_path / "run"))


@pytest.mark.usefixtures("quick_figures")
def test_a_checkpoint_broken_off_leaves_the_one_before(encoder, finished, tmp_path, monkeypatch):
    settings, whole, _ = finished
    real, count = RunFolder.commit, 0

    def commit(self, *arguments):
        nonlocal count
        count += 1
        if count == 3:  # after the second epoch
            raise Interruption
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit", commit)
        with pytest.raises(Interruption):
            training.train(settings, erc_tiny.corpus(), tmp_path / "run")
    assert {"checkpoint-0001-0000000", "partial-checkpoint"} <= set(files(tmp_path / "run"))
    training.train(settings, erc_tiny.corpus(), tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == FINISHED
    assert_same(outcome(whole), outcome(tmp_path / "run"))


def test_resuming_a_finished_run_gives_its_result(finished):
    settings, folder, result = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert training.train(settings, erc_tiny.corpus(), folder, resume=True) == result
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_resuming_with_other_settings_names_them(encoder, finished):
    _, folder, _ = finished
    other = erc_tiny.settings(encoder, seed=3, context_turns=1)
    with pytest.raises(InputError, match=r"context_turns \(2, now 1\), seed \(0, now 3\)"):
        training.train(other, erc_tiny.corpus(), folder, resume=True)


def test_a_run_is_not_replaced_unasked(encoder, finished, tmp_path):
    settings, folder, _ = finished
    with pytest.raises(InputError, match="--resume continues it, --overwrite replaces it"):
        training.train(settings, erc_tiny.corpus(), folder)
    own = RunFolder(tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    own.open(settings, resume=False, overwrite=False)
    own.result.write_text("{}", encoding="utf-8")
    own.open(erc_tiny.settings(encoder, seed=1), resume=False, overwrite=True)
    assert files(tmp_path) == ["notes.txt", "settings.json"]


def test_a_corpus_of_another_name_is_an_error(encoder, tmp_path):
    with pytest.raises(ValueError, match="corpus must be MELD, as in the settings; received tiny"):
        training.train(erc_tiny.settings(encoder, dataset="MELD"), erc_tiny.corpus(), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "ce", "curriculum": "all"},
        {"objective": "supcon", "curriculum": "half"},
        {"objective": "spdcl", "draw": "bernoulli", "accumulation": 3, "schedule": "restarts"},
        {"objective": "bcl", "curriculum": "all"},
        {"objective": "eacl", "prototypes": "label_text"},
        {"prototypes": "label_text", "contrast": "class_balanced", "prototype_anchors": True},
        {"future_turns": 2, "layer_decay": 0.5, "joint": True},
        {"patience": 1, "encoder_rate": 0.0, "past_queries": 0.0, "epochs": 5},
    ],
)
@pytest.mark.usefixtures("quick_figures")
def test_other_settings_train_too(encoder, tmp_path, changes):
    settings = erc_tiny.settings(encoder, **{"epochs": 2, **changes})
    result = training.train(settings, erc_tiny.corpus(), tmp_path)
    lines, *_ = outcome(tmp_path)
    assert all(math.isfinite(line["contrastive_loss"]) and math.isfinite(line["head_loss"]) for line in lines)
    total, drawn = (sum(lines[0]["difficulty"][name]) for name in ("all", "drawn"))
    if settings.curriculum != "on":
        assert drawn == (total if settings.curriculum == "all" else total // 2)
    if settings.accumulation > 1:
        batches = math.ceil(drawn / settings.batch_size)
        assert lines[0]["updates"] == math.ceil(batches / settings.accumulation)
    if settings.patience:  # with an encoder that does not move no epoch is better than the first
        assert (result["best_epoch"], result["epochs"]) == (1, 2)


SWITCHES = [
    {"average": 0.7},
    {"difficulty_pass": "first"},
    {"difficulty_pass": "alternate"},
    {"objective": "bcl", "prototypes": "label_text"},
    {"inputs": "dialogues", "past_queries": 0.0, "difficulty_pass": "alternate"},
    {"inputs": "dialogues", "past_queries": 0.0, "curriculum": "all", "objective": "ce"},
]


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.usefixtures("quick_figures")
def test_switches_survive_an_interruption(encoder, tmp_path, monkeypatch, changes):
    settings = erc_tiny.settings(encoder, checkpoint_steps=2, **changes)
    training.train(settings, erc_tiny.corpus(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10)
        with pytest.raises(Interruption):
            training.train(settings, erc_tiny.corpus(), tmp_path / "run")
    training.train(settings, erc_tiny.corpus(), tmp_path / "run", resume=True)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "run"))


@pytest.fixture
def surveys(monkeypatch):
    """What was encoded, in order."""
    seen = []
    real = training.Training._encode

    def encode(self, samples, what):
        seen.append(what.removeprefix("encoding "))
        return real(self, samples, what)

    monkeypatch.setattr(training.Training, "_encode", encode)
    return seen


@pytest.mark.parametrize(("which", "epochs"), [("every", [0, 1, 2, 3, 4]), ("alternate", [0, 2]), ("first", [0])])
@pytest.mark.usefixtures("quick_figures")
def test_the_pass_for_difficulties_comes_as_often_as_told(encoder, tmp_path, surveys, which, epochs):
    training.train(erc_tiny.settings(encoder, epochs=4, difficulty_pass=which), erc_tiny.corpus(), tmp_path)
    expected = ["the training set"]
    for epoch in range(1, 5):
        expected += ["the training set"] * (epoch in epochs) + ["dev"]
    assert surveys == [*expected, "test"]


@pytest.mark.usefixtures("quick_figures")
def test_observed_difficulties_decide_the_next_epoch(encoder, tmp_path):
    settings = erc_tiny.settings(encoder, difficulty_pass="first")
    training.train(settings, erc_tiny.corpus(), tmp_path)
    first, second, _ = outcome(tmp_path)[0]
    assert first["difficulty"]["edges"] != second["difficulty"]["edges"]
    assert sum(second["difficulty"]["drawn"]) == sum(first["difficulty"]["drawn"])


@pytest.mark.usefixtures("quick_figures")
def test_averaged_weights_are_scored_and_kept(encoder, finished, tmp_path):
    _, whole, _ = finished
    training.train(erc_tiny.settings(encoder, epochs=3, average=0.9999), erc_tiny.corpus(), tmp_path)
    # the first update is taken over; afterwards the average hardly moves, while the weights it follows do
    first = erc_tiny.settings(encoder, epochs=3, encoder_rate=0.0, head_rate=0.0)
    training.train(first, erc_tiny.corpus(), tmp_path / "still")
    averaged, still, moved = (outcome(folder)[3] for folder in (tmp_path, tmp_path / "still", whole))
    name = "model.backbone.encoder.layer.1.output.dense.weight"
    assert (averaged[name] - still[name]).norm() < 0.2 * (moved[name] - still[name]).norm()


@pytest.mark.parametrize("content", ["broken off", "foreign", "absent"])
@pytest.mark.usefixtures("quick_figures")
def test_a_spoilt_checkpoint_is_refused_and_the_one_before_it_serves(encoder, finished, tmp_path, monkeypatch, content):
    _, whole, _ = finished
    settings, folder = erc_tiny.settings(encoder, checkpoint_steps=2), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interruption):
            training.train(settings, erc_tiny.corpus(), folder)
    newest = RunFolder(folder).checkpoint()
    spoilt = newest / "shared.pt"
    if content == "broken off":
        spoilt.write_bytes(spoilt.read_bytes()[:-100])
    elif content == "foreign":
        torch.save({"model": torch.zeros(3)}, spoilt)
    else:
        spoilt.unlink()
    with pytest.raises(InputError, match=r"shared.pt .* remove the folder .*checkpoint-0000-0000004 and --resume"):
        training.train(settings, erc_tiny.corpus(), folder, resume=True)
    shutil.rmtree(newest)
    training.train(settings, erc_tiny.corpus(), folder, resume=True)
    assert_same(outcome(whole), outcome(folder))


def test_a_checkpoint_holds_tensors_and_plain_values(encoder, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 3)
    with pytest.raises(Interruption):
        training.train(erc_tiny.settings(encoder, checkpoint_steps=2), erc_tiny.corpus(), tmp_path)
    newest = RunFolder(tmp_path).checkpoint()
    assert files(newest) == ["process-0.pt", "shared.pt"]
    shared = torch.load(newest / "shared.pt", weights_only=True)
    assert shared["progress"]["batch"] == 2
    assert set(shared) == {"format", "processes", "model", "optimizer", "criterion", "sampler", "progress"}


def test_a_checkpoint_of_other_processes_is_refused(encoder, tmp_path, monkeypatch):
    settings = erc_tiny.settings(encoder)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        with pytest.raises(Interruption):
            training.train(settings, erc_tiny.corpus(), tmp_path)
    path = RunFolder(tmp_path).checkpoint() / "shared.pt"
    checkpoint.write(path, {**checkpoint.read(path), "processes": 2})
    with pytest.raises(InputError, match=r"a run with 2 processes; received 1\. Continue with as many"):
        training.train(settings, erc_tiny.corpus(), tmp_path, resume=True)


SCRIPT = """
import sys; sys.path[:0] = ["tests/examples", "examples"]
import erc_tiny
from erc.training import train
encoder, folder = sys.argv[1:]
train(erc_tiny.settings(encoder, checkpoint_steps=2), erc_tiny.corpus(), folder, resume=True)
"""


def kill_after(checkpoint, encoder, folder, seconds):
    """Starts or continues a run in a process of its own, and kills it some time after it has written a checkpoint."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, encoder, str(folder)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while not (folder / checkpoint).exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        time.sleep(seconds)
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("quick_figures")
def test_a_run_killed_three_times_ends_as_if_nothing_had_been(encoder, finished, tmp_path):
    settings, whole, _ = finished
    folder, moment = tmp_path / "run", random.Random(0)
    for epoch in range(settings.epochs):
        kill_after(f"checkpoint-{epoch:04d}-0000002", encoder, folder, seconds=moment.uniform(0, 0.03))
        assert not (folder / "result.json").exists()
    training.train(erc_tiny.settings(encoder, checkpoint_steps=2), erc_tiny.corpus(), folder, resume=True)
    assert files(folder) == FINISHED
    assert_same(outcome(whole), outcome(folder))


def test_processes_share_the_batches_of_an_epoch_and_have_as_many(encoder, tokenizer):
    settings = erc_tiny.settings(encoder, inputs="dialogues", past_queries=0.0, curriculum="all")
    layout = lay_out(settings, erc_tiny.corpus().train, tokenizer)

    def batches(processes, process):
        accelerator = SimpleNamespace(num_processes=processes, process_index=process)
        return TrainingData(settings, layout, accelerator).batches(epoch=1)

    whole = batches(1, 0)
    assert len(whole) == 12  # a dialogue of four turns each
    shares = [batches(5, process) for process in range(5)]
    assert [len(share) for share in shares] == [2] * 5  # two batches are left out
    shared = [batch for share in shares for batch in share]
    assert sorted(shared) == sorted(whole[:10])
    assert [len(batches(20, process)) for process in range(20)] == [1] * 20  # some more than once
