"""Each objective is the method of its name."""

from dataclasses import replace

import pytest
import torch

from erc.objectives import build_criterion, losses, rate_factor
from erc.settings import Settings
from spcl_loss import supervised_prototypical_contrastive_loss as contrastive_loss

LABELS = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0])


def criterion_for(objective, **changes):
    settings = Settings(objective=objective, queue_size=4, support_size=2, **changes)
    criterion = build_criterion(settings, 3, 6, gather_distributed=False)
    criterion.memory.initialize(torch.randn(30, 6), torch.arange(30) % 3)
    return criterion


def both(objective, criterion):
    features, scores = torch.randn(8, 6, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    return features, scores, losses(Settings(objective=objective), criterion, features, scores, LABELS)


@pytest.mark.parametrize(
    ("objective", "equation"),
    [
        ("spcl", {"positives": "inside", "contrast": "all"}),
        ("spdcl", {"positives": "outside", "contrast": "negatives", "easy_threshold": 0.0}),
    ],
)
def test_prototypical_objectives(objective, equation):
    criterion = criterion_for(objective)
    prototypes, mask = criterion.memory.prototypes(advance=False)
    features, _, result = both(objective, criterion)
    expected = contrastive_loss(features, LABELS, prototypes, prototype_mask=mask, **equation)
    torch.testing.assert_close(result[0], expected)
    assert int(criterion.memory.cursors.sum()) == 8


def test_supcon_sees_the_batch_only():
    criterion = criterion_for("supcon")
    features, _, result = both("supcon", criterion)
    expected = contrastive_loss(features, LABELS, similarity="cosine", temperature=0.1, positives="outside")
    torch.testing.assert_close(result[0], expected)
    assert int(criterion.memory.cursors.sum()) == 8  # for the nearest-prototype head


@pytest.mark.parametrize(
    ("objective", "equation"),
    [
        ("bcl", {"similarity": "cosine", "temperature": 0.1, "positives": "outside", "contrast": "class_balanced"}),
        ("eacl", {"easy_threshold": 0.0, "prototype_anchors": True}),
    ],
)
def test_objectives_with_learned_prototypes(objective, equation):
    criterion = criterion_for(objective)
    features, scores = torch.randn(8, 6), torch.randn(8, 3)
    learned = torch.randn(3, 6, requires_grad=True)
    result = losses(Settings(objective=objective), criterion, features, scores, LABELS, learned)
    torch.testing.assert_close(result[0], contrastive_loss(features, LABELS, learned, **equation))
    result[0].backward()
    assert learned.grad.norm() > 0
    assert int(criterion.memory.cursors.sum()) == 8  # for the nearest-prototype head


def test_switches_change_the_equation():
    assert criterion_for("spcl").contrast == "all"
    assert criterion_for("spcl", contrast="class_balanced").contrast == "class_balanced"
    assert not criterion_for("spcl").prototype_anchors
    assert criterion_for("spcl", prototype_anchors=True).prototype_anchors
    assert criterion_for("eacl").prototype_anchors


def test_cross_entropy_contrasts_nothing():
    criterion = criterion_for("ce")
    features, scores, result = both("ce", criterion)
    assert result[0] == 0
    assert int(criterion.memory.cursors.sum()) == 8
    torch.testing.assert_close(result[1], torch.nn.functional.cross_entropy(scores, LABELS))
    result.sum().backward()
    assert features.grad is None
    assert scores.grad is not None


def test_options_reach_the_loss():
    criterion = criterion_for("spcl", easy_threshold=0.3, temperature=0.2)
    assert (criterion.easy_threshold, criterion.temperature) == (0.3, 0.2)
    assert criterion_for("spdcl").easy_threshold == 0.0


def test_rates_rise_then_fall():
    settings = Settings(warmup=10, epochs=2)
    assert rate_factor(settings, 0, 0, 0.0) == pytest.approx(0.1)
    assert rate_factor(settings, 4, 0, 0.0) == pytest.approx(0.5)
    assert rate_factor(settings, 500, 1, 0.0) == pytest.approx(0.5)
    assert rate_factor(settings, 999, 1, 1.0) == pytest.approx(0.0)
    assert rate_factor(replace(settings, schedule="linear"), 500, 1, 0.5) == pytest.approx(0.25)
    assert rate_factor(replace(settings, schedule="constant"), 999, 1, 1.0) == 1.0
    assert rate_factor(replace(settings, schedule="restarts"), 500, 1, 0.0) == 1.0
    assert rate_factor(replace(settings, warmup=0), 0, 0, 0.0) == 1.0
