"""A run leaves what it promises, every setting trains, and nothing is lost when a run is interrupted."""

import csv
import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors import safe_open

import erc_tiny
import spcl_loss
from erc import report, train
from erc.data import Dialogue
from erc.files import InputError
from erc.folder import RunFolder, read_checkpoint
from erc.settings import HEADS, OBJECTIVES, Settings
from erc_predict import Classifier
from spcl_loss import METHODS, supervised_prototypical_contrastive_loss


def files(folder):
    return sorted(path.name for path in folder.iterdir())


FINISHED = sorted((
    "settings.json", "metrics.jsonl", "result.json", "best.safetensors", "reference.safetensors", "predictions.csv",
    "report.md", "confusion.png",
))  # fmt: skip


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
    """A whole run, uninterrupted: the curriculum as by default, with the authors' prompts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    settings = erc_tiny.settings(encoder)
    return settings, folder, train.train(settings, erc_tiny.corpus(), folder)


def test_the_folder_holds_what_was_promised(finished):
    settings, folder, result = finished
    assert files(folder) == FINISHED
    assert Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8"))) == settings
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == result
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(folder / "best.safetensors", "pt") as best:
        assert "head.weight" in set(best.keys())


def test_the_result_has_every_head_on_both_splits(finished):
    settings, folder, result = finished
    for name in ("dataset", "encoder", "objective", "curriculum", "seed"):
        assert result[name] == getattr(settings, name)
    assert result["seconds"] > 0
    assert result["environment"]["spcl-loss"] == spcl_loss.__version__
    for split in ("dev", "test"):
        assert tuple(result[split]) == HEADS
        for scores in result[split].values():
            assert scores.keys() == {"weighted_f1", "macro_f1", "accuracy", "per_class_f1"}
            assert scores["per_class_f1"].keys() == set(erc_tiny.LABELS)
    shown = (folder / "report.md").read_text(encoding="utf-8")
    for split in ("dev", "test"):
        assert f"| {100 * result[split]['prototype']['weighted_f1']:.2f} " in shown
    assert f"| {result['best_epoch']} of 3 " in shown
    for f1 in result["test"]["prototype"]["per_class_f1"].values():
        assert f"| {100 * f1:.2f} " in shown


@pytest.fixture(scope="module")
def lines(finished):
    """Of its metrics.jsonl."""
    return outcome(finished[1])[0]


def test_one_line_an_epoch_and_the_best_dev_score_selects(finished, lines):
    _, _, result = finished
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    scores = [line["dev"]["prototype"]["weighted_f1"] for line in lines]
    assert result["best_epoch"] == 1 + scores.index(max(scores))
    assert result["dev"] == lines[result["best_epoch"] - 1]["dev"]  # the best weights, scored again in the end


def test_every_line_has_the_diagnostics_of_the_loss(lines):
    found = [line["diagnostics"] for line in lines]
    assert all(set(one) >= {"loss_above_floor", "cosine_between", "queue_fill"} for one in found)
    assert all(len(one["queue_fill"]) == len(erc_tiny.LABELS) for one in found)
    assert found[-1]["loss_above_floor"] < found[0]["loss_above_floor"]
    assert all(-1 <= one["cosine_between"] <= 1 for one in found)


def test_the_curriculum_draws_half_the_data_easy_samples_first(lines):
    assert [line["samples"] for line in lines] == [24, 24, 24]  # of 48
    means = [line["difficulty"] for line in lines]
    assert means[0]["drawn"] < means[0]["all"]
    assert means[2]["drawn"] > means[2]["all"]
    assert means[0]["all"] != means[1]["all"]  # from training steps
    assert means[1]["all"] != means[2]["all"]  # from a pass


def test_predictions_of_dev_and_test_are_the_scored_ones(finished):
    _, folder, result = finished
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    corpus = erc_tiny.corpus()
    for split, dialogues in (("dev", corpus.dev), ("test", corpus.test)):
        own = [row for row in rows if row["split"] == split]
        turns = [(d.id, t.id, erc_tiny.LABELS[t.label]) for d in dialogues for t in d.turns]
        assert [(row["dialogue"], row["utterance"], row["gold"]) for row in own] == turns
        for head in HEADS:
            right = sum(row["gold"] == row[head] for row in own)
            assert right / len(own) == pytest.approx(result[split][head]["accuracy"]), (split, head)


@pytest.fixture
def quick_figures(monkeypatch):
    """Empty ones, for tests of other things."""
    monkeypatch.setattr(report, "confusion", lambda arms: Figure(figsize=(1, 1)))


@pytest.mark.usefixtures("quick_figures")
def test_it_learns(encoder, tmp_path):
    settings = erc_tiny.settings(encoder, epochs=6, encoder_rate=5e-3, context_turns=0)
    result = train.train(settings, erc_tiny.corpus(train=40), tmp_path)
    # the words give the emotion away; guessing gives 0.2
    assert min(result["test"][head]["weighted_f1"] for head in ("prototype", "lda")) > 0.9


class Interruption(Exception):
    pass


def interrupted(settings, folder, batches):
    """A run that breaks off in the middle of an update, after so many others."""
    updates, real = iter(range(batches)), train.Training.step

    def step(self, factor):
        if next(updates, None) is None:
            raise Interruption
        real(self, factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Training, "step", step)
        with pytest.raises(Interruption):
            train.train(settings, erc_tiny.corpus(), folder)


@pytest.mark.parametrize("batches", [0, 9, 17])
@pytest.mark.usefixtures("quick_figures")
def test_an_interrupted_run_continues_as_if_nothing_had_been(encoder, finished, tmp_path, monkeypatch, batches):
    # six batches an epoch; a checkpoint after each second one and after each epoch
    settings, whole, _ = finished
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    interrupted(settings, tmp_path / "run", batches)
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
    assert len(list((tmp_path / "run").glob("best-*"))) == min(1, batches // 6)
    assert not (tmp_path / "run" / "result.json").exists()
    train.train(settings, erc_tiny.corpus(), tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == FINISHED
    assert_same(outcome(whole), outcome(tmp_path / "run"))


@pytest.mark.usefixtures("quick_figures")
def test_a_checkpoint_broken_off_leaves_the_one_before_a_spoilt_one_is_named(encoder, finished, tmp_path, monkeypatch):
    settings, whole, _ = finished
    folder, whole_ones, real = tmp_path / "run", iter(range(3)), torch.save

    def save(state, path):
        if next(whole_ones, None) is None:  # the one at the end of the first epoch
            path.write_bytes(b"broken off")
            raise Interruption
        real(state, path)

    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(Interruption):
            train.train(settings, erc_tiny.corpus(), folder)
    newest = folder / "checkpoint-0000-0000004.pt"
    assert RunFolder(folder).checkpoints() == [newest]
    assert f"partial-{os.getpid()}-checkpoint-0001-0000000.pt" in files(folder)
    whole_state = read_checkpoint(newest)
    assert whole_state["progress"]["batch"] == 4
    assert set(whole_state) == {"format", "random", "model", "optimizer", "criterion", "sampler", "progress"}

    content = newest.read_bytes()
    torch.save({**whole_state, "random": 2 * whole_state["random"]}, newest)
    with pytest.raises(InputError, match=r"a run with 2 processes; received 1\. Continue with as many"):
        train.train(settings, erc_tiny.corpus(), folder, resume=True)
    for spoil in (
        lambda: newest.write_bytes(content[:-100]),
        lambda: torch.save({"model": torch.zeros(3)}, newest),
        lambda: newest.write_bytes(b""),
    ):
        spoil()
        with pytest.raises(InputError, match=r"checkpoint-0000-0000004\.pt .* begin anew with --overwrite"):
            train.train(settings, erc_tiny.corpus(), folder, resume=True)
    newest.write_bytes(content)
    train.train(settings, erc_tiny.corpus(), folder, resume=True)
    assert files(folder) == FINISHED
    assert_same(outcome(whole), outcome(folder))


def test_a_finished_run_is_shown_not_repeated(encoder, finished, tmp_path):
    settings, folder, result = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert train.train(settings, erc_tiny.corpus(), folder, resume=True) == result
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    other = erc_tiny.settings(encoder, seed=3, context_turns=1)
    with pytest.raises(InputError, match=r"seed \(0, now 3\), context_turns \(2, now 1\)"):
        train.train(other, erc_tiny.corpus(), folder, resume=True)
    with pytest.raises(InputError, match="--resume continues it, --overwrite replaces it"):
        train.train(settings, erc_tiny.corpus(), folder)


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(encoder, tmp_path):
    own = RunFolder(tmp_path)
    mine = [
        "best-model.pt", "best-of.safetensors", "checkpoint-500.pt", "notes.txt", "partial-1-notes.txt",
        "partial-draft.txt", "partial-report.md",
    ]  # fmt: skip
    for name in mine:
        (tmp_path / name).write_text("mine", encoding="utf-8")
    (tmp_path / "checkpoint-600").mkdir()  # as other trainers name theirs
    own.open(erc_tiny.settings(encoder), resume=False, overwrite=False)
    own.drop_checkpoints()  # as after every checkpoint
    assert own.checkpoints() == [] and files(tmp_path) == sorted([*mine, "checkpoint-600", "settings.json"])
    for file in (own.result, own.report, own.predictions, tmp_path / "confusion.png", tmp_path / "curves.png"):
        file.write_text("{}", encoding="utf-8")
    for name in ("checkpoint-0001-0000000.pt", "best-0001.safetensors", "partial-12-checkpoint-0001-0000200.pt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "partial-3-report.md").write_bytes(b"")
    own.open(erc_tiny.settings(encoder, seed=1), resume=False, overwrite=True)
    assert files(tmp_path) == sorted([*mine, "checkpoint-600", "settings.json"])
    assert own.stored_settings().seed == 1


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["report.md", "curves.png", "best.safetensors", "settings.json", "checkpoint-0001-0000000.pt"]
)
def test_a_file_that_a_run_would_replace_is_refused_where_no_run_is(encoder, tmp_path, name, overwrite):
    (tmp_path / name).write_text('{"colour": "red"}', encoding="utf-8")
    with pytest.raises(InputError, match=f"{name} .*another"):
        train.train(erc_tiny.settings(encoder), erc_tiny.corpus(), tmp_path, overwrite=overwrite)
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == '{"colour": "red"}'


def test_a_run_of_another_version_is_overwritten_and_a_kill_meanwhile_leaves_a_run(encoder, tmp_path, monkeypatch):
    own, settings = RunFolder(tmp_path), erc_tiny.settings(encoder)
    own.settings.write_text(json.dumps({**asdict(settings), "colour": "red"}), encoding="utf-8")
    for file in (own.result, own.report):
        file.write_text("{}", encoding="utf-8")
    left, unlink = iter(range(1)), Path.unlink

    def killed(path, **options):
        if path.exists() and next(left, None) is None:
            raise Interruption
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Interruption):
            own.open(settings, resume=False, overwrite=True)
    own.open(settings, resume=False, overwrite=True)
    assert files(tmp_path) == ["settings.json"] and own.stored_settings() == settings


def test_what_cannot_be_used_is_refused_before_training(encoder, tmp_path):
    with pytest.raises(ValueError, match="at most one of resume and overwrite; received both"):
        train.train(erc_tiny.settings(encoder), erc_tiny.corpus(), tmp_path, resume=True, overwrite=True)
    with pytest.raises(ValueError, match="corpus must be MELD, as in the settings; received tiny"):
        train.train(erc_tiny.settings(encoder, dataset="MELD"), erc_tiny.corpus(), tmp_path)
    with pytest.raises(InputError, match="the test split of tiny has no labelled turn"):
        train.train(erc_tiny.settings(encoder), replace(erc_tiny.corpus(), test=()), tmp_path / "run")


@pytest.mark.usefixtures("quick_figures")
def test_runs_of_one_process_can_differ_in_precision(encoder, tmp_path):
    for precision, name in {"fp32": "no", "bf16": "bf16"}.items():
        settings = erc_tiny.settings(encoder, precision=precision, epochs=1, curriculum="all")
        assert train.train(settings, erc_tiny.corpus(), tmp_path / precision)["precision"] == name
    texts = [Dialogue(one.id, one.turns) for one in erc_tiny.corpus().dev]
    first, second = (Classifier(tmp_path / precision) for precision in ("fp32", "bf16"))
    for classifier in (first, second, first):
        with (classifier.folder.predictions).open(encoding="utf-8", newline="") as file:
            said = [row["prototype"] for row in csv.DictReader(file) if row["split"] == "dev"]
        assert [label for labels in classifier.label(texts) for label in labels] == said


DIALOGUES = {"inputs": "dialogues", "context_turns": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {**DIALOGUES, "objective": "ce", "curriculum": "all", "train_fraction": 0.5},
        {**DIALOGUES, "objective": "spcl", "contrastive_weight": 0.2, "curriculum": "all"},
        {"objective": "supcon", "curriculum": "half"},
        {"objective": "spdcl", "as_authors": True, "patience": 1, "encoder_rate": 0.0, "epochs": 4},
        {"objective": "bcl", "curriculum": "all", "reference_turns": 3},
        {"objective": "eacl", "contrastive_weight": 1.0, "limit": 8},
    ],
    ids=str,
)
@pytest.mark.usefixtures("quick_figures")
def test_every_objective_trains_and_survives_an_interruption(encoder, tmp_path, monkeypatch, changes):
    settings = erc_tiny.settings(encoder, **{"epochs": 2, **changes})
    with monkeypatch.context() as patch:
        patch.setattr(train, "CHECKPOINT_EVERY", 2)
        interrupted(settings, tmp_path / "run", 3)
    result = train.train(settings, erc_tiny.corpus(), tmp_path / "run", resume=True)
    train.train(settings, erc_tiny.corpus(), tmp_path / "whole")
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
    lines, *_ = outcome(tmp_path / "run")
    assert all(math.isfinite(line["contrastive_loss"]) and math.isfinite(line["cross_entropy"]) for line in lines)
    assert (lines[0]["contrastive_loss"] == 0) == (settings.objective == "ce")
    total = 4 * (6 if settings.train_fraction == 0.5 else settings.limit or 12)
    assert result["train_samples"] == total
    if settings.curriculum != "on":
        assert lines[0]["samples"] == (total if settings.curriculum == "all" else total // 2)
    if settings.patience:  # with an encoder that does not move no epoch is better than the first
        assert (result["best_epoch"], result["epochs"]) == (1, 2)
    if settings.as_authors:
        assert lines[0]["updates"] == lines[0]["samples"] // settings.batch_size  # what is left over is dropped


def training(encoder, tmp_path, **changes):
    settings = erc_tiny.settings(encoder, **changes)
    return train.Training(settings, erc_tiny.corpus(), RunFolder(tmp_path), train.Accelerator())


def gradients(run):
    """The encoder's and the head's gradients of one batch, before any step."""
    found = {}
    run.step = lambda factor: found.update(
        {name: value.grad.clone() for name, value in run.bare_model.named_parameters() if value.grad is not None}
    )
    run.data.batches = lambda: [list(range(12))]
    run.criterion.memory.initialize(torch.randn(30, 32), torch.arange(30) % 3)
    torch.manual_seed(5)
    run.train_epoch()
    return found


def test_the_encoder_learns_from_cross_entropy_plus_the_weighted_contrastive_loss(encoder, tmp_path):
    changes = {"curriculum": "all", "queue_size": 8}
    name = "backbone.encoder.layer.1.output.dense.weight"
    torch.manual_seed(0)
    alone, plain, half, double = (
        gradients(training(encoder, tmp_path, **changes, **more))
        for more in ({}, {"objective": "ce"}, {"contrastive_weight": 0.5}, {"contrastive_weight": 2.0})
    )
    torch.testing.assert_close(alone["head.weight"], plain["head.weight"])  # the head learns all the same
    assert (alone[name] - plain[name]).norm() > 1e-3
    # the prototypes' draw is the same, the memory's content is not: so compare differences along the weight
    assert (half[name] - plain[name]).norm() > 1e-4
    torch.testing.assert_close(double[name] - plain[name], 4 * (half[name] - plain[name]), rtol=1e-3, atol=1e-5)


def test_the_authors_clip_one_norm_over_encoder_and_head(encoder, tmp_path):
    norms = {}
    for as_authors in (True, False):
        run = training(encoder, tmp_path, as_authors=as_authors)
        for parameter in run.bare_model.parameters():
            parameter.grad = torch.full_like(parameter, 100.0) if parameter.requires_grad else None
        run.optimizer.step = lambda: None
        run.optimizer.zero_grad = lambda: None
        run.step(1.0)
        parts = {"backbone": [], "head": []}
        for name, parameter in run.bare_model.named_parameters():
            if parameter.requires_grad:
                parts[name.split(".")[0]].append(parameter.grad.flatten())
        norms[as_authors] = {part: float(torch.cat(rows).norm()) for part, rows in parts.items()}
    assert norms[False] == pytest.approx({"backbone": 5.0, "head": 5.0}, rel=1e-4)
    assert math.hypot(*norms[True].values()) == pytest.approx(5.0, rel=1e-4)
    assert norms[True]["head"] < 1


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, [0, 2]), ({"curriculum": "all"}, [0]), ({"as_authors": True}, [0, 1, 2, 3]),
        ({"as_authors": True, "curriculum": "half"}, [0, 1, 2, 3]),  # empties the memory
    ],
)  # fmt: skip
def test_the_pass_for_difficulties_and_class_means_comes_as_often_as_stated(encoder, tmp_path, changes, passes):
    run = training(encoder, tmp_path, **changes)
    assert [epoch for epoch in range(4) if run.data.needs_pass(epoch)] == passes


def test_a_past_query_has_the_difficulty_of_its_turn(encoder, tmp_path):
    data = training(encoder, tmp_path).data
    data.sampler.set_epoch(0, torch.arange(48.0))
    data.samples = [*data.samples, data.samples[7]]
    assert data.observed().tolist() == [*range(48), 7]


def test_processes_share_the_batches_of_an_epoch_and_have_as_many(encoder, tmp_path):
    data = training(encoder, tmp_path, **DIALOGUES, curriculum="all").data

    def batches(processes, process):
        data.processes, data.process = processes, process
        return data.batches()

    data.prepare(1)
    whole = batches(1, 0)
    assert len(whole) == 12  # a dialogue of four turns each
    shares = [batches(5, process) for process in range(5)]
    assert [len(share) for share in shares] == [2] * 5  # two batches are left out
    shared = [batch for share in shares for batch in share]
    assert all(batch in whole for batch in shared)
    assert len({tuple(batch) for batch in shared}) == 10
    assert [len(batches(20, process)) for process in range(20)] == [1] * 20  # some more than once


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_is_the_method_of_its_name(encoder, tmp_path, objective):
    run = training(encoder, tmp_path, objective=objective, temperature=0.2)
    memory = run.criterion.memory
    memory.initialize(torch.randn(30, 32), torch.arange(30) % 3)
    drawn, exist = memory.prototypes(advance=False)
    features, labels = torch.randn(8, 32, requires_grad=True), torch.tensor([0, 1, 1, 2, 0, 2, 1, 0])
    run.criterion.train()
    loss = run.contrastive_loss(features, labels)
    assert int(memory.cursors.sum()) == 8  # the curriculum measures against its class means
    if objective == "ce":
        assert float(loss) == 0
        return
    prototypes = {"supcon": None, "bcl": run.bare_model.prototypes, "eacl": run.bare_model.prototypes}
    options = {**METHODS[objective], "temperature": 0.4 if objective in ("supcon", "bcl") else 0.2}
    expected = supervised_prototypical_contrastive_loss(features, labels, prototypes.get(objective, drawn), **options)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert features.grad.norm() > 0
    if objective in ("bcl", "eacl"):
        assert run.bare_model.prototypes.grad.norm() > 0
    else:
        assert run.bare_model.prototypes is None
    assert bool(exist.all())
