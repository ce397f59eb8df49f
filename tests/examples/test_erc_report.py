"""What is shown of a run."""

import numpy as np
import pytest
import torch

from erc import figures
from erc.report import difficulty_counts, result_table

SCORES = {"weighted_f1": 0.5, "macro_f1": 0.4, "accuracy": 0.6, "per_class_f1": {"calm": 0.7, "glad": 0.1}}
RESULT = {
    "dataset": "practice corpus", "objective": "spcl", "curriculum": "on", "seed": 0, "epochs": 2, "best_epoch": 2,
    "selected_by": "dev weighted-F1 of the prototype head", "seconds": 61.4,
    "dev": {"prototype": SCORES, "linear": SCORES}, "test": {"prototype": SCORES, "linear": SCORES},
}  # fmt: skip


def history(epochs=2):
    counts = difficulty_counts(torch.rand(200), torch.arange(100))
    dev = {"prototype": SCORES, "linear": {**SCORES, "weighted_f1": 0.3}}
    return [{"epoch": epoch + 1, "dev": dev, "difficulty": counts} for epoch in range(epochs)]


def test_difficulty_is_counted_for_all_and_for_the_drawn():
    difficulty = torch.tensor([0.0, 0.1, 0.2, 1.0])
    counts = difficulty_counts(difficulty, torch.tensor([0, 3, 1]))
    assert sum(counts["all"]) == 4
    assert sum(counts["drawn"]) == 3
    assert counts["edges"][0] == 0.0
    assert counts["edges"][-1] == 1.0
    assert counts["drawn"][-1] == counts["all"][-1] == 1


def test_difficulty_that_is_the_same_for_all_can_be_counted():
    assert sum(difficulty_counts(torch.full((5,), 0.25), torch.arange(2))["all"]) == 5


def test_table_names_the_corpus_and_every_score():
    table = result_table(RESULT)
    assert table.startswith("practice corpus, spcl, curriculum on, seed 0: best epoch 2 of 2")
    for row in ("dev, prototype", "dev, linear", "test, prototype", "test, linear"):
        assert row in table
    assert "calm 0.700, glad 0.100" in table


def test_figures_say_what_they_show():
    gold, guess = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    drawn = [
        figures.f1_by_epoch(history(), RESULT),
        figures.confusion_matrix(gold, guess, ("calm", "glad"), RESULT),
        figures.difficulty(history(5), RESULT),
    ]
    for figure in drawn:
        title = figure.get_suptitle() or figure.axes[0].get_title()
        assert "practice corpus" in title
        assert figure.axes[0].get_ylabel()
    assert [text.get_text() for text in drawn[1].axes[0].texts] == ["67%\n2", "33%\n1", "100%\n1"]
    assert len(drawn[2].axes) == 6  # first, middle and last epoch, with two scales each


@pytest.mark.parametrize("samples", [6, 80])
def test_the_map_shows_every_class_and_prototype(samples):
    features, gold = torch.randn(samples, 5), torch.arange(samples) % 2
    exists = torch.tensor([True, True, False])
    figure = figures.representation_map(features, gold, torch.randn(2, 5), exists, ("calm", "glad", "sad"), RESULT)
    sizes = [len(points.get_offsets()) for points in figure.axes[0].collections]
    assert sorted(sizes, reverse=True) == [samples // 2, samples // 2, 1, 1, 0]


def test_colours_of_ten_classes_and_fewer_are_told_apart_by_shape_too():
    pairs = set(zip(figures.COLORS, figures.MARKERS, strict=True))
    assert len(pairs) == len(figures.COLORS) == len(set(figures.MARKERS)) == 9
    assert np.all([color.startswith("#") for color in figures.COLORS])
