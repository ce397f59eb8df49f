"""Every backend against the oracle: values, gradients, invariances, extremes."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spcl_loss import METHODS
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from support import oracle

# Without thresholds: rounding would decide whether an anchor counts.
SPCL, SPDCL, BCL, EACL = (METHODS[name] | {"easy_threshold": None} for name in ("spcl", "spdcl", "bcl", "eacl"))


@st.composite
def problems(draw, with_prototypes=None):
    """(embeddings, labels, prototypes, options) of one call: ragged sizes, ignored rows, absent classes, candidates."""
    N, C, D = draw(st.integers(0, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    embeddings = torch.randn(N, D, generator=generator, dtype=torch.float64)
    labels = torch.tensor(draw(st.lists(st.sampled_from([*range(C), -100]), min_size=N, max_size=N)), dtype=torch.long)
    options = {
        "temperature": draw(st.sampled_from([0.01, 0.05, 0.3, 2.0])),
        "similarity": draw(st.sampled_from(["cosine", "shifted_cosine"])),
        "positives": draw(st.sampled_from(["inside", "outside"])),
        "contrast": draw(st.sampled_from(["all", "negatives", "class_balanced"])),
        "easy_threshold": draw(st.sampled_from([None, 0.0, 0.3, 1.1])),
        "class_weights": draw(st.none() | st.just(torch.rand(C, generator=generator) + 0.1)),
        "sample_weight": draw(st.none() | st.just(torch.rand(N, generator=generator) + 0.1)),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if draw(st.booleans()):
        M = draw(st.integers(0, 5))
        options["candidates"] = torch.randn(M, D, generator=generator, dtype=torch.float64)
        classes = draw(st.lists(st.sampled_from([*range(C), -100]), min_size=M, max_size=M))
        options["candidate_labels"] = torch.tensor(classes, dtype=torch.long)
    if not (draw(st.booleans()) if with_prototypes is None else with_prototypes):
        return embeddings, labels, None, options
    options["prototype_anchors"] = draw(st.booleans())
    mask = draw(st.none() | st.lists(st.booleans(), min_size=C, max_size=C))
    options["prototype_mask"] = mask if mask is None else torch.tensor(mask)
    return embeddings, labels, torch.randn(C, D, generator=generator, dtype=torch.float64), options


def losses_by_anchor(problem):
    embeddings, labels, prototypes, options = problem
    rest = ("easy_threshold", "class_weights", "sample_weight", "reduction")
    equation = {name: value for name, value in options.items() if name not in rest}
    return oracle.anchor_losses(embeddings, labels, prototypes, **equation)


def assume_no_anchor_at_the_threshold(problem):
    """Within rounding of `easy_threshold`, whether an anchor counts is anybody's guess."""
    threshold = problem[3]["easy_threshold"]
    assume(threshold is None or all(abs(value - threshold) > 1e-9 for value in losses_by_anchor(problem).values()))


def assert_agree(ours, theirs, tolerance=1e-9):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@given(problem=problems())
@settings(max_examples=200)
def test_agrees_with_the_oracle(impl, problem):
    assume_no_anchor_at_the_threshold(problem)
    *tensors, options = problem
    expected = oracle.value_and_gradients(oracle.loss, *tensors, **options)
    assert_agree(oracle.value_and_gradients(spcl, *tensors, **options, impl=impl), expected)


@given(problem=problems(with_prototypes=True))
def test_prototypes_and_candidates_without_a_gradient_change_no_number(impl, problem):
    embeddings, labels, prototypes, options = problem
    expected = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl)

    def with_constants(embeddings, labels):
        return spcl(embeddings, labels, prototypes, **options, impl=impl)

    assert_agree(oracle.value_and_gradients(with_constants, embeddings, labels), expected[:2], tolerance=1e-12)

    def with_constant_candidates(embeddings, labels, prototypes):
        return spcl(embeddings, labels, prototypes, **options, impl=impl)

    ours = oracle.value_and_gradients(with_constant_candidates, embeddings, labels, prototypes)
    assert_agree(ours, expected[:3], tolerance=1e-12)


@given(problem=problems(with_prototypes=True))
def test_prototypes_are_candidates_with_the_numbers_of_the_classes(impl, problem):
    assume_no_anchor_at_the_threshold(problem)
    embeddings, labels, prototypes, options = problem
    mask = options.pop("prototype_mask")
    options |= {"prototype_anchors": False, "impl": impl}
    expected = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, prototype_mask=mask, **options)
    classes = torch.arange(len(prototypes))
    classes = classes if mask is None else torch.where(mask, classes, -100)
    if "candidates" in options:
        prototypes = torch.cat([prototypes, options["candidates"]])
        classes = torch.cat([classes, options["candidate_labels"]])
        expected[2:] = [torch.cat(expected[2:])]
    options |= {"candidates": prototypes, "candidate_labels": classes}
    assert_agree(oracle.value_and_gradients(spcl, embeddings, labels, **options), expected)


@pytest.mark.parametrize("N", [1, 2, 33, 65])
@pytest.mark.parametrize("options", [SPCL, SPDCL, BCL, EACL])
def test_agrees_with_the_oracle_on_larger_ragged_batches(impl, N, options):
    generator = torch.Generator().manual_seed(N)
    embeddings, prototypes = torch.randn(N + 7, 13, generator=generator).double().split([N, 7])
    labels = torch.randint(7, (N,), generator=generator)
    expected = oracle.value_and_gradients(oracle.loss, embeddings, labels, prototypes, **options)
    assert_agree(oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl), expected)


@given(problem=problems(), data=st.data())
def test_permuting_the_batch_permutes_the_losses(impl, problem, data):
    assume_no_anchor_at_the_threshold(problem)
    embeddings, labels, prototypes, options = problem
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))), dtype=torch.long)
    options |= {"reduction": "none", "impl": impl}
    moved = options | {"sample_weight": None if options["sample_weight"] is None else options["sample_weight"][order]}
    value, gradient, *_ = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options)
    permuted = oracle.value_and_gradients(spcl, embeddings[order], labels[order], prototypes, **moved)
    tail = torch.arange(len(order), len(value))  # prototype anchors stay where they are
    assert_agree(permuted[:2], [value[torch.cat([order, tail])], gradient[order]])


@given(problem=problems(with_prototypes=True), data=st.data())
def test_scaling_rows_changes_no_loss_and_divides_their_gradients(impl, problem, data):
    assume_no_anchor_at_the_threshold(problem)
    embeddings, labels, prototypes, options = problem
    rows = len(embeddings) + len(prototypes)
    exponents = data.draw(st.lists(st.integers(-6, 40), min_size=rows, max_size=rows))
    scale = 2.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]
    e, p = scale.split([len(embeddings), len(prototypes)])
    expected = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl)
    scaled = oracle.value_and_gradients(spcl, embeddings * e, labels, prototypes * p, **options, impl=impl)
    assert_agree([scaled[0], scaled[1] * e, scaled[2] * p, *scaled[3:]], expected)


@given(problem=problems(with_prototypes=True), data=st.data())
def test_renaming_the_classes_changes_nothing(impl, problem, data):
    assume_no_anchor_at_the_threshold(problem)
    embeddings, labels, prototypes, options = problem
    C = len(prototypes)
    new_name = torch.tensor(data.draw(st.permutations(range(C))))
    old_name = new_name.argsort()
    options |= {"reduction": "sum", "impl": impl}

    def renamed(labels):
        return torch.where(labels == -100, -100, new_name[labels.clamp(min=0)])

    per_class = ("class_weights", "prototype_mask")
    moved = {k: v[old_name] if k in per_class and v is not None else v for k, v in options.items()}
    if "candidates" in options:
        moved["candidate_labels"] = renamed(options["candidate_labels"])
    expected = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options)
    expected[2] = expected[2][old_name]
    ours = oracle.value_and_gradients(spcl, embeddings, renamed(labels), prototypes[old_name], **moved)
    assert_agree(ours, expected)


@given(problem=problems())
def test_shifted_cosine_is_the_cosine_at_twice_the_temperature(impl, problem):
    assume_no_anchor_at_the_threshold(problem)
    *tensors, options = problem
    shifted = options | {"similarity": "shifted_cosine"}
    plain = options | {"similarity": "cosine", "temperature": 2 * options["temperature"]}
    assert_agree(
        oracle.value_and_gradients(spcl, *tensors, **shifted, impl=impl),
        oracle.value_and_gradients(spcl, *tensors, **plain, impl=impl),
    )


@pytest.mark.parametrize("options", [SPCL, SPDCL, BCL, EACL, SPCL | {"easy_threshold": 0.3}])
def test_gradients_are_the_derivatives_of_the_loss(impl, options):
    generator = torch.Generator().manual_seed(0)
    embeddings, prototypes = torch.randn(11, 5, generator=generator, dtype=torch.float64).split([8, 3])
    labels = torch.tensor([0, 0, 1, 2, -100, 1, 1, 0])
    weight = torch.rand(8, generator=generator, dtype=torch.float64)

    def loss(embeddings, prototypes):
        options_here = dict(options, temperature=0.5, sample_weight=weight, impl=impl)
        return spcl(embeddings, labels, prototypes, **options_here)

    assert torch.autograd.gradcheck(loss, (embeddings.requires_grad_(), prototypes.requires_grad_()))


@pytest.mark.parametrize("temperature", [0.005, 0.0133, 0.05, 1.0, 10.0])
@pytest.mark.parametrize("options", [SPCL, SPDCL, BCL, EACL])
def test_float32_stays_accurate_at_extreme_temperatures(impl, temperature, options):
    generator = torch.Generator().manual_seed(1)
    embeddings, prototypes = torch.randn(28, 16, generator=generator).split([24, 4])
    embeddings[1], embeddings[2] = embeddings[0], -embeddings[0]  # the largest and the smallest possible score
    labels = torch.arange(24) % 4
    options = dict(options, temperature=temperature)
    expected = oracle.value_and_gradients(oracle.loss, embeddings, labels, prototypes, **options)
    ours = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl)
    # A score is a rounded cosine over the temperature.
    tolerance = 8 * torch.finfo(torch.float32).eps * max(1, 1 / temperature)
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("options", [SPCL, SPDCL, BCL, EACL])
def test_compiles_into_one_graph(impl, options):
    generator = torch.Generator().manual_seed(2)
    embeddings, prototypes = torch.randn(37, 8, generator=generator).split([33, 4])
    labels = torch.arange(33) % 4
    torch._dynamo.reset()
    compiled = torch.compile(spcl, fullgraph=True, backend="aot_eager")
    expected = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl)
    ours = oracle.value_and_gradients(compiled, embeddings, labels, prototypes, **options, impl=impl)
    assert_agree(ours, expected, tolerance=1e-5)


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
