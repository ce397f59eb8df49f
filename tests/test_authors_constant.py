"""What the 1e-8 that the authors' codes add does to the loss: nothing, once it is accounted for."""

import math

import pytest
import torch

from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from support import oracle

SPCL = {"temperature": 0.05, "easy_threshold": 0.3}
EACL = {"temperature": 0.1, "easy_threshold": 0.0, "prototype_anchors": True}


def with_constant(
    embeddings, labels, prototypes, *, constant, temperature, easy_threshold, prototype_anchors=False, **_
):
    """The loss of SPCL and EACL as their authors compute it, which adds `constant` to every count and probability."""
    rows = torch.nn.functional.normalize(torch.cat([embeddings, prototypes]))
    classes = torch.cat([labels, torch.arange(len(prototypes))])
    anchors = len(rows) if prototype_anchors else len(embeddings)
    exponentials = ((1 + rows[:anchors] @ rows.T) / 2 / temperature).exp()
    same = classes[:anchors, None] == classes
    positive = same & ~torch.eye(len(rows), dtype=torch.bool)[:anchors]
    positives, negatives = (exponentials * positive).sum(1), (exponentials * ~same).sum(1)
    share = positives / (positives + negatives) / (positive.double().sum(1) + constant)
    losses = -(share + constant).log()
    counted = losses > easy_threshold
    return (losses * counted).sum() / (counted.double().sum() + constant)


def batch(width, num_classes=7, present=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(32, width, generator=generator, dtype=torch.float64)
    return embeddings, torch.arange(32) % present, torch.randn(num_classes, width, generator=generator).double()


def largest_difference(ours, theirs):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


class TestEmbeddings:
    """The constant lifts an anchor's small probabilities, which occur where few dimensions make classes overlap."""

    @pytest.mark.parametrize("width", [2, 4, 16, 768])
    def test_without_the_constant_loss_and_gradients_are_ours(self, width):
        ours, theirs = (
            oracle.value_and_gradients(function, *batch(width), **SPCL, **options)
            for function, options in ((spcl, {}), (with_constant, {"constant": 0.0}))
        )
        assert largest_difference(ours[:2], theirs[:2]) < 1e-12

    @pytest.mark.parametrize(("width", "low", "high"), [(2, 1e-3, 1.0), (64, 0.0, 1e-5)])
    def test_with_the_constant_they_are_ours_in_many_dimensions(self, width, low, high):
        ours, theirs = (
            oracle.value_and_gradients(function, *batch(width), **SPCL, **options)
            for function, options in ((spcl, {}), (with_constant, {"constant": 1e-8}))
        )
        assert low <= largest_difference(ours[:2], theirs[:2]) < high


class TestAbsentClasses:
    """EACL's prototypes are anchors. One whose class is absent from the batch has no positive: we leave it out."""

    @pytest.mark.parametrize("absent", [0, 1, 3])
    @pytest.mark.parametrize(("constant", "tolerance"), [(1e-8, 1e-5), (1e-100, 1e-12)])
    def test_theirs_is_ours_rescaled(self, absent, constant, tolerance):
        arguments = batch(width=64, present=7 - absent)
        value, *gradients = oracle.value_and_gradients(spcl, *arguments, **EACL)
        theirs = oracle.value_and_gradients(with_constant, *arguments, constant=constant, **EACL)
        factor = (32 + 7 - absent) / (32 + 7)  # anchors that count in ours, over all anchors
        rescaled = [
            factor * value - (1 - factor) * math.log(constant),
            *(factor * gradient for gradient in gradients),
        ]
        assert largest_difference(rescaled, theirs) < tolerance
