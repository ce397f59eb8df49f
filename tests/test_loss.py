"""The loss function: golden numbers, reductions and weights, dtypes, degenerate batches, bad input."""

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

GOLDEN = Path(__file__).parent / "golden"
SPDCL, SUPCON, BCL, EACL = (dict(METHODS[name]) for name in ("spdcl", "supcon", "bcl", "eacl"))
SPCL = METHODS["spcl"] | {"easy_threshold": 0.3}  # as in the authors' code
FIVE = pytest.mark.parametrize("options", [SPCL, SPDCL, SUPCON, BCL, EACL])
BATCHES = ["meld_batch", "iemocap_batch", "two_classes", "absent_classes", "single_anchor", "separated"]


def golden(name):
    return {key: torch.from_numpy(np.asarray(array)) for key, array in np.load(GOLDEN / f"{name}.npz").items()}


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
        g = golden(name)
        value, gradient, _ = oracle.value_and_gradients(
            function, g["embeddings"], g["labels"], g["prototypes"], temperature=g["temperature"].item(), **options
        )
        assert_relative([value, gradient], [g[f"loss_{method}"], g[f"grad_{method}"]], 1e-5)

    @pytest.mark.parametrize(
        ("name", "options", "tolerance"),
        [("supcon", SUPCON, 1e-12), ("balanced", BCL, 1e-12), ("anchored", EACL, 1e-5)],
    )
    def test_related_methods(self, function, name, options, tolerance):
        g = golden(name)
        ours = oracle.value_and_gradients(
            function, g["embeddings"], g["labels"], g.get("prototypes"), temperature=g["temperature"].item(), **options
        )
        theirs = [g[key] for key in ("loss", "grad_embeddings", "grad_prototypes") if key in g]
        assert_relative(ours, theirs, tolerance)


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
        g = golden(name)
        value, gradient, _ = oracle.value_and_gradients(
            with_epsilon,
            g["embeddings"],
            g["labels"],
            g["prototypes"],
            temperature=g["temperature"].item(),
            easy_threshold=0.3,
        )
        assert_relative([value, gradient], [g["loss_spcl"], g["grad_spcl"]], 1e-9)

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
        labels = labels % (6 - absent)
        options = {"temperature": 0.1, **EACL}
        each = spcl(embeddings, labels, prototypes, **options, reduction="none")
        anchors, counted = len(each), int((each > 0).sum())
        assert anchors - counted == absent
        value, *gradients = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl=impl)
        rescaled = (counted * value - absent * math.log(1e-8)) / anchors, *(g * counted / anchors for g in gradients)
        theirs = oracle.value_and_gradients(
            with_epsilon,
            embeddings,
            labels,
            prototypes,
            temperature=0.1,
            easy_threshold=0.0,
            prototype_anchors=True,
        )
        assert_relative(rescaled, theirs, 1e-5)
        assert value < 0.9 * theirs[0]


class TestReduction:
    @FIVE
    def test_mean_and_sum_follow_from_none(self, options):
        embeddings, labels, prototypes = batch(N=13)
        labels[[2, 5]] = -100
        weight = torch.rand(13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        class_weights = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
        options = dict(options, sample_weight=weight, class_weights=class_weights)
        each, total, mean = (
            spcl(embeddings, labels, prototypes, **options, reduction=r) for r in ("none", "sum", "mean")
        )
        weights = weight * class_weights[labels.clamp(min=0)]
        if options.get("prototype_anchors"):
            weights = torch.cat([weights, class_weights])
        assert each.shape == weights.shape
        assert each[2] == 0
        assert each[5] == 0
        torch.testing.assert_close(each.sum(), total)
        torch.testing.assert_close(mean, total / weights[each != 0].sum())

    def test_defaults_are_unweighted(self):
        embeddings, labels, prototypes = batch()
        ones = {"sample_weight": torch.ones(12), "class_weights": torch.ones(4)}
        torch.testing.assert_close(
            spcl(embeddings, labels, prototypes), spcl(embeddings, labels, prototypes, **ones), rtol=1e-14, atol=0
        )

    def test_anchors_not_above_the_threshold_count_nowhere(self):
        embeddings, labels, prototypes = batch()
        each = spcl(embeddings, labels, prototypes, reduction="none")
        threshold = each.sort().values[5].item()  # equal is not above
        kept = each[each > threshold]
        assert len(kept) == 6
        torch.testing.assert_close(spcl(embeddings, labels, prototypes, easy_threshold=threshold), kept.mean())

    def test_zero_weights_leave_a_zero_with_a_graph(self):
        embeddings, labels, prototypes = batch()
        value, gradient, _ = oracle.value_and_gradients(
            spcl, embeddings, labels, prototypes, sample_weight=torch.zeros(12)
        )
        assert value == 0
        assert not gradient.any()


class TestRows:
    """Which rows take part."""

    @FIVE
    @pytest.mark.parametrize("ignore_index", [-100, -1, 255, 2])
    def test_ignoring_equals_removing(self, impl, options, ignore_index):
        embeddings, labels, prototypes = batch(N=15)
        options = dict(options, impl=impl)
        keep = (torch.arange(15) % 5 != 3) & (labels != ignore_index)
        labels = torch.where(keep, labels, ignore_index)
        ours = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, ignore_index=ignore_index)
        without = oracle.value_and_gradients(spcl, embeddings[keep], labels[keep], prototypes, **options)
        assert not ours[1][~keep].any()
        assert_relative([ours[0], ours[1][keep], ours[2]], without, 1e-12)

    @FIVE
    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_what_does_not_take_part_may_be_anything(self, impl, options, poison):
        embeddings, labels, prototypes = batch(N=13)
        labels[4] = -100
        options = dict(options, impl=impl, prototype_mask=torch.tensor([True, False, True, True]))
        clean = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options)
        embeddings[4], prototypes[1] = poison, poison
        poisoned = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options)
        for a, b in zip(poisoned, clean, strict=True):
            assert torch.equal(a, b)

    @FIVE
    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_a_counted_row_that_is_not_finite_makes_the_loss_nan(self, impl, options, poison, reduction):
        embeddings, labels, prototypes = batch()
        embeddings[3, 0] = poison
        assert spcl(embeddings, labels, prototypes, **options, impl=impl, reduction=reduction).isnan()

    @FIVE
    def test_further_candidates(self, impl, options):
        """Also without prototypes, and with a NaN in a row that is ignored."""
        embeddings, labels, prototypes = batch(N=13)
        candidates, candidate_labels = batch(N=9, seed=1)[:2]
        candidates[4], candidate_labels[4] = torch.nan, -100
        options = options | {"candidates": candidates, "candidate_labels": candidate_labels, "temperature": 0.2}
        for rows in (prototypes, None):
            if rows is None:
                options["prototype_anchors"] = False
            expected = oracle.value_and_gradients(oracle.loss, embeddings, labels, rows, **options)
            ours = oracle.value_and_gradients(spcl, embeddings, labels, rows, **options, impl=impl)
            for a, b in zip(ours, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    def test_masked_prototypes_are_no_candidates(self):
        embeddings, labels, prototypes = batch()
        none = torch.zeros(4, dtype=torch.bool)
        assert torch.equal(spcl(embeddings, labels, prototypes, prototype_mask=none), spcl(embeddings, labels))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
    def test_labels_of_any_integer_dtype(self, dtype):
        embeddings, labels, prototypes = batch()
        value = spcl(embeddings, labels.to(dtype), prototypes, class_weights=torch.ones(4))
        assert torch.equal(value, spcl(embeddings, labels, prototypes, class_weights=torch.ones(4)))


class TestPrecision:
    @FIVE
    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_half_inputs_are_computed_in_float32(self, impl, options, half):
        embeddings, labels, prototypes = batch(dtype=torch.float32)
        options = dict(options, impl=impl)
        embeddings, prototypes = embeddings.to(half), prototypes.to(half)
        ours = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options)
        single = oracle.value_and_gradients(spcl, embeddings.float(), labels, prototypes.float(), **options)
        assert ours[0].dtype == torch.float32
        assert torch.equal(ours[0], single[0])
        for a, b in zip(ours[1:], single[1:], strict=True):
            assert torch.equal(a, b.to(half))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_other_inputs_keep_their_dtype(self, dtype):
        assert spcl(*batch(dtype=dtype)).dtype == dtype

    @FIVE
    def test_autocast_changes_no_number(self, impl, options):
        tensors, options = batch(dtype=torch.float32), dict(options, impl=impl)

        def under_autocast(*tensors, **options):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return spcl(*tensors, **options)

        plain = oracle.value_and_gradients(spcl, *tensors, **options)
        for a, b in zip(oracle.value_and_gradients(under_autocast, *tensors, **options), plain, strict=True):
            assert torch.equal(a, b)

    @FIVE
    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("where", ["around forward and backward", "around backward"])
    @pytest.mark.parametrize("temperature", [0.02, 0.05])
    def test_autocast_around_backward_changes_no_number(self, impl, options, half, where, temperature):
        tensors, options = batch(N=40, dtype=torch.float32), dict(options, impl=impl, temperature=temperature)
        plain = oracle.value_and_gradients(spcl, *tensors, **options)
        leaves = [leaf.clone().requires_grad_() for leaf in (tensors[0], tensors[2])]
        with torch.autocast("cpu", dtype=half, enabled="forward" in where):
            value = spcl(leaves[0], tensors[1], leaves[1], **options)
        with torch.autocast("cpu", dtype=half):
            value.backward()
        for a, b in zip([value, *(leaf.grad for leaf in leaves)], plain, strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_autocast_changes_no_second_derivative(self, half):
        embeddings, labels, _ = batch(dtype=torch.float32)

        def second_derivative(enabled):
            leaf = embeddings.clone().requires_grad_()
            value = spcl(leaf, labels, impl="dense")
            with torch.autocast("cpu", dtype=half, enabled=enabled):
                (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
                gradient.square().sum().backward()
            return leaf.grad

        assert torch.equal(second_derivative(enabled=True), second_derivative(enabled=False))

    def test_any_strides(self):
        embeddings, labels, prototypes = batch()
        wide = torch.randn(24, 16, dtype=torch.float64)
        wide[::2, ::2] = embeddings
        expected = spcl(embeddings, labels, prototypes)
        transposed = prototypes.T.contiguous().T
        spread = labels.repeat_interleave(2)[::2]
        torch.testing.assert_close(spcl(wide[::2, ::2], spread, transposed), expected, rtol=1e-14, atol=0)


def test_labels_may_be_any_number_from_zero_on(impl):
    embeddings, labels, _ = batch()
    renamed = torch.tensor([3, 2**40, 5_000_000_000, 2**63 - 1])[labels]
    expected = oracle.value_and_gradients(spcl, embeddings, labels, impl=impl)
    assert_relative(oracle.value_and_gradients(spcl, embeddings, renamed, impl=impl), expected, 1e-14)


def test_flattened_views_are_rows_of_the_batch():
    """What the error for (N, V, D) embeddings says to do."""
    views = torch.randn(6, 2, 8, dtype=torch.float64)
    labels = torch.arange(6) % 3
    flat = spcl(views.flatten(0, 1), labels.repeat_interleave(2), reduction="none")
    one_after_another = spcl(torch.cat([views[:, 0], views[:, 1]]), labels.repeat(2), reduction="none")
    torch.testing.assert_close(flat.view(6, 2).T.flatten(), one_after_another)


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
    "prototypes absent": (drawn(2, 3), [0, 1], drawn(2, 3), {"prototype_mask": torch.tensor([False] * 2)}),
    "prototypes alone": (torch.empty(0, 3), [], drawn(2, 3), {"prototype_anchors": True}),
}
DEGENERATE = {
    "C = 1": (drawn(4, 3), [0] * 4, drawn(1, 3)),
    "D = 1": (drawn(6, 1), [0, 1, 0, 1, 2, 2], drawn(3, 1)),
    "all rows the same": (torch.ones(6, 3), [0, 1, 0, 1, 2, 2], torch.ones(3, 3)),
    "zero rows": (torch.zeros(6, 3), [0, 1, 0, 1, 2, 2], torch.zeros(3, 3)),
    "tiny rows": (drawn(6, 3) * 1e-25, [0, 1, 0, 1, 2, 2], drawn(3, 3) * 1e-25),
    "huge rows": (drawn(6, 3) * 1e30, [0, 1, 0, 1, 2, 2], drawn(3, 3) * 1e30),
    "antipodal rows": (
        drawn(3, 3).repeat(2, 1) * torch.tensor([[1.0], [-1.0]]).repeat_interleave(3, 0),
        [0, 1, 2, 0, 1, 2],
        drawn(3, 3),
    ),
    "a class never seen": (drawn(4, 3), [0, 0, 2, 2], drawn(5, 3)),
}


class TestDegenerateBatches:
    @pytest.mark.parametrize("case", NOTHING_TO_COMPARE)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_nothing_to_compare_is_a_zero_with_a_graph(self, impl, case, reduction):
        embeddings, labels, prototypes, options = NOTHING_TO_COMPARE[case]
        leaves = [leaf.clone().requires_grad_() for leaf in (embeddings, prototypes) if leaf is not None]
        value = spcl(
            leaves[0], torch.tensor(labels, dtype=torch.long), *leaves[1:], **options, impl=impl, reduction=reduction
        )
        assert value.requires_grad
        assert not value.any()
        value.sum().backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert not leaf.grad.any()

    @FIVE
    @pytest.mark.parametrize("case", DEGENERATE)
    @pytest.mark.parametrize("temperature", [0.005, 0.05, 10.0])
    def test_value_and_gradients_are_finite_and_right(self, impl, options, case, temperature):
        embeddings, labels, prototypes = DEGENERATE[case]
        tensors = embeddings, torch.tensor(labels), prototypes
        options = dict(options, temperature=temperature, easy_threshold=None)  # losses that are 0 but for rounding
        ours = oracle.value_and_gradients(spcl, *tensors, **options, impl=impl)
        assert all(x.isfinite().all() for x in ours)
        expected = oracle.loss(*tensors, **options)
        assert (ours[0] - expected).abs() <= 1e-5 * max(1.0, 1 / temperature)


X, Y, P = drawn(4, 3), torch.tensor([0, 1, 0, 1]), drawn(2, 3)
BAD_INPUT = {
    "embeddings no tensor": (TypeError, "tensor", "list", {"embeddings": X.tolist()}),
    "embeddings of integers": (TypeError, "float", "int64", {"embeddings": X.long()}),
    "embeddings one-dimensional": (ValueError, "(N, D)", "(4,)", {"embeddings": X[:, 0]}),
    "labels no tensor": (TypeError, "converts lists and arrays of numbers", "list", {"labels": list("abab")}),
    "labels of floats": (TypeError, "Convert whole numbers with labels.long()", "float32", {"labels": Y.float()}),
    "labels of another length": (ValueError, "(4,)", "(3,)", {"labels": Y[:3]}),
    "labels in a column": (ValueError, "labels.squeeze(-1)", "(4, 1)", {"labels": Y[:, None]}),
    "labels one-hot": (ValueError, "labels.argmax(1)", "(4, 2)", {"labels": torch.eye(2, dtype=torch.long)[Y]}),
    "labels one-hot and floating": (ValueError, "labels.argmax(1)", "(4, 2)", {"labels": torch.eye(2)[Y]}),
    "views": (
        ValueError,
        "2 views of each sample, flatten them with embeddings.flatten(0, 1) and repeat the labels with "
        "labels.repeat_interleave(2)",
        "(2, 2, 3)",
        {"embeddings": X.view(2, 2, 3)},
    ),
    "images": (ValueError, "embeddings.flatten(1)", "(4, 3, 2, 2)", {"embeddings": drawn(4, 3, 2, 2)}),
    "a single row": (ValueError, "embeddings[None]", "(3,)", {"embeddings": X[0]}),
    "embeddings without dimensions": (ValueError, "Pass a tensor whose sizes", "()", {"embeddings": X[0, 0]}),
    "label too large": (
        ValueError,
        "labels must be classes from 0 on, below 2, or ignore_index=-100",
        "received 2",
        {"labels": torch.tensor([0, 1, 0, 2])},
    ),
    "label negative": (ValueError, "-100", "received -3", {"labels": torch.tensor([-100, 1, -3, -2])}),
    "label negative without prototypes": (
        ValueError,
        "labels must be classes from 0 on, or ignore_index=-100",
        "received -1. Number them from 0 on, or pass ignore_index=-1 if such rows have no label",
        {"labels": torch.tensor([0, -1, -100, 0]), "prototypes": None},
    ),
    "prototypes of another width": (
        ValueError,
        "(C, 3); received (2, 5). Pass a tensor whose sizes match those of the other arguments",
        "(2, 5)",
        {"prototypes": drawn(2, 5)},
    ),
    "prototypes, several of a class": (
        ValueError,
        "Pass several prototypes of a class as rows of candidates, with their classes as candidate_labels",
        "(2, 4, 3)",
        {"prototypes": drawn(2, 4, 3)},
    ),
    "candidates, several of a sample": (
        ValueError,
        "candidates.flatten(0, 1) and repeat the labels with candidate_labels.repeat_interleave(4)",
        "(2, 4, 3)",
        {"candidates": drawn(2, 4, 3), "candidate_labels": torch.arange(2)},
    ),
    "prototypes one-dimensional": (ValueError, "(C, 3)", "(3,)", {"prototypes": P[0]}),
    "prototypes of integers": (TypeError, "float", "int64", {"prototypes": P.long()}),
    "prototypes on another device": (ValueError, "cpu", "meta", {"prototypes": P.to("meta")}),
    "labels on another device": (ValueError, "cpu", "meta", {"labels": Y.to("meta")}),
    "mask of another length": (
        ValueError,
        "(2,); received (3,). Pass as many entries as there are classes",
        "(3,)",
        {"prototype_mask": torch.ones(3, dtype=torch.bool)},
    ),
    "mask of integers": (TypeError, "bool", "int64", {"prototype_mask": torch.ones(2, dtype=torch.int64)}),
    "class weights of integers": (TypeError, "class_weights must be a floating", "int64", {"class_weights": Y[:2]}),
    "class weights of another length": (ValueError, "(3, 3)", "(2, 3)", {"class_weights": torch.ones(3)}),
    "class weights with two dimensions": (ValueError, "Pass a tensor whose sizes", "(2, 3)", {"class_weights": P}),
    "sample weight of another length": (
        ValueError,
        "(4,); received (2,). Pass as many entries as there are rows",
        "(2,)",
        {"sample_weight": torch.ones(2)},
    ),
    "temperature zero": (ValueError, "above 1e-06", "0", {"temperature": 0.0}),
    "temperature negative": (ValueError, "above 1e-06", "-0.1", {"temperature": -0.1}),
    "temperature that overflows": (ValueError, "above 1e-06", "1e-40", {"temperature": 1e-40}),
    "prototype anchors no bool": (TypeError, "True or False", "'yes'", {"prototype_anchors": "yes"}),
    "gathering no bool": (TypeError, "True or False", "'False'", {"gather_distributed": "False"}),
    "embeddings of eight bits": (TypeError, "16, 32 or 64", "float8", {"embeddings": X.to(torch.float8_e4m3fn)}),
    "sparse embeddings": (TypeError, "dense", "sparse_coo", {"embeddings": X.detach().to_sparse()}),
    "temperature NaN": (ValueError, "finite", "nan", {"temperature": float("nan")}),
    "temperature infinite": (ValueError, "finite", "inf", {"temperature": math.inf}),
    "temperature at its bound": (ValueError, "a finite number above 1e-06", "1e-06", {"temperature": 1e-6}),
    "temperature True": (TypeError, "a Python number", "bool", {"temperature": True}),
    "temperature in a tensor": (TypeError, "a Python number", "Tensor", {"temperature": torch.tensor(0.1)}),
    "temperature in a text": (TypeError, "a Python number", "str", {"temperature": "1"}),
    "easy threshold infinite": (ValueError, "must be a finite number;", "-inf", {"easy_threshold": -math.inf}),
    "easy threshold no number": (TypeError, "easy_threshold", "str", {"easy_threshold": "low"}),
    "easy threshold NaN": (ValueError, "easy_threshold", "nan", {"easy_threshold": float("nan")}),
    "ignore_index too large": (ValueError, "below 9223372036854775808", "received 9223", {"ignore_index": 2**63}),
    "ignore_index True": (TypeError, "ignore_index must be an int", "bool", {"ignore_index": True}),
    "ignore_index 1.0": (TypeError, "ignore_index must be an int", "float", {"ignore_index": 1.0}),
    "ignore_index no int": (TypeError, "ignore_index", "str", {"ignore_index": "-100"}),
    "no width": (ValueError, "at least 1", "0", {"embeddings": X[:, :0], "prototypes": P[:, :0]}),
    "candidates without labels": (ValueError, "candidate_labels=None", "belong together", {"candidates": P}),
    "candidate labels alone": (ValueError, "candidates=None", "belong together", {"candidate_labels": Y}),
    "candidates of another width": (
        ValueError,
        "(M, 3)",
        "(2, 5)",
        {"candidates": drawn(2, 5), "candidate_labels": Y[:2]},
    ),
    "candidate labels of another length": (
        ValueError,
        "candidate_labels must have shape (2,)",
        "(4,)",
        {"candidates": P, "candidate_labels": Y},
    ),
    "candidate labels one-hot": (
        ValueError,
        "candidate_labels.argmax(1)",
        "(4, 3)",
        {"candidates": X, "candidate_labels": torch.ones(4, 3)},
    ),
    "candidate label too large": (
        ValueError,
        "candidate_labels must be classes from 0 on, below 2",
        "5",
        {"candidates": P, "candidate_labels": torch.tensor([0, 5])},
    ),
    "candidates on another device": (
        ValueError,
        "cpu",
        "meta",
        {"candidates": P.to("meta"), "candidate_labels": Y[:2]},
    ),
    "unknown similarity": (ValueError, "shifted_cosine", "euclidean", {"similarity": "euclidean"}),
    "unknown positives": (ValueError, "outside", "both", {"positives": "both"}),
    "unknown contrast": (ValueError, "class_balanced", "some", {"contrast": "some"}),
    "unknown reduction": (ValueError, "none", "median", {"reduction": "median"}),
    "unknown impl": (ValueError, "dense", "fast", {"impl": "fast"}),
    "prototype anchors without prototypes": (
        ValueError,
        "needs prototypes",
        "None",
        {"prototypes": None, "prototype_anchors": True},
    ),
    "mask without prototypes": (
        ValueError,
        "prototypes",
        "None",
        {"prototypes": None, "prototype_mask": torch.tensor([True, False])},
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_names_expected_and_received(case):
    error, expected, received, change = BAD_INPUT[case]
    with pytest.raises(error) as caught:
        spcl(**({"embeddings": X, "labels": Y, "prototypes": P} | change))
    assert caught.type is error  # not a subclass from inside torch
    assert expected in str(caught.value)
    assert received in str(caught.value)


@pytest.mark.parametrize(("option", "value"), [("temperature", 1), ("easy_threshold", -3), ("easy_threshold", 0)])
def test_numbers_may_be_ints(option, value):
    assert torch.equal(spcl(X, Y, P, **{option: value}), spcl(X, Y, P, **{option: float(value)}))


def test_places_and_class_sizes_have_32_bits():
    """Kernels compare such in one instruction."""
    labels = torch.tensor([7, -1, 10**12, 7])
    comparison, sizes = _with_places(Comparison(labels, None, 1.0, 4, 4, False, torch.float32), labels >= 0, None)
    assert comparison.labels.dtype == sizes.dtype == torch.int32
    assert (comparison.labels.tolist(), sizes.tolist()) == ([1, -1, 3, 1], [2, 1, 1, 2])
