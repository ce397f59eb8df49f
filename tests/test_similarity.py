"""Every backend against the oracle on batches larger than those of test_fuzz.py."""

import pytest
import torch

from spcl_loss import METHODS
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity import Comparison, strips
from spcl_loss._similarity.comparison import Upstream
from support import oracle

# Without thresholds: rounding would decide whether an anchor counts.
SPCL, SPDCL, BCL, EACL = (METHODS[name] | {"easy_threshold": None} for name in ("spcl", "spdcl", "bcl", "eacl"))


def assert_agree(ours, theirs, tolerance=1e-9):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("N", [1, 2, 33, 65])
@pytest.mark.parametrize("options", [SPCL, SPDCL, BCL, EACL])
def test_agrees_with_the_oracle_on_larger_ragged_batches(impl, N, options):
    generator = torch.Generator().manual_seed(N)
    embeddings, prototypes = torch.randn(N + 7, 13, generator=generator).double().split([N, 7])
    labels = torch.randint(7, (N,), generator=generator)
    expected = oracle.value_and_gradients(oracle.loss, embeddings, labels, prototypes, **options)
    assert_agree(oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl), expected)


@pytest.mark.parametrize("other", ["auto", "strips"])
@pytest.mark.parametrize("options", [SPCL, SPDCL, BCL, EACL])
def test_how_it_is_computed_changes_no_number(other, options):
    generator = torch.Generator().manual_seed(3)
    embeddings, prototypes = torch.randn(706, 8, generator=generator, dtype=torch.float64).split([700, 6])
    labels = torch.randint(6, (700,), generator=generator)
    tensors = embeddings, labels, prototypes
    expected = oracle.value_and_gradients(spcl, *tensors, **options, impl="dense")
    assert_agree(oracle.value_and_gradients(spcl, *tensors, **options, impl=other), expected, tolerance=1e-12)


def overlapping_batch(N, D, spread, C=7, dtype=torch.float32):
    """Rows around class centres that lie close together: positives and negatives have like scores."""
    generator = torch.Generator().manual_seed(4)
    centers, noise = torch.randn(N + C, D, generator=generator).split([C, N])
    labels = torch.arange(N) % C
    return (centers[labels] * spread + noise).to(dtype), labels, centers.to(dtype)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 10.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("N", "D", "spread"), [(200, 1024, 0.3), (200, 64, 1.0)])
def test_float32_gradients_of_overlapping_classes(impl, method, temperature, N, D, spread):
    options = METHODS[method] | {"temperature": temperature, "easy_threshold": None}
    embeddings, labels, prototypes = overlapping_batch(N, D, spread)
    exact = embeddings.double(), labels, prototypes.double()
    expected = oracle.value_and_gradients(spcl, *exact, **options, impl="dense")
    ours = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl)
    for a, b in zip(ours[1:], expected[1:], strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("product_dtype", [torch.float32, torch.bfloat16])
def test_strips_without_an_anchor_have_a_zero_gradient(product_dtype):
    rows, empty = torch.eye(3), torch.empty(0)
    comparison = Comparison(torch.arange(3), None, 10.0, 0, 2, False, product_dtype)
    assert [value.shape for value in strips.statistics(rows, comparison)] == [(0,)] * 3
    gradient = strips.gradient(rows, comparison, Upstream(empty, empty, torch.empty(3, 0)))
    assert torch.equal(gradient, torch.zeros(2, 3))
