"""examples/long_tail.py: its data, its grid, what chooses, and a tiny run of it and of its benchmark."""

import csv
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

import long_tail
import long_tail_report
from long_tail import ARMS, CLASSES, RATIO, SIZES, Arm, Run
from long_tail_report import GROUPS

HEADS = ("own", "own, adjusted", "class means", "refitted linear")


@pytest.mark.parametrize("name", SIZES)
def test_only_the_training_rows_have_a_long_tail(name):
    largest, held_out, test = SIZES[name]
    data = long_tail.make_data(name, seed=3)
    sizes = data["train"][1].bincount().tolist()
    assert sizes == long_tail.class_sizes(largest) == sorted(sizes, reverse=True)
    assert sizes[0] == RATIO * sizes[-1]
    assert data["held out"][1].bincount().tolist() == [held_out] * CLASSES
    assert data["test"][1].bincount().tolist() == [test] * CLASSES
    assert all(inputs.shape[0] == labels.shape[0] for inputs, labels in data.values())


def test_the_groups_are_all_classes_once():
    assert [label for group in GROUPS.values() for label in range(CLASSES)[group]] == list(range(CLASSES))


@pytest.mark.parametrize("name", SIZES)
def test_no_row_is_in_two_parts(name):
    inputs = torch.cat([inputs for inputs, _ in long_tail.make_data(name, seed=0).values()])
    targets = np.repeat(np.arange(CLASSES), sum(SIZES[name]))
    parts = long_tail.split(targets, np.random.default_rng(0), SIZES[name])
    rows = np.concatenate([row for part in parts.values() for row in part])
    assert len(rows) == len(np.unique(rows)) == len(inputs)
    for of_class in zip(*parts.values(), strict=True):  # the parts agree on which class is which
        assert len(np.unique(targets[np.concatenate(of_class)])) == 1


def test_seeds_differ_in_which_class_is_large_and_agree_with_themselves():
    first, again, other = (long_tail.make_data.__wrapped__("digits", seed)["train"][0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_class_of_signals_is_easier_to_tell_than_chance():
    inputs, labels = long_tail.make_data("signals", seed=0)["test"]
    spectrum = torch.fft.rfft(inputs).abs()  # the same wherever the curve lies
    means = torch.stack([spectrum[labels == label][::2].mean(0) for label in range(CLASSES)])
    right = torch.cdist(spectrum[1::2], means).argmin(1) == labels[1::2]
    assert right.float().mean() > 2 / CLASSES


def test_an_epoch_has_every_row_once_and_the_sampler_has_every_class_as_often():
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(long_tail.class_sizes(100)))
    torch.manual_seed(0)
    steps = list(long_tail.batches(labels, 50, 10, balanced=False))
    assert [len(step) for step in steps] == [50] * 10 and len(labels) == 250
    for epoch in (steps[:5], steps[5:]):
        assert torch.cat(epoch).unique().numel() == 250
    drawn = labels[torch.cat(list(long_tail.batches(labels, 50, 100, balanced=True)))].bincount(minlength=CLASSES)
    assert drawn.sum() == 5000
    torch.testing.assert_close(drawn, torch.full_like(drawn, 500), atol=150, rtol=0)  # seven standard deviations
    assert [len(step) for step in long_tail.batches(labels, 512, 3, balanced=False)] == [250] * 3


def test_every_method_tries_equally_many_settings_and_steps():
    runs = long_tail.all_runs([0, 1], [8, 32], ARMS, 100)
    assert len(set(runs)) == len(runs)
    tried = Counter((run.method, run.dataset, run.batch_size, run.seed) for run in runs)
    assert len(tried) == len(ARMS) * len(SIZES) * 2 * 2 and len(set(tried.values())) == 1
    assert {(run.batch_size, run.steps) for run in runs} == {(8, 200), (32, 100)}


@pytest.mark.parametrize("method", ARMS)
def test_every_method_is_scored_with_the_same_heads(method):
    line = long_tail.score(Run("digits", 32, method, 0, 0.01, 0.2, 3))
    assert tuple(line["recalls"]) == HEADS
    for parts in line["recalls"].values():
        for part, rows in (("held out", SIZES["digits"][1]), ("test", SIZES["digits"][2])):
            recalls = np.array(parts[part])
            assert recalls.shape == (CLASSES,)
            np.testing.assert_allclose(recalls * rows, (recalls * rows).round(), atol=1e-4)
            assert recalls.min() >= 0 and recalls.max() <= 1


def test_methods_minimise_what_they_are_named_for():
    torch.manual_seed(0)
    labels, sizes = torch.arange(CLASSES).repeat(2), torch.arange(1, CLASSES + 1)
    training_labels = torch.arange(CLASSES).repeat_interleave(sizes)
    embeddings = torch.randn(2 * CLASSES, long_tail.WIDTH)

    def loss(**arm):
        torch.manual_seed(0)  # the same head
        objective = long_tail.Objective(Arm(**arm), training_labels, 0.1)
        return objective(embeddings, labels), objective.linear(embeddings)

    plain, scores = loss(cross_entropy=1)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(scores, labels))
    balanced, _ = loss(cross_entropy=1, log_prior=True)
    share = sizes / sizes.sum()
    expected = -(scores.exp() * share / (scores.exp() * share).sum(1, keepdim=True)).log()[range(20), labels].mean()
    torch.testing.assert_close(balanced, expected)
    weighted, _ = loss(cross_entropy=1, class_weights=True)
    each = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    torch.testing.assert_close(weighted, (each / sizes[labels]).sum() / (1 / sizes[labels]).sum())
    spcl, _ = loss(contrastive=1)
    both, _ = loss(cross_entropy=1, contrastive=0.2)
    torch.testing.assert_close(both, plain + 0.2 * spcl)


def test_held_out_rows_choose_and_test_rows_do_not():
    runs = [Run("digits", 32, "SPCL", seed, rate, 0.2, 1) for seed in (0, 1) for rate in (0.1, 0.2)]

    def recalls(test):
        values = {"own": {0.1: 0.3, 0.2: 0.5}, "class means": {0.1: 0.6, 0.2: 0.4}}
        return {
            run: {
                head: {"held out": [by_rate[run.rate]] * CLASSES, "test": [test(head, run)] * CLASSES}
                for head, by_rate in values.items()
            }
            for run in runs
        }

    for test in (lambda head, run: run.rate + run.seed, lambda head, run: 1 - run.rate + run.seed):
        own, means = long_tail_report.compare(recalls(test))
        assert (own["rate"], means["rate"]) == (0.2, 0.1) and (own["chosen"], means["chosen"]) == (False, True)
        assert own["by seed"].tolist() == pytest.approx([test("own", run) for run in (runs[1], runs[3])])
        assert means["by seed"].tolist() == pytest.approx([test("means", run) for run in (runs[0], runs[2])])
        assert own["held out by setting"].tolist() == pytest.approx([0.3, 0.5])


def test_arms_of_other_seeds_are_not_paired():
    runs = [Run("digits", 32, method, seed, 0.1, 0.2, 1) for method, seed in product(["SPCL", "cross-entropy"], (0, 1))]
    recall = {"own": {"held out": [0.5] * CLASSES, "test": [0.5] * CLASSES}}
    with pytest.raises(ValueError, match="shorter"):
        list(long_tail_report.tables(long_tail_report.compare(dict.fromkeys(runs[:-1], recall))))


def test_the_interval_is_students():
    assert long_tail_report.interval(np.array([0.5, 0.6, 0.7])) == "0.600 ± 0.248"  # 4.303 * 0.1 / sqrt(3)
    assert long_tail_report.interval(np.array([0.01, 0.03]), "+") == "+0.020 ± 0.127"  # 12.71 * 0.01414 / sqrt(2)


def test_a_tiny_run_writes_a_table_and_a_figure_and_repeats_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(long_tail, "BATCHES", (32,))
    monkeypatch.setattr(sys, "argv", ["long_tail.py", "--steps", "1", "--seeds", "0", "--workers", "1"])
    sys.argv += ["--output", str(tmp_path)]
    long_tail.main()
    printed = capsys.readouterr().out
    for method in ARMS:
        assert printed.count(f"| {method} |") == len(SIZES)
    assert (tmp_path / "long_tail.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == len(long_tail.all_runs([0], [32], ARMS, 1))
    (tmp_path / "runs.jsonl").write_text("\n".join(lines[2:]) + "\n" + lines[1][:20])  # as if stopped in a line
    long_tail.main()
    assert capsys.readouterr().out == printed
    assert sorted((tmp_path / "runs.jsonl").read_text().splitlines()) == sorted(lines)


def test_the_benchmark_adds_its_arms_and_saves_every_row(monkeypatch, tmp_path):
    published = {"cross-entropy": ARMS["cross-entropy"], "SPCL": ARMS["SPCL"]}
    monkeypatch.setattr(long_tail, "ARMS", dict(published))  # the benchmark adds to it
    monkeypatch.setattr(long_tail, "BATCHES", (32,))
    monkeypatch.setattr(long_tail_report, "draw", lambda *_: None)
    monkeypatch.delitem(sys.modules, "imbalance", raising=False)
    import imbalance

    sizes = ["--steps", "1", "--seeds", "0", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["imbalance.py", *sizes, "--output", str(tmp_path)])
    imbalance.main()
    with (tmp_path / "long_tail.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {*published, *imbalance.VARIANTS}
    assert len(rows) == len(SIZES) * len(HEADS) * (len(published) + len(imbalance.VARIANTS))
    for row in rows:
        assert len(row["by seed"].split()) == 2
        assert len(row["by class"].split()) == CLASSES and row["commit"] and row["command"]
    assert len((tmp_path / "long_tail.jsonl").read_text().splitlines()) == 4 * 2 * 2 * (2 + 4)
