"""Runs are kept once, and arms are compared on what was kept."""

import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import erc_runs  # noqa: E402

from erc.evaluate import score  # noqa: E402
from erc.settings import HEADS, Settings  # noqa: E402

GOLD = {"dev": "ab" * 6, "test": "aabb" * 3}


def run_folder(root, settings, guesses):
    """A finished run whose heads all predict `guesses`, one letter a turn; four turns are a dialogue."""
    folder = root / f"{settings.objective}-{settings.seed}"
    folder.mkdir(parents=True)
    scores = {"weighted_f1": 0.5, "macro_f1": 0.25, "per_class_f1": {"a": 0.5, "b": 0.5}}
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
    other = Settings(objective="ce", class_weights=True, freeze_embeddings=False, epochs=2, seed=4)
    assert erc_runs.options(asdict(other)) == (
        "--no-freeze-embeddings --objective ce --contrastive-weight none --class-weights --curriculum all --epochs 2"
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
    assert [line["head"] for line in lines] == list(erc_runs.KEPT)
    for line in lines:  # all right, against all "a" of which half are right: 1 against (2/3 + 0) / 2
        assert (line["seeds"], line["difference"], line["95% interval"]) == ("2", "+66.7", "+66.7 to +66.7")
    assert erc_runs.compare(rows, kept, "test")[0]["difference"] == "+16.7"  # half right, of either class


def test_what_is_published_belongs_together():
    rows, kept = erc_runs.load(BENCHMARKS / "results/erc_runs.csv", BENCHMARKS / "results/erc_predictions.npz")
    assert rows
    for row in rows:
        name = erc_runs.name_of(row)
        for split in GOLD:
            gold = kept[f"{row['dataset']}/{split}/gold"]
            for head in erc_runs.KEPT:
                found = score(gold, kept[f"{name}/{split}/{head}"], "abcdefg"[: gold.max() + 1])
                for metric in ("weighted-F1", "macro-F1"):
                    stored = float(row[f"{split} {head} {metric}"])
                    assert stored == pytest.approx(found[metric.replace("-", "_").lower()], abs=1e-4)
