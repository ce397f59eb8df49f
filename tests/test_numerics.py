"""Rows of unit length, at the edges."""

import pytest
import torch

from spcl_loss import _numerics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_row_stays_zero_and_has_the_norm_one_half(dtype):
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype)
    unit, norms = _numerics.normalised(rows)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0], [0.6, 0.8]], dtype=dtype))
    torch.testing.assert_close(norms, torch.tensor([[0.5], [5.0]], dtype=dtype))


def test_the_gradient_of_a_zero_row_is_twice_the_one_it_gets():
    rows = torch.zeros(1, 3, requires_grad=True)
    _numerics.unit_rows(rows).backward(torch.tensor([[1.0, -2.0, 3.0]]))
    assert rows.grad.tolist() == [[2.0, -4.0, 6.0]]


@pytest.mark.parametrize("length", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_the_norm_of_a_row_of_any_length_is_right(length):
    unit, norms = _numerics.normalised(torch.tensor([[3.0, -4.0]]) / 5 * length)
    torch.testing.assert_close(unit, torch.tensor([[0.6, -0.8]]))
    torch.testing.assert_close(norms, torch.tensor([[length]]), rtol=1e-6, atol=0)


def test_a_row_that_is_left_out_becomes_zero_whatever_it_holds():
    rows = torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [torch.inf, 0.0]])
    unit, _ = _numerics.normalised(rows, torch.tensor([True, False, False]))
    assert unit.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert _numerics.normalised(rows)[0].isnan().tolist() == [[False, False], [True, True], [True, True]]


def test_meta_tensors_know_no_autocast():
    with _numerics.without_autocast("meta"):
        pass
    assert _numerics.matmul(torch.ones(2, 3, device="meta"), torch.ones(3, 4, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_each_operand_of_a_product_gets_its_gradient_where_it_is_wanted(wanted):
    left, right = (torch.randn(shape).requires_grad_(w) for shape, w in zip([(2, 3), (3, 4)], wanted, strict=True))
    _numerics.matmul(left, right).sum().backward()
    expected = torch.ones(2, 4) @ right.detach().T, left.detach().T @ torch.ones(2, 4)
    for operand, w, gradient in zip((left, right), wanted, expected, strict=True):
        assert (operand.grad is None) if not w else torch.allclose(operand.grad, gradient)
