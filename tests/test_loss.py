"""The loss function: golden numbers, what the random calls of test_fuzz.py do not reach, bad input."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from spcl_loss import METHODS
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity import _with_places
from spcl_loss._similarity.comparison import Comparison
from support import oracle
from support.messages import says

GOLDEN = Path(__file__).parent / "golden"
SPDCL, SUPCON, BCL, EACL = (dict(METHODS[name]) for name in ("spdcl", "supcon", "bcl", "eacl"))
SPCL = METHODS["spcl"] | {"easy_threshold": 0.3}  # as in the authors' code
FIVE = pytest.mark.parametrize("options", [SPCL, SPDCL, SUPCON, BCL, EACL])
BATCHES = ["meld_batch", "iemocap_batch", "two_classes", "absent_classes", "single_anchor", "separated"]


def golden(name):
    return {key: torch.from_numpy(np.asarray(array)) for key, array in np.load(GOLDEN / f"{name}.npz").items()}


def computed(function, name, **options):
    """The golden numbers, and what the function gives for their batch: loss and gradients."""
    g = golden(name)
    arguments = g["embeddings"], g["labels"], g.get("prototypes")
    return g, oracle.value_and_gradients(function, *arguments, temperature=g["temperature"].item(), **options)


def batch(N=12, C=4, D=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(N, D, generator=generator, dtype=dtype)
    prototypes = torch.randn(C, D, generator=generator, dtype=dtype)
    return embeddings, torch.arange(N) % C, prototypes


def assert_relative(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


class TestGolden:
    @pytest.fixture(params=["library", "oracle"])
    def function(self, request, impl):
        return partial(spcl, impl=impl) if request.param == "library" else oracle.loss

    @pytest.mark.parametrize("name", BATCHES)
    @pytest.mark.parametrize(("method", "options"), [("spcl", SPCL), ("spdcl", SPDCL)])
    def test_authors_methods(self, function, name, method, options):
        g, ours = computed(function, name, **options)
        assert_relative(ours[:2], [g[f"loss_{method}"], g[f"grad_{method}"]], 1e-5)

    @pytest.mark.parametrize(
        ("name", "options", "tolerance"),
        [("supcon", SUPCON, 1e-12), ("balanced", BCL, 1e-12), ("anchored", EACL, 1e-5)],
    )
    def test_related_methods(self, function, name, options, tolerance):
        g, ours = computed(function, name, **options)
        assert_relative(ours, [g[k] for k in ("loss", "grad_embeddings", "grad_prototypes") if k in g], tolerance)


def with_epsilon(embeddings, labels, prototypes, *, temperature, easy_threshold, prototype_anchors=False, epsilon=1e-8):
    """SPCL's and EACL's loss with what their code adds: -log(p + epsilon), p being the positives' mean probability.

    An anchor without a positive has p = 0, so its loss is the constant -log(epsilon), and it counts.
    """
    rows = torch.nn.functional.normalize(torch.cat([embeddings, prototypes]))
    classes = torch.cat([labels, torch.arange(len(prototypes))])
    anchors = slice(len(rows) if prototype_anchors else len(embeddings))
    scores = ((1 + rows @ rows.T) / 2 / temperature).fill_diagonal_(-torch.inf)
    same = (classes[:, None] == classes).fill_diagonal_(False)
    probability = (scores.softmax(1) * same).sum(1) / (same.sum(1) + epsilon)
    losses = -(probability + epsilon).log()[anchors]
    counted = losses[losses > easy_threshold]
    return counted.sum() / (len(counted) + epsilon)


class TestDepartures:
    """Where our numbers differ from the authors', and by how much: docs/maths.md."""

    @pytest.mark.parametrize("name", BATCHES)
    def test_the_authors_form_has_the_authors_numbers(self, name):
        g, theirs = computed(with_epsilon, name, easy_threshold=0.3)
        assert_relative(theirs[:2], [g["loss_spcl"], g["grad_spcl"]], 1e-9)

    def test_the_authors_epsilon_shows_in_few_dimensions(self, impl):
        largest = 0.0
        for seed in range(20):
            tensors, options = batch(D=4, seed=seed), {"temperature": 0.05, "easy_threshold": 0.3}
            ours = oracle.value_and_gradients(spcl, *tensors, **options, impl=impl)[:2]
            without = oracle.value_and_gradients(with_epsilon, *tensors, **options, epsilon=0.0)[:2]
            assert_relative(ours, without, 1e-11)
            theirs = oracle.value_and_gradients(with_epsilon, *tensors, **options)[:2]
            largest = max(largest, float((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()))
        assert 1e-5 < largest < 1e-2

    @pytest.mark.parametrize("absent", [1, 2])
    def test_eacl_counts_prototypes_of_absent_classes(self, impl, absent):
        """There they add -log(1e-8) to the sum, one to the divisor, and nothing to the gradient."""
        embeddings, labels, prototypes = batch(N=14, C=6, D=16)
        tensors, options = (embeddings, labels % (6 - absent), prototypes), {"temperature": 0.1, **EACL}
        each = spcl(*tensors, **options, reduction="none")
        anchors, counted = len(each), int((each > 0).sum())
        assert anchors - counted == absent
        value, *gradients = oracle.value_and_gradients(spcl, *tensors, **options, impl=impl)
        rescaled = (counted * value - absent * math.log(1e-8)) / anchors, *(g * counted / anchors for g in gradients)
        options = {"temperature": 0.1, "easy_threshold": 0.0, "prototype_anchors": True}
        theirs = oracle.value_and_gradients(with_epsilon, *tensors, **options)
        assert_relative(rescaled, theirs, 1e-5)
        assert value < 0.9 * theirs[0]


def test_an_anchor_whose_loss_equals_the_threshold_counts_nowhere():
    embeddings, labels, prototypes = batch()
    each = spcl(embeddings, labels, prototypes, reduction="none")
    threshold = each.sort().values[5].item()
    kept = each[each > threshold]
    assert len(kept) == 6
    torch.testing.assert_close(spcl(embeddings, labels, prototypes, easy_threshold=threshold), kept.mean())


@FIVE
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_counted_row_that_is_not_finite_makes_the_loss_nan(impl, options, poison, reduction):
    embeddings, labels, prototypes = batch()
    embeddings[3, 0] = poison
    assert spcl(embeddings, labels, prototypes, **options, impl=impl, reduction=reduction).isnan()


def test_labels_may_be_any_number_from_zero_on(impl):
    embeddings, labels, _ = batch()
    renamed = torch.tensor([3, 2**40, 5_000_000_000, 2**63 - 1])[labels]
    expected = oracle.value_and_gradients(spcl, embeddings, labels, impl=impl)
    assert_relative(oracle.value_and_gradients(spcl, embeddings, renamed, impl=impl), expected, 1e-14)


class TestAutocast:
    @FIVE
    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("around", ["forward", "backward", "forward and backward"])
    @pytest.mark.parametrize("temperature", [0.02, 0.05])
    def test_changes_no_number(self, impl, options, half, around, temperature):
        tensors, options = batch(N=40, dtype=torch.float32), dict(options, impl=impl, temperature=temperature)
        plain = oracle.value_and_gradients(spcl, *tensors, **options)
        leaves = [leaf.clone().requires_grad_() for leaf in (tensors[0], tensors[2])]
        with torch.autocast("cpu", dtype=half, enabled="forward" in around):
            value = spcl(leaves[0], tensors[1], leaves[1], **options)
        with torch.autocast("cpu", dtype=half, enabled="backward" in around):
            value.backward()
        for a, b in zip([value, *(leaf.grad for leaf in leaves)], plain, strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_changes_no_second_derivative(self, half):
        embeddings, labels, _ = batch(dtype=torch.float32)

        def second_derivative(enabled):
            leaf = embeddings.clone().requires_grad_()
            value = spcl(leaf, labels, impl="dense")
            with torch.autocast("cpu", dtype=half, enabled=enabled):
                (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
                gradient.square().sum().backward()
            return leaf.grad

        assert torch.equal(second_derivative(enabled=True), second_derivative(enabled=False))


DRAWS = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(*shape, generator=DRAWS)


NOTHING_TO_COMPARE = {
    "empty batch": (torch.empty(0, 3), [], None, {}),
    "empty batch beside prototypes": (torch.empty(0, 3), [], drawn(2, 3), {}),
    "all rows ignored": (drawn(4, 3), [-100] * 4, drawn(2, 3), {}),
    "single row": (drawn(1, 3), [0], None, {}),
    "no two rows of a class": (drawn(3, 3), [0, 1, 2], None, {}),
    "no negatives": (drawn(4, 3), [0] * 4, drawn(1, 3), {"contrast": "negatives"}),
    "every loss below the threshold": (drawn(4, 3), [0, 0, 1, 1], None, {"easy_threshold": 1e9}),
    "every weight zero": (drawn(4, 3), [0, 0, 1, 1], drawn(2, 3), {"sample_weight": torch.zeros(4)}),
    "prototypes absent": (drawn(2, 3), [0, 1], drawn(2, 3), {"prototype_mask": torch.tensor([False] * 2)}),
    "prototypes alone": (torch.empty(0, 3), [], drawn(2, 3), {"prototype_anchors": True}),
}


@pytest.mark.parametrize("case", NOTHING_TO_COMPARE)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_to_compare_is_a_zero_with_a_graph(impl, case, reduction):
    embeddings, labels, prototypes, options = NOTHING_TO_COMPARE[case]
    leaves = [leaf.clone().requires_grad_() for leaf in (embeddings, prototypes) if leaf is not None]
    labels = torch.tensor(labels, dtype=torch.long)
    value = spcl(leaves[0], labels, *leaves[1:], **options, impl=impl, reduction=reduction)
    assert value.requires_grad and not value.any()
    value.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


X, Y, P = drawn(4, 3), torch.tensor([0, 1, 0, 1]), drawn(2, 3)
ONE_HOT, LABELLED = torch.eye(2, dtype=torch.long)[Y], {"candidates": P, "candidate_labels": Y[:2]}
BAD_INPUT = {  # what the message says, what is passed
    "embeddings no tensor": (TypeError, "tensor...list", {"embeddings": X.tolist()}),
    "embeddings of integers": (TypeError, "float...int64", {"embeddings": X.long()}),
    "embeddings of eight bits": (TypeError, "16, 32 or 64...float8", {"embeddings": X.to(torch.float8_e4m3fn)}),
    "sparse embeddings": (TypeError, "dense...sparse_coo", {"embeddings": X.to_sparse()}),
    "embeddings one-dimensional": (ValueError, "(N, D)...(4,)", {"embeddings": X[:, 0]}),
    "a single row": (ValueError, "(3,)...embeddings[None]", {"embeddings": X[0]}),
    "embeddings without dimensions": (ValueError, "()...Pass a tensor whose sizes", {"embeddings": X[0, 0]}),
    "no width": (ValueError, "at least 1...0", {"embeddings": X[:, :0], "prototypes": P[:, :0]}),
    "views": (
        ValueError,
        "(2, 2, 3)...2 views of each sample, flatten them with embeddings.flatten(0, 1) and repeat the labels with "
        "labels.repeat_interleave(2)",
        {"embeddings": X.view(2, 2, 3)},
    ),
    "images": (ValueError, "(4, 3, 2, 2)...embeddings.flatten(1)", {"embeddings": drawn(4, 3, 2, 2)}),
    "labels no tensor": (TypeError, "list...converts lists and arrays of numbers", {"labels": list("abab")}),
    "labels of floats": (TypeError, "float32...Convert whole numbers with labels.long()", {"labels": Y.float()}),
    "labels of another length": (ValueError, "(4,)...(3,)", {"labels": Y[:3]}),
    "labels in a column": (ValueError, "(4, 1)...labels.squeeze(-1)", {"labels": Y[:, None]}),
    "labels one-hot": (ValueError, "(4, 2)...labels.argmax(1)", {"labels": ONE_HOT}),
    "labels one-hot and floating": (ValueError, "(4, 2)...labels.argmax(1)", {"labels": ONE_HOT.float()}),
    "labels on another device": (ValueError, "cpu...meta", {"labels": Y.to("meta")}),
    "label too large": (
        ValueError, "labels must be classes from 0 on, below 2, or ignore_index=-100; received 2.", {"labels": Y * 2},
    ),
    "label negative": (ValueError, "-100...received -3", {"labels": torch.tensor([-100, 1, -3, -2])}),
    "label negative without prototypes": (
        ValueError,
        "classes from 0 on, or ignore_index=-100; received -1. Number them from 0 on, or pass ignore_index=-1 if such "
        "rows have no label",
        {"labels": Y - 1, "prototypes": None},
    ),
    "prototypes of another width": (
        ValueError, "(C, 3); received (2, 5). Pass a tensor whose sizes match those of the other arguments",
        {"prototypes": drawn(2, 5)},
    ),
    "prototypes, several of a class": (
        ValueError,
        "(2, 4, 3)...Pass several prototypes of a class as rows of candidates, with their classes as candidate_labels",
        {"prototypes": drawn(2, 4, 3)},
    ),
    "prototypes one-dimensional": (ValueError, "(C, 3)...(3,)", {"prototypes": P[0]}),
    "prototypes of integers": (TypeError, "float...int64", {"prototypes": P.long()}),
    "prototypes on another device": (ValueError, "cpu...meta", {"prototypes": P.to("meta")}),
    "candidates, several of a sample": (
        ValueError,
        "(2, 4, 3)...candidates.flatten(0, 1) and repeat the labels with candidate_labels.repeat_interleave(4)",
        LABELLED | {"candidates": drawn(2, 4, 3)},
    ),
    "candidates without labels": (ValueError, "belong together...candidate_labels=None", {"candidates": P}),
    "candidate labels alone": (ValueError, "belong together...candidates=None", {"candidate_labels": Y}),
    "candidates of another width": (ValueError, "(M, 3)...(2, 5)", LABELLED | {"candidates": drawn(2, 5)}),
    "candidates on another device": (ValueError, "cpu...meta", LABELLED | {"candidates": P.to("meta")}),
    "candidate labels of another length": (
        ValueError, "candidate_labels must have shape (2,)...(4,)", LABELLED | {"candidate_labels": Y},
    ),
    "candidate labels one-hot": (
        ValueError, "(2, 2)...candidate_labels.argmax(1)", LABELLED | {"candidate_labels": torch.eye(2)},
    ),
    "candidate label too large": (
        ValueError, "candidate_labels must be classes from 0 on, below 2...5",
        LABELLED | {"candidate_labels": Y[:2] * 5},
    ),
    "mask of another length": (
        ValueError, "(2,); received (3,). Pass as many entries as there are classes", {"prototype_mask": X[:3, 0] > 0},
    ),
    "mask of integers": (TypeError, "bool...int64", {"prototype_mask": Y[:2]}),
    "mask without prototypes": (ValueError, "prototypes...None", {"prototypes": None, "prototype_mask": Y[:2] > 0}),
    "class weights of integers": (TypeError, "class_weights must be a floating...int64", {"class_weights": Y[:2]}),
    "class weights of another length": (ValueError, "(3, 3)...(2, 3)", {"class_weights": torch.ones(3)}),
    "class weights with two dimensions": (ValueError, "(2, 3)...Pass a tensor whose sizes", {"class_weights": P}),
    "sample weight of another length": (
        ValueError, "(4,); received (2,). Pass as many entries as there are rows", {"sample_weight": torch.ones(2)},
    ),
    "temperature zero": (ValueError, "above 1e-06...0", {"temperature": 0.0}),
    "temperature negative": (ValueError, "above 1e-06...-0.1", {"temperature": -0.1}),
    "temperature that overflows": (ValueError, "above 1e-06...1e-40", {"temperature": 1e-40}),
    "temperature at its bound": (ValueError, "a finite number above 1e-06...1e-06", {"temperature": 1e-6}),
    "temperature NaN": (ValueError, "finite...nan", {"temperature": math.nan}),
    "temperature infinite": (ValueError, "finite...inf", {"temperature": math.inf}),
    "temperature True": (TypeError, "a Python number...bool", {"temperature": True}),
    "temperature in a tensor": (TypeError, "a Python number...Tensor", {"temperature": torch.tensor(0.1)}),
    "temperature in a text": (TypeError, "a Python number...str", {"temperature": "1"}),
    "easy threshold infinite": (ValueError, "must be a finite number;...-inf", {"easy_threshold": -math.inf}),
    "easy threshold NaN": (ValueError, "easy_threshold...nan", {"easy_threshold": math.nan}),
    "easy threshold no number": (TypeError, "easy_threshold...str", {"easy_threshold": "low"}),
    "ignore_index too large": (ValueError, "below 9223372036854775808; received 9223", {"ignore_index": 2**63}),
    "ignore_index True": (TypeError, "ignore_index must be an int...bool", {"ignore_index": True}),
    "ignore_index 1.0": (TypeError, "ignore_index must be an int...float", {"ignore_index": 1.0}),
    "ignore_index in a text": (TypeError, "ignore_index must be an int...str", {"ignore_index": "-100"}),
    "prototype anchors no bool": (TypeError, "True or False...'yes'", {"prototype_anchors": "yes"}),
    "prototype anchors without prototypes": (
        ValueError, "needs prototypes...None", {"prototypes": None, "prototype_anchors": True},
    ),
    "gathering no bool": (TypeError, "True or False...'False'", {"gather_distributed": "False"}),
    "unknown similarity": (ValueError, "shifted_cosine...euclidean", {"similarity": "euclidean"}),
    "an array as an option": (ValueError, "shifted_cosine...array", {"similarity": np.array(["cosine", "cosine"])}),
    "unknown positives": (ValueError, "outside...both", {"positives": "both"}),
    "unknown contrast": (ValueError, "class_balanced...some", {"contrast": "some"}),
    "unknown reduction": (ValueError, "none...median", {"reduction": "median"}),
    "unknown impl": (ValueError, "dense...fast", {"impl": "fast"}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_names_expected_and_received(case):
    error, message, change = BAD_INPUT[case]
    with pytest.raises(error, match=says(message)) as caught:
        spcl(**({"embeddings": X, "labels": Y, "prototypes": P} | change))
    assert caught.type is error  # not a subclass from inside torch


@pytest.mark.parametrize(("option", "value"), [("temperature", 1), ("easy_threshold", -3), ("easy_threshold", 0)])
def test_numbers_may_be_ints(option, value):
    assert torch.equal(spcl(X, Y, P, **{option: value}), spcl(X, Y, P, **{option: float(value)}))


def test_places_and_class_sizes_have_32_bits():
    """Kernels compare such in one instruction."""
    labels = torch.tensor([7, -1, 10**12, 7])
    comparison, sizes = _with_places(Comparison(labels, None, 1.0, 4, 4, False, torch.float32), labels >= 0, None)
    assert comparison.labels.dtype == sizes.dtype == torch.int32
    assert (comparison.labels.tolist(), sizes.tolist()) == ([1, -1, 3, 1], [2, 1, 1, 2])
