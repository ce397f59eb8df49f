"""The grid runs each arm once, continues where it stopped, and its report says what the runs say."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import erc_tiny
from erc import grid_command
from erc.arms import ALL_ARMS, ARMS, STUDIES, arm_settings, labels
from erc.collect import by_dataset, collect, confusion, prototype_cosines, spread
from erc.grid import Job, jobs, run
from erc.grid_report import representatives, sweeps
from erc.settings import Settings


@pytest.mark.parametrize("arm", ALL_ARMS)
@pytest.mark.parametrize("name", ["cpu", "gpu", "mpnet", "paper"])
def test_every_arm_has_valid_settings_under_every_preset(arm, name):
    settings = arm_settings(arm, name, "IEMOCAP", 3, {})
    assert (settings.seed, settings.dataset) == (3, "IEMOCAP")
    assert {name: getattr(settings, name) for name in ALL_ARMS[arm]} == ALL_ARMS[arm]


def test_arms_without_a_curriculum_see_as_much_data_as_those_with_one():
    epochs = {arm: arm_settings(arm, "cpu", "MELD", 0, {}).epochs for arm in ARMS}
    assert epochs == {"cur": 4, "half": 4, "all": 2, "ce": 2, "supcon": 2, "spdcl": 2, "bcl": 2, "eacl": 2}
    assert arm_settings("all", "cpu", "MELD", 0, {"epochs": 1}).epochs == 1


def test_the_arm_has_the_last_word_and_the_command_line_the_second():
    settings = arm_settings("spcl_b4", "gpu", "MELD", 0, {"batch_size": 8, "max_length": 64})
    assert (settings.batch_size, settings.max_length, settings.context_turns) == (4, 64, 4)


def test_equal_arms_are_run_once_and_seeds_come_first():
    grid = jobs(["MELD", "IEMOCAP"], ["cur", "all", *STUDIES["batch"], *STUDIES["memory"]], [0, 1], "cpu", {})
    assert len({(job.settings, job.name) for job in grid}) == len({job.settings for job in grid}) == len(grid)
    assert [job.name for job in grid[:3]] == ["meld_cur_0", "iemocap_cur_0", "meld_all_0"]
    assert not {"meld_spcl_b16_0", "meld_spcl_q256_s64_0"} & {job.name for job in grid}  # they are "all"
    seeds = [job.settings.seed for job in grid]
    assert seeds == sorted(seeds)


def test_an_arm_is_named_by_what_is_unusual_about_it():
    all_data = Settings(curriculum="all", epochs=3)
    settings = [
        Settings(),
        all_data,
        replace(all_data, objective="supcon"),
        replace(all_data, batch_size=4),
        replace(all_data, objective="supcon", batch_size=4, epochs=5),
        replace(all_data, objective="ce"),
    ]
    assert labels(settings) == [
        "SPCL, curriculum",
        "SPCL",
        "SupCon",
        "SPCL, batch size 4",
        "SupCon, epochs 5, batch size 4",
        "cross-entropy",
    ]


def test_of_two_equally_common_values_the_default_goes_unnamed():
    short, long = Settings(), Settings(max_length=384)
    assert labels([short, long]) == ["SPCL, curriculum", "SPCL, curriculum, max length 384"]
    assert labels([long, short]) == ["SPCL, curriculum, max length 384", "SPCL, curriculum"]


def test_the_deviation_is_that_of_a_sample():
    assert spread([1.0, 3.0]) == {"mean": 2.0, "sd": math.sqrt(2)}
    assert spread([1.0]) == {"mean": 1.0, "sd": None}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return erc_tiny.encoder(tmp_path_factory.mktemp("encoder"))


def command(encoder, output, *options):
    return grid_command.main(
        None,
        [
            "--practice", "--limit", "8", "--epochs", "2", "--max-length", "40", "--encoder", encoder,
            "--seeds", "0", "1", "--precision", "fp32", "--queue-size", "8", "--support-size", "2",
            "--output", str(output), *options,
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(encoder, tmp_path_factory):
    output = tmp_path_factory.mktemp("grid")
    assert command(encoder, output, "--arms", "cur", "ce", "all", "spcl_b4", "supcon_b4") == 0
    return output


def test_results_hold_what_the_runs_hold(finished):
    content = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert (content["made"]["runs"], content["made"]["planned"]) == (10, 10)
    (group,) = content["datasets"]
    assert group["dataset"] == "practice corpus"
    arms = {arm["arm"]: arm for arm in group["arms"]}
    assert set(arms) == {"SPCL, curriculum", "cross-entropy", "SPCL", "SPCL, batch size 4", "SupCon, batch size 4"}
    for label, name in (("SPCL, curriculum", "cur"), ("cross-entropy", "ce")):
        results = [read(finished / "runs" / f"practice-corpus_{name}_{seed}" / "result.json") for seed in (0, 1)]
        arm = arms[label]
        head = arm["selected_by"]
        assert head == ("linear" if name == "ce" else "prototype")
        test = [result["test"][head]["weighted_f1"] for result in results]
        scores = arm["scores"]["test"][head]["weighted_f1"]
        assert scores["by_seed"] == dict(zip("01", test, strict=True))
        assert scores["mean"] == pytest.approx(statistics.fmean(test))
        assert scores["sd"] == pytest.approx(statistics.stdev(test))
        dev = [result["dev"][head]["weighted_f1"] for result in results]
        assert arm["best_seed_by_dev"]["seed"] == dev.index(max(dev))
        counts = np.array(arm["confusion"]["counts"])
        assert counts.sum() == sum(1 for result in results for _ in predictions(finished, name, result["seed"]))
        right = sum(result["test"][head]["accuracy"] for result in results) * counts.sum() / 2
        assert np.trace(counts) == pytest.approx(right)
        cosines = np.array(arm["prototype_cosine"], dtype=float)
        assert np.allclose(cosines, cosines.T, equal_nan=True)
        assert np.nanmax(np.abs(np.diag(cosines) - 1)) < 1e-5
        assert arm["environments"][0]["torch"]
    assert str(Path.home()) not in json.dumps(content)
    assert Path(arms["SPCL"]["settings"]["encoder"]).name == arms["SPCL"]["settings"]["encoder"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def predictions(output, arm, seed):
    return (output / "runs" / f"practice-corpus_{arm}_{seed}" / "predictions.csv").read_text().splitlines()[1:]


def test_the_page_needs_no_other_file(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    for title in (
        "At a glance", "Test scores", "Curves", "F1 by class", "Confusion", "Representations", "Prototypes",
        "Batch size",
    ):  # fmt: skip
        assert title in page
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == 7
    assert "no scores of it" in page  # the runs were limited
    assert "The grid is not finished" not in page
    assert "http" not in page


def test_a_finished_grid_trains_nothing_again(encoder, finished, monkeypatch):
    from erc import training

    def train(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", train)
    before = (finished / "results.json").read_text(encoding="utf-8")
    assert command(encoder, finished, "--arms", "cur", "ce", "all", "spcl_b4", "supcon_b4") == 0
    after = (finished / "results.json").read_text(encoding="utf-8")
    assert json.loads(after)["datasets"] == json.loads(before)["datasets"]


def test_an_interrupted_grid_goes_on_with_the_run_that_it_was_in(encoder, finished, tmp_path, monkeypatch):
    from erc import training

    def stop(job):
        raise KeyboardInterrupt

    one = read(finished / "runs" / "practice-corpus_ce_0" / "settings.json")
    job = Job("ce", Settings(**one))
    corpora = grid_command.load_corpora(["practice corpus"], None)
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_conclude", stop)
        with pytest.raises(KeyboardInterrupt):
            list(run([job], tmp_path, corpora))
    assert not (tmp_path / "ce" / "result.json").exists()
    ((_, result),) = run([job], tmp_path, corpora)
    whole = read(finished / "runs" / "practice-corpus_ce_0" / "result.json")
    assert result["test"] == whole["test"]


def test_several_workers_give_the_same_runs(encoder, finished, tmp_path):
    assert command(encoder, tmp_path, "--arms", "ce", "cur", "--workers", "2") == 0
    for path in (tmp_path / "runs").glob("*/predictions.csv"):
        assert path.read_text() == (finished / "runs" / path.parent.name / path.name).read_text()
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_the_easy_threshold_of_the_paper_preset_is_spcls():
    thresholds = {arm: arm_settings(arm, "paper", "MELD", 0, {}).easy_threshold for arm in ARMS}
    assert {arm for arm, threshold in thresholds.items() if threshold is not None} == {"cur", "all", "half"}


def test_the_report_can_be_made_from_folders_of_any_name(finished, tmp_path):
    assert grid_command.main(None, ["--report", str(finished / "runs"), "--output", str(tmp_path)]) == 0
    assert read(tmp_path / "results.json")["datasets"] == read(finished / "results.json")["datasets"]
    assert read(tmp_path / "results.json")["made"]["planned"] is None


def test_runs_of_other_calls_count_as_planned_too(finished, tmp_path):
    names = ["practice-corpus_cur_0", "practice-corpus_half_0"]  # one of them is there, with nine others
    grid_command.report([finished / "runs"], tmp_path, names, None)
    made = read(tmp_path / "results.json")["made"]
    assert (made["runs"], made["planned"]) == (10, 11)


def test_without_runs_the_error_names_the_folder(tmp_path, capsys):
    assert grid_command.main(None, ["--report", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert f"error: no finished run in {tmp_path}" in capsys.readouterr().err


def test_figures_show_the_arms_that_the_paper_is_about(finished):
    ((_, arms),) = by_dataset(collect([finished])).items()
    shown = representatives(arms)
    assert [arm.settings.objective for arm in shown] == ["ce", "spcl"]
    ((setting, across, members),) = list(sweeps(arms))
    assert (setting, across) == ("batch_size", "objective")
    assert {(arm.settings.objective, arm.settings.batch_size) for arm in members} == {
        ("spcl", 16), ("spcl", 4), ("supcon", 4),
    }  # fmt: skip


def test_confusion_counts_true_by_predicted(finished):
    ((_, arms),) = by_dataset(collect([finished])).items()
    arm = next(arm for arm in arms if arm.settings.objective == "ce")
    classes = list(arm.class_scores("linear"))
    rows = [line.split(",") for seed in (0, 1) for line in predictions(finished, "ce", seed)]
    expected = np.zeros((len(classes), len(classes)), dtype=int)
    for _, _, gold, _, linear in rows:
        expected[classes.index(gold), classes.index(linear)] += 1
    assert (confusion(arm.runs, "linear", classes) == expected).all()
    assert prototype_cosines(arm.best).shape == (len(classes), len(classes))
