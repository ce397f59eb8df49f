"""The Triton kernels under Triton's interpreter against the definition in float64, and through the compiler."""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interpreted import PATHS, WARNINGS, choose, dispatch, forward, interpret
from spcl_loss._similarity import Comparison, dense
from spcl_loss._similarity.comparison import LOG_ZERO, Upstream
from spcl_loss._similarity.kernels import config

pytestmark = WARNINGS


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    interpret(monkeypatch)


@functools.cache
def problem(seed, num_rows, width, num_anchors, num_grads, scale, dtype, weighted, with_sum, num_classes=4):
    """Arguments of the operator, and statistics and gradient of the definition in float64 at the rounded rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(num_rows, width, generator=generator), dim=1)
    labels = torch.randint(-1, num_classes, (num_rows,), generator=generator)
    log_weights = torch.randn(num_rows, generator=generator) - 1 if weighted else None
    exact = rows.to(dtype).double().requires_grad_()
    weights = None if log_weights is None else log_weights.double()
    expected = dense.statistics(
        exact, Comparison(labels, weights, scale, num_anchors, num_rows, with_sum, torch.float64)
    )
    grads = torch.randn(3, num_anchors, generator=generator) * (labels[:num_anchors] >= 0)
    for statistic in range(2):
        grads[statistic] *= expected[statistic] > LOG_ZERO / 2
    grads[2] *= with_sum
    total = sum((value * grad).sum() for value, grad in zip(expected, grads.double(), strict=True))
    (gradient,) = torch.autograd.grad(total, exact)
    arguments = (rows, labels, log_weights, scale)
    return arguments, grads, [value.detach() for value in expected], gradient[:num_grads]


def check(arguments, grads, expected, expected_gradient, with_sum, dtype):
    """Float32 sums of scores rounded at the scale's size; H is rounded to the products' dtype."""
    rows, labels, log_weights, scale = arguments
    num_anchors = grads.shape[1]
    comparison = Comparison(labels, log_weights, scale, num_anchors, len(expected_gradient), with_sum, dtype)
    found = dispatch.statistics(rows, comparison)
    counts = labels[:num_anchors] >= 0
    tolerance = 1e-6 * max(scale, 10)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value[counts].double(), reference[counts], rtol=1e-6, atol=tolerance)
    gradient = dispatch.gradient(rows, comparison, Upstream(*found[:2], grads))
    assert gradient.shape == expected_gradient.shape
    counts = labels[: len(expected_gradient)] >= 0
    size = expected_gradient[counts].norm()
    rounding = 2e-6 * max(scale, 10) / 10 if dtype == torch.float32 else 1e-3
    assert (gradient[counts] - expected_gradient[counts]).norm() <= rounding * size + 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("anchors", ["all", "batch", "batch_of_constants"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_gives_the_numbers_of_the_definition(monkeypatch, path, anchors, scale, dtype):
    choose(monkeypatch, path)
    num_rows, num_anchors = 37, 37 if anchors == "all" else 29
    num_grads = num_anchors if anchors == "batch_of_constants" else num_rows
    for with_sum in (False, True):
        made = problem(0, num_rows, 20, num_anchors, num_grads, scale, dtype, with_sum, with_sum)
        check(*made, with_sum, dtype)


@pytest.mark.parametrize("path", PATHS)
def test_pointers_give_the_numbers_of_descriptors(monkeypatch, path):
    made = problem(1, 41, 40, 37, 41, 20.0, torch.float16, True, True)
    for descriptors in (False, True):
        choose(monkeypatch, path, descriptors)
        check(*made, True, torch.float16)


@pytest.mark.parametrize("path", PATHS)
def test_rows_at_an_odd_address_are_copied(monkeypatch, path):
    """Tensor descriptors want addresses at multiples of 16 bytes; a view may begin anywhere."""
    choose(monkeypatch, path)
    (rows, labels, log_weights, scale), grads, *_ = problem(1, 41, 48, 37, 41, 20.0, torch.float32, True, True)
    shifted = torch.empty(rows.numel() + 1)[1:].view_as(rows).copy_(rows)
    assert shifted.is_contiguous() and shifted.data_ptr() % 16
    comparison = Comparison(labels, log_weights, scale, 37, 41, True, torch.float32)
    found, expected = (dispatch.statistics(some, comparison) for some in (shifted, rows))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    gradients = [dispatch.gradient(some, comparison, Upstream(*found[:2], grads)) for some in (shifted, rows)]
    assert torch.equal(*gradients)


def test_an_environment_variable_selects_pointers(monkeypatch):
    assert config.has_tensor_descriptors("sm_90")
    monkeypatch.setenv("SPCL_TENSOR_DESCRIPTORS", "0")
    assert not config.has_tensor_descriptors("sm_90")


@pytest.mark.parametrize("with_sum", [False, True])
def test_tiles_of_one_class_and_of_different_ones(monkeypatch, with_sum):
    choose(monkeypatch, "tiles, sorted")
    made = problem(5, 220, 16, 210, 220, 10.0, torch.float32, with_sum, with_sum, num_classes=2)
    labels = made[0][1]
    order = dispatch._class_order(labels, 210)
    assert torch.equal(order.sort().values, torch.arange(220)) and set(order[210:].tolist()) == set(range(210, 220))
    for part in (order[:210], order[210:]):  # candidates behind the anchors are sorted too
        assert (labels[part].diff() >= 0).all()
    tile = config.TILES["interpreter"]["ieee"]["forward"]
    reordered = Comparison(labels[order], None, 10.0, 210, 220, False, torch.float32)
    (least, greatest), _ = forward._described_rows(made[0][0][order], reordered, tile)
    whole = least == greatest
    assert (whole[:, None] & whole & (least[:, None] == least)).triu(2).any()  # a tile is two groups wide
    assert (greatest[:, None] < least).triu(2).any()
    check(*made, with_sum, torch.float32)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 50),
    width=st.integers(1, 40),
    left_out=st.integers(0, 20),
    with_grads=st.booleans(),
    scale=st.sampled_from([0.1, 10.0, 40.0, 41.0, 200.0]),
    half=st.booleans(),
    weighted=st.booleans(),
    with_sum=st.booleans(),
    num_classes=st.integers(1, 8),
    path=st.sampled_from(PATHS),
)
def test_any_shape(
    seed, num_rows, width, left_out, with_grads, scale, half, weighted, with_sum, num_classes, path
):  # fmt: skip
    dtype = torch.float16 if half else torch.float32
    num_anchors = max(1, num_rows - left_out)
    num_grads = num_rows if with_grads else num_anchors
    with pytest.MonkeyPatch.context() as patch:
        interpret(patch)
        choose(patch, path)
        made = problem(seed, num_rows, width, num_anchors, num_grads, scale, dtype, weighted, with_sum, num_classes)
        check(*made, with_sum, dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [10.0, 200.0])
def test_each_half_stands_alone(monkeypatch, path, scale):
    """As ranks use them: statistics of some anchors, gradients of fewer rows than there are anchors."""
    choose(monkeypatch, path)
    dtype, rounding = torch.float32, 2e-6 * max(scale, 10) / 10
    for few in (1, 17, 40):
        (rows, labels, log_weights, _), grads, expected, gradient = problem(
            5, 60, 20, 50, few, scale, dtype, True, True
        )
        comparison = Comparison(labels, log_weights, scale, few, few, True, dtype)
        found = dispatch.statistics(rows, comparison)
        valid = labels[:few] >= 0
        for of_few, of_all in zip(found, expected, strict=True):
            torch.testing.assert_close(of_few[valid].double(), of_all[:few][valid], rtol=1e-6, atol=1e-6 * scale)
        statistics = [value.float() for value in expected[:2]]
        found = dispatch.gradient(rows, comparison, Upstream(*statistics, grads))
        assert (found - gradient).norm() <= rounding * gradient.norm()


@pytest.mark.parametrize("path", PATHS)
def test_no_anchor(monkeypatch, path):
    choose(monkeypatch, path)
    rows, labels = torch.eye(3), torch.arange(3)
    comparison = Comparison(labels, None, 10.0, 0, 2, False, torch.float32)
    found = dispatch.statistics(rows, comparison)
    assert [value.shape for value in found] == [(0,)] * 3
    empty = torch.empty(0)
    gradient = dispatch.gradient(rows, comparison, Upstream(empty, empty, torch.empty(3, 0)))
    assert torch.equal(gradient, torch.zeros(2, 3))
    upstream = Upstream(torch.ones(3), torch.ones(3), torch.ones(3, 3))
    gradient = dispatch.gradient(rows, comparison._replace(num_anchors=3, num_grads=0), upstream)
    assert gradient.shape == (0, 3)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [10.0, 200.0])
def test_not_a_number_comes_through(monkeypatch, path, scale):
    choose(monkeypatch, path)
    (rows, labels, _, _), *_ = problem(2, 40, 20, 40, 40, scale, torch.float32, False, False, num_classes=2)
    labels = labels.abs()
    rows = rows.index_fill(0, torch.tensor(7), torch.nan)
    comparison = Comparison(labels, None, scale, 40, 40, False, torch.float32)
    negative, positive, _ = dispatch.statistics(rows, comparison)
    others = torch.arange(40) != 7
    same = labels == labels[7]
    assert positive[same].isnan().all() and negative[others & ~same].isnan().all()
    assert positive[~same].isfinite().all() and negative[others & same].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", [257, 5000, 65536, 2**20])
@pytest.mark.parametrize("num_anchors", [1, 4097, 2**20])
def test_what_is_kept_between_kernels_is_bounded(dtype, num_rows, num_anchors):
    num_anchors = min(num_rows, num_anchors)
    tile = config.TILES["sm_90"]["half"]["backward"]
    height, breadth = config.workspace_shape(num_rows, num_anchors, tile, dtype)
    assert height % tile.rows == 0 < height and breadth % tile.columns == 0 < breadth
    assert height * breadth * dtype.itemsize <= config.WORKSPACE_BYTES
    bands = config.forward_bands(num_rows, num_anchors, tile)
    assert [first for first, _ in bands] == [0, *itertools.accumulate(height for _, height in bands)][:-1]
    assert sum(height for _, height in bands) == num_anchors
    for _, height in bands:
        # Three float32 statistics for each row and block of columns, and the other way round: a tile more at the edges.
        blocks = (
            -(-height // tile.rows) * (num_rows + tile.columns),
            -(-num_rows // tile.columns) * (height + tile.rows),
        )
        assert all(12 * entries <= 1.05 * config.WORKSPACE_BYTES for entries in blocks)
