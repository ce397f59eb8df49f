"""Runs are kept once, and arms are compared on what was kept."""

import csv
import json
from dataclasses import asdict, replace

import erc_runs
import numpy as np
import pytest

import erc_tiny
from erc.evaluate import f1_of_counts
from erc.practice import PRACTICE, practice_corpus
from erc.settings import HEADS, Settings
from erc.train import train

GOLD = {"dev": "ab" * 6, "test": "aabb" * 3}


def run_folder(root, settings, guesses):
    """A finished run whose heads all predict `guesses`, one letter a turn; four turns are a dialogue."""
    folder = root / f"{settings.objective}-{settings.seed}"
    folder.mkdir(parents=True)
    scores = {"weighted_f1": 0.5, "macro_f1": 0.25, "per_class_f1": {"a": 0.5, "b": 0.5, "c": 0.0}}
    result = {
        "train_samples": 7, "epochs": settings.epochs, "best_epoch": 2, "selected_by": "lda", "seconds": 1.5,
        "precision": "bf16", "environment": {"commit": "abc", "threads": 1, "torch": "2.13"},
        **{split: dict.fromkeys(HEADS, scores) for split in GOLD},
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "dialogue", "utterance", "gold", *HEADS])
        for split, gold in GOLD.items():
            for i, label in enumerate(gold):
                writer.writerow([split, i // 4, i, label, *[guesses[i]] * len(HEADS)])


def test_options_spell_the_arm_whatever_the_defaults_are():
    assert erc_runs.options(asdict(Settings())) == (
        "--objective spcl --contrastive-weight 0.2 --curriculum all --epochs 3"
    )
    other = Settings(objective="ce", freeze_embeddings=False, epochs=2, seed=4)
    assert erc_runs.options(asdict(other)) == (
        "--no-freeze-embeddings --objective ce --contrastive-weight none --curriculum all --epochs 2"
    )


def test_runs_are_kept_once_and_compared_seed_by_seed(tmp_path):
    table, archive, runs = tmp_path / "runs.csv", tmp_path / "runs.npz", tmp_path / "runs"
    for seed in (0, 1):
        run_folder(runs, Settings(objective="ce", seed=seed), "a" * 12)
        run_folder(runs, Settings(seed=seed), GOLD["dev"])
    run_folder(runs, Settings(seed=2), GOLD["dev"])  # no cross-entropy of this seed
    assert erc_runs.add([runs], "2026-01-01", "a machine", table, archive) == 5
    assert erc_runs.add([runs], "2026-01-02", "a machine", table, archive) == 0
    rows, kept = erc_runs.load(table, archive)
    assert len(rows) == 5 and {row["date"] for row in rows} == {"2026-01-01"}
    assert rows[0]["command"].startswith("python examples/erc_meld.py --seed 0 ")
    lines = erc_runs.compare(rows, kept, "dev")
    assert [line["head"] for line in lines] == [*erc_runs.KEPT, "best on dev: linear / linear"]
    (row,) = erc_runs.overview(lines, "macro")
    assert row["seeds"] == "2"
    assert {row[head] for head in (*erc_runs.KEPT, "best on dev")} == {"+66.7 (+66.7 to +66.7)"}
    for line in lines:  # all right, against all "a" of which half are right: 1 against (2/3 + 0) / 2
        assert line["seeds"] == "2"
        for average in ("weighted", "macro"):  # the classes are of one size
            assert line[f"difference, {average}"] == "+66.7"
            assert line[f"95% interval, {average}"] == "+66.7 to +66.7"
    assert erc_runs.compare(rows, kept, "test")[0]["difference, weighted"] == "+16.7"  # half right, of either class


def test_the_head_is_chosen_again_in_every_draw(tmp_path):
    table, archive, runs = tmp_path / "runs.csv", tmp_path / "runs.npz", tmp_path / "runs"
    run_folder(runs, Settings(objective="ce"), GOLD["test"])
    run_folder(runs, Settings(), GOLD["test"])
    erc_runs.add([runs], "2026-01-01", "a machine", table, archive)
    rows, kept = erc_runs.load(table, archive)
    name = next(erc_runs.name_of(row) for row in rows if "spcl" in row["arm"])
    dev, test = kept["MELD/dev/gold"], kept["MELD/test/gold"]
    # On dev two heads are right in other dialogues, one of them in more. On test the better one is always wrong.
    kept[f"{name}/dev/lda"] = np.where(np.arange(12) < 8, dev, 1 - dev)
    kept[f"{name}/dev/prototype"] = np.where(np.arange(12) < 8, 1 - dev, dev)
    kept[f"{name}/dev/linear"], kept[f"{name}/test/lda"] = 1 - dev, 1 - test
    best = erc_runs.compare(rows, kept, "test")[-1]
    assert best["head"] == "best on dev: lda / linear"
    assert (best["difference, weighted"], best["95% interval, weighted"]) == ("-100.0", "-100.0 to +0.0")


def test_a_predicted_class_that_no_turn_has_is_an_error(tmp_path):
    table, archive, runs = tmp_path / "runs.csv", tmp_path / "runs.npz", tmp_path / "runs"
    run_folder(runs, Settings(objective="ce"), GOLD["dev"])
    run_folder(runs, Settings(), "ac" * 6)  # the first half is right; c is the last class, and nobody's
    erc_runs.add([runs], "2026-01-01", "a machine", table, archive)
    assert {line["difference, weighted"] for line in erc_runs.compare(*erc_runs.load(table, archive))} == {"-50.0"}


@pytest.mark.parametrize(("owner", "write"), [(np, "savez_compressed"), (csv.DictWriter, "writerows")])
def test_a_kill_while_runs_are_added_loses_none(owner, write, tmp_path, monkeypatch):
    table, archive, runs = tmp_path / "runs.csv", tmp_path / "runs.npz", tmp_path / "runs"
    run_folder(runs, Settings(seed=0), GOLD["dev"])
    erc_runs.add([runs], "2026-01-01", "a machine", table, archive)
    run_folder(runs, Settings(seed=1), GOLD["test"])

    def killed(*arguments, **arrays):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, write, killed)
        with pytest.raises(KeyboardInterrupt):
            erc_runs.add([runs], "2026-01-02", "a machine", table, archive)
    assert [row["date"] for row in erc_runs.load(table, archive)[0]] == ["2026-01-01"]
    assert erc_runs.add([runs], "2026-01-03", "a machine", table, archive) == 1
    rows, kept = erc_runs.load(table, archive)
    assert {erc_runs.name_of(row) + "/dev/lda" for row in rows} <= set(kept) and len(rows) == 2


def test_a_row_names_the_encoder_and_its_command_says_where_it_lay(tmp_path):
    run_folder(tmp_path / "runs", Settings(), GOLD["dev"])
    run_folder(tmp_path / "runs", Settings(encoder="microsoft/mpnet-base", seed=1), GOLD["dev"])
    table, archive = tmp_path / "runs.csv", tmp_path / "runs.npz"
    erc_runs.add([tmp_path / "runs"], "2026-01-01", "a machine", table, archive)
    commands = {row["encoder"]: row["command"] for row in erc_runs.load(table, archive)[0]}
    assert " --encoder microsoft/mpnet-base " in commands["mpnet-base"]
    assert "--encoder" not in commands[Settings().encoder]
    run_folder(tmp_path / "again", Settings(encoder="models/mpnet-base", seed=1), GOLD["dev"])
    assert erc_runs.add([tmp_path / "again"], "2026-01-01", "a machine", table, archive) == 0


def test_a_run_with_a_setting_of_an_earlier_version_is_an_arm_of_its_own(tmp_path):
    table, archive, runs = tmp_path / "runs.csv", tmp_path / "runs.npz", tmp_path / "runs"
    run_folder(runs / "now", Settings(), GOLD["dev"])
    run_folder(runs / "former", Settings(), GOLD["dev"])
    (path,) = (runs / "former").glob("*/settings.json")
    path.write_text(json.dumps(asdict(Settings()) | {"memory_candidates": 16, "class_weights": False}))
    assert erc_runs.add([runs], "2026-01-01", "a machine", table, archive) == 2
    assert erc_runs.add([runs], "2026-01-02", "a machine", table, archive) == 0
    plain = erc_runs.options(asdict(Settings()))
    assert {row["arm"] for row in erc_runs.load(table, archive)[0]} == {plain, f"{plain} --memory-candidates 16"}


def test_a_run_on_a_share_is_scored_on_the_dialogues_that_it_did_not_draw(tmp_path):
    corpus, folder = practice_corpus().first(12), tmp_path / "run"
    encoder = erc_tiny.encoder(tmp_path / "encoder")
    settings = erc_tiny.settings(encoder, dataset=PRACTICE, limit=12, train_fraction=0.5, epochs=1, inputs="dialogues")
    drawn = {dialogue.id for dialogue in corpus.part(0.5, settings.seed).train}
    rest = tuple(dialogue for dialogue in corpus.train if dialogue.id not in drawn)
    train(settings, replace(corpus, dev=rest), folder)  # so the run itself writes down what it says of the rest
    scores, kept = erc_runs.score_rest(folder)
    written = erc_runs.read_predictions(folder / "predictions.csv", "dev", list(corpus.labels))
    scored = np.isin(kept["dialogue"], [dialogue.id for dialogue in rest])
    assert 0 < scored.sum() < len(scored)
    for name in ("gold", "dialogue", *erc_runs.KEPT):
        assert (kept[name][scored] == written[name]).all()
    for head in erc_runs.KEPT:
        assert (kept[head][~scored] == erc_runs.NOT_SCORED).all()
    result = json.loads((folder / "result.json").read_text())
    for head in HEADS:
        assert scores[head]["weighted_f1"] == pytest.approx(result["dev"][head]["weighted_f1"], abs=1e-12)


def test_what_is_published_belongs_together():
    rows, kept = erc_runs.load(erc_runs.RESULTS / "erc_runs.csv", erc_runs.RESULTS / "erc_predictions.npz")
    assert rows
    for row in rows:
        name = erc_runs.name_of(row)
        assert "/" not in row["encoder"]
        for split in erc_runs.SPLITS if float(row["train_fraction"]) < 1 else GOLD:
            gold = kept[f"{row['dataset']}/{split}/gold"].astype(int)
            classes = gold.max() + 1
            for head in erc_runs.KEPT:
                guess = kept[f"{name}/{split}/{head}"]
                scored = guess != erc_runs.NOT_SCORED
                counts = np.bincount(classes * gold[scored] + guess[scored], minlength=classes**2)
                for average, found in f1_of_counts(counts.reshape(classes, classes)).items():
                    assert float(row[f"{split} {head} {average}-F1"]) == pytest.approx(found, abs=1e-4)
