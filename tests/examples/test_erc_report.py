"""The page and the numbers of one run and of a comparison, and the comparison itself."""

import csv
import importlib.metadata
import itertools
import json
import re
import shutil
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import reproduce
import spcl_loss
from erc import report, train
from erc.report import Arm, Run, by_dataset, collect, difference, label, spread
from erc.settings import Settings


def test_the_environment_needs_no_installed_distribution(monkeypatch):
    # run from the source tree, the library has no metadata
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    found = report.environment()
    assert found["spcl-loss"] == spcl_loss.__version__
    assert found["torch"] == torch.__version__


def test_scores_are_in_percent_with_the_deviation_of_a_sample():
    assert spread([0.01, 0.03]) == "2.00 ± 1.41"
    assert spread([0.5]) == "50.00"


def test_an_arm_is_named_by_what_differs():
    settings = [
        Settings(contrastive_weight=None, curriculum="on"),
        Settings(contrastive_weight=None),
        Settings(objective="supcon", contrastive_weight=None, curriculum="half"),
        Settings(objective="ce"),
        Settings(seed=7),
    ]
    assert [label(one, settings) for one in settings] == [
        "SPCL, curriculum", "SPCL", "SupCon, random half", "cross-entropy", "SPCL x 0.2 + cross-entropy",
    ]  # fmt: skip
    other = [Settings(), Settings(temperature=0.1)]
    assert [label(one, other) for one in other] == [
        "SPCL x 0.2 + cross-entropy, temperature 0.05", "SPCL x 0.2 + cross-entropy, temperature 0.1",
    ]  # fmt: skip


# The arms of a comparison


@pytest.mark.parametrize("arm", reproduce.ARMS)
@pytest.mark.parametrize("preset", ["cpu", "mpnet", "paper", "paper-meld"])
def test_every_arm_has_valid_settings_under_every_preset(arm, preset):
    settings = reproduce.arm_settings(reproduce.ARMS[arm], preset, "IEMOCAP", 3)
    assert (settings.seed, settings.dataset) == (3, "IEMOCAP")
    spcls = arm.startswith("spcl") or arm == "both"
    assert (settings.easy_threshold == 0.3) == (spcls and preset.startswith("paper"))  # it is SPCL's alone


def test_arms_see_as_much_data_as_the_preset_unless_they_name_their_epochs():
    def epochs(options, preset="cpu", common=()):
        return reproduce.arm_settings(options, preset, "MELD", 0, common).epochs

    halves = ("spcl", "spcl-half")  # half the data an epoch
    assert {arm: epochs(own) for arm, own in reproduce.ARMS.items()} == {
        arm: 6 if arm in halves else 3 for arm in reproduce.ARMS
    }
    assert {arm: epochs(own, "paper") for arm, own in reproduce.ARMS.items()} == {
        arm: 16 if arm in halves else 8 for arm in reproduce.ARMS
    }
    assert epochs("--curriculum all", "paper", ["--epochs", "1"]) == 1
    assert epochs("--curriculum on --epochs 3") == 3


def test_the_arm_has_the_last_word_and_the_common_options_the_second():
    settings = reproduce.arm_settings("--batch-size 4", "cpu", "MELD", 0, ["--batch-size", "8", "--max-length", "64"])
    assert (settings.batch_size, settings.max_length, settings.context_turns) == (4, 64, 4)
    own, common = (
        reproduce.arm_settings("--queue-size 99", "paper", "MELD", 0, ["--objective", "spdcl"]),
        ["--epochs", "2"],
    )
    assert (own.objective, own.queue_size, own.easy_threshold) == ("spdcl", 99, None)
    assert reproduce.arm_settings("--objective spcl", "paper", "MELD", 0, common).easy_threshold == 0.3


def test_seeds_come_first_so_that_an_unfinished_comparison_has_all_arms():
    runs = reproduce.grid(["MELD", "IEMOCAP"], {"ce": "--objective ce", "own": "--epochs 5"}, [0, 1], "cpu", [])
    assert list(runs)[:4] == ["meld_ce_0", "iemocap_ce_0", "meld_own_0", "iemocap_own_0"]
    assert [settings.seed for settings in runs.values()] == [0] * 4 + [1] * 4


# A comparison from end to end


COMMON = [
    "--limit", "8", "--epochs", "1", "--max-length", "40", "--precision", "fp32", "--queue-size", "8",
    "--support-size", "2",
]  # fmt: skip


def command(encoder, output, *options):
    start = ["--practice", "--seeds", "0", "1", "--preset", "cpu", "--output", str(output)]
    return reproduce.main([*start, *options, "--", "--encoder", encoder, *COMMON])


ARMS = ["--arms", "ce", "spcl", "--arm", "both=--contrastive-weight 0.5 --curriculum all --epochs 1"]


@pytest.fixture(scope="module")
def finished(encoder, tmp_path_factory):
    output = tmp_path_factory.mktemp("grid")
    assert command(encoder, output, *ARMS) == 0
    return output


@pytest.fixture
def arms(finished):
    ((_, arms),) = by_dataset(collect([finished])).items()
    return arms


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_page(folder):
    return re.sub(" +", " ", (folder / "report.md").read_text(encoding="utf-8"))


def test_the_page_shows_every_arm_with_its_figures(encoder, finished, arms):
    page = read_page(finished)
    assert f"## practice corpus, {Path(encoder).name}\n" in page  # without the folders that lead to it
    assert f"/{Path(encoder).name}" not in page
    assert "**These runs saw only part of the dataset." in page
    files = re.findall(r"!\[[^\]]+\]\((\S+)\)", page)
    assert files == ["confusion.png"]
    assert (finished / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert {arm.label for arm in arms} >= {"SPCL, curriculum, epochs 2", "cross-entropy, epochs 1"}
    assert sum(len(arm.runs) for arm in arms) == 6
    for arm in arms:
        assert f"| {arm.label} | 2 | lda | {spread(arm.scores('dev', 'lda', 'weighted_f1'))} |" in page
        means = [100 * statistics.fmean(arm.scores(split, "prototype", "weighted_f1")) for split in ("dev", "test")]
        assert f"{means[0]:.2f} / {means[1]:.2f}" in page
        of_classes = (spread(arm.scores("test", "lda", "per_class_f1", name)) for name in arm.classes)
        assert f"| {arm.label} | {' | '.join(of_classes)} |" in page
    dev = [statistics.fmean(arm.scores("dev", "lda", "weighted_f1")) for arm in arms]
    assert dev == sorted(dev, reverse=True)
    base = next(arm for arm in arms if arm.settings.objective == "ce")
    for arm in arms:
        if arm is not base:
            found = difference(arm, base)
            assert f"| {100 * found['difference']:+.2f} | {100 * found['low']:+.2f} to" in page
            points = [np.mean(one.scores("test", "lda", "weighted_f1")) for one in (arm, base)]
            assert found["difference"] == pytest.approx(points[0] - points[1])
            assert found["low"] <= found["difference"] <= found["high"]


def test_the_figure_has_all_arms_on_an_opaque_ground(arms):
    figure = report.confusion(arms)
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert [" ".join(axes.get_title().split()) for axes in figure.axes] == [arm.label for arm in arms]
    assert all(axes.get_ylabel() for axes in figure.axes)


def test_long_names_of_arms_are_neither_cut_off_nor_drawn_over_one_another(arms):
    arms = [replace(arm, label=arm.label + ", an_option_with_a_long_name 0.5" * 4) for arm in arms]
    figure = report.confusion(arms)
    FigureCanvasAgg(figure).draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2) if a.width and b.width)


def test_confusion_shows_the_shares_of_each_true_class(finished, arms):
    arm = next(arm for arm in arms if arm.settings.objective == "ce")
    counts = Counter()
    for seed in (0, 1):
        with (finished / "runs" / f"practice-corpus_ce_{seed}" / "predictions.csv").open(encoding="utf-8") as file:
            counts.update((row["gold"], row["lda"]) for row in csv.DictReader(file) if row["split"] == "test")
    sizes = {gold: sum(counts[gold, found] for found in arm.classes) for gold in arm.classes}
    expected = [f"{counts[gold, found] / (sizes[gold] or 1):.0%}" for gold in arm.classes for found in arm.classes]
    (panel,) = report.confusion([arm]).axes
    assert [text.get_text() for text in panel.texts] == expected
    right = sum(counts[name, name] for name in arm.classes)
    assert right / counts.total() == pytest.approx(np.mean(arm.scores("test", "lda", "accuracy")))


def test_arms_of_other_test_turns_or_seeds_are_not_compared(arms):
    one, other = arms[:2]
    seeded = tuple(replace(run, settings=replace(run.settings, seed=9)) for run in other.runs)
    assert difference(one, Arm("other seeds", other.settings, seeded)) is None
    run = other.runs[0]
    shorter = Run(run.folder, run.settings, run.result)
    shorter.__dict__["test"] = {name: column[1:] for name, column in run.test.items()}
    assert difference(one, Arm("other turns", other.settings, (shorter,))) is None


def test_a_finished_comparison_trains_nothing_again(encoder, finished, monkeypatch):
    monkeypatch.setattr(train, "Training", lambda *_: pytest.fail("trained again"))
    before = read_page(finished)
    assert command(encoder, finished, *ARMS) == 0
    assert read_page(finished) == before


def test_an_interrupted_comparison_goes_on_with_the_run_that_it_was_in(encoder, finished, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "score_test", stop)
        assert command(encoder, tmp_path, "--arms", "ce", "--seeds", "0") == 130
    own, whole = (folder / "runs" / "practice-corpus_ce_0" for folder in (tmp_path, finished))
    assert not (own / "result.json").exists()
    assert list(own.glob("checkpoint-*"))
    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "train_epoch", lambda self: pytest.fail("trained again"))
        assert command(encoder, tmp_path, "--arms", "ce", "--seeds", "0") == 0
    assert read(own / "result.json")["test"] == read(whole / "result.json")["test"]
    predictions = "predictions.csv"
    assert (own / predictions).read_text() == (whole / predictions).read_text()


def test_the_report_can_be_made_from_folders_of_any_name(finished, tmp_path):
    assert reproduce.main(["--report", str(finished / "runs"), "--output", str(tmp_path)]) == 0
    assert read_page(tmp_path) == read_page(finished)


def test_a_run_of_an_earlier_version_is_left_out_of_the_report(finished, tmp_path, capsys):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    shutil.copytree(finished / "runs" / "practice-corpus_ce_0", tmp_path / "runs" / "former")
    settings = tmp_path / "runs" / "former" / "settings.json"
    settings.write_text(json.dumps(read(settings) | {"memory_candidates": 16}))
    assert reproduce.main(["--report", str(tmp_path / "runs"), "--output", str(tmp_path)]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: "))
    assert str(settings) in line
    assert read_page(tmp_path) == read_page(finished)


def test_of_two_runs_with_the_same_settings_one_counts_and_the_other_is_named(finished, tmp_path, capsys):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    one, again = (tmp_path / "runs" / name for name in ("practice-corpus_ce_0", "practice-corpus_ce_0-again"))
    shutil.copytree(one, again)
    assert reproduce.main(["--report", str(tmp_path / "runs"), "--output", str(tmp_path)]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: "))
    assert line == f"left out: {one} has the settings and the seed of {again}"
    assert read_page(tmp_path) == read_page(finished)


@pytest.mark.parametrize(
    ("options", "output", "error"),
    [
        (["--report", "."], "out", "error: no finished run in ."),
        (["--arm", "nameless"], "out", "error: --arm must be NAME=OPTIONS; received 'nameless'\n"),
        (["--arm", "open=--encoder 'x"], "out", 'received "--encoder \'x": No closing quotation\n'),
        (["--", "--epoch", "3", "--colour", "red"], "out", "unrecognized arguments: --colour red"),
        (["--", "--seed", "3"], "out", "error: --seeds names the seeds of all arms; received --seed 3"),
        (["--arm", "own=--seed 3"], "out", "received '--seed 3': --seeds names the seeds of all arms; receiv"),
        ([], "file/out", "file is a file: --output must name a folder\n"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, options, output, error):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    try:
        code = reproduce.main(["--practice", "--output", output, *options])
    except SystemExit as exit:  # of argparse
        code = exit.code
    said = capsys.readouterr().err
    assert code == 2 and error in said and said.count("\n") == 1
