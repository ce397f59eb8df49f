"""What the checks accept, and what their messages say of the rest."""

import math

import pytest
import torch

from spcl_loss import _checks


@pytest.mark.parametrize("value", [1, 0.05, -3.0, 0, 10**300])
def test_finite_numbers_are_accepted(value):
    _checks.check_number("x", value)


@pytest.mark.parametrize(
    ("value", "minimum", "error", "says"),
    [
        (True, -math.inf, TypeError, "x must be a Python number; received bool"),
        (torch.tensor(1.0), -math.inf, TypeError, "x must be a Python number; received Tensor"),
        ("1", -math.inf, TypeError, "x must be a Python number; received str"),
        (math.nan, -math.inf, ValueError, "x must be a finite number; received nan"),
        (math.inf, -math.inf, ValueError, "x must be a finite number; received inf"),
        (-math.inf, -math.inf, ValueError, "x must be a finite number; received -inf"),
        (0.5, 0.5, ValueError, "x must be a finite number above 0.5; received 0.5"),
    ],
)
def test_other_numbers_are_refused(value, minimum, error, says):
    with pytest.raises(error, match=says):
        _checks.check_number("x", value, minimum)


def test_a_size_lies_between_its_bounds():
    for value in (1, 4):
        _checks.check_size("n", value, below=5)
    _checks.check_size("n", 0, minimum=0)
    for value, options, says in [
        (0, {}, "n must be at least 1; received 0"),
        (-1, {"minimum": 0}, "n must be at least 0; received -1"),
        (5, {"below": 5}, "n must be below 5; received 5"),
    ]:
        with pytest.raises(ValueError, match=says):
            _checks.check_size("n", value, **options)
    for value, says in [(True, "received bool"), (1.0, "received float")]:
        with pytest.raises(TypeError, match=f"n must be an int; {says}"):
            _checks.check_size("n", value)


@pytest.mark.parametrize(
    ("name", "received", "expected", "remedy"),
    [
        ("rows", (3, 2, 1), (3, 2), "Drop the last dimension with rows.squeeze(-1)"),
        ("rows", (4,), ("n", 4), "Make it a single row with rows[None]"),
        (
            "rows",
            (2, 3, 4),
            ("N", 4),
            "If these are 3 views of each sample, flatten them with rows.flatten(0, 1) and repeat the labels with "
            "labels.repeat_interleave(3)",
        ),
        ("rows", (2, 3, 4, 5), ("N", 4), "Flatten each sample into one row with rows.flatten(1)"),
        ("rows", (2, 3), ("N", 4), "Pass a tensor whose sizes match those of the other arguments"),
        ("rows", (), ("N", 4), "Pass a tensor whose sizes match those of the other arguments"),
        ("sample_weight", (2,), (3,), "Pass as many entries as there are rows"),
        ("class_weights", (2,), (3,), "Pass as many entries as there are classes"),
        ("class_weights", (2, 3), (3,), "Pass a tensor whose sizes match those of the other arguments"),
        ("class_weights", (2, 3, 4), (3,), "Pass a tensor whose sizes match those of the other arguments"),
        ("candidate_labels", (2, 3), (2,), "Turn one-hot labels into classes with candidate_labels.argmax(1)"),
    ],
)
def test_a_wrong_shape_names_the_remedy_of_its_mistake(name, received, expected, remedy):
    with pytest.raises(ValueError, match="must have shape") as caught:
        _checks.check_shape(name, torch.ones(received), expected)
    assert str(caught.value).endswith(f"received {received}. {remedy}")


def test_a_letter_stands_for_any_size():
    _checks.check_shape("rows", torch.ones(3, 2), ("N", 2))
    with pytest.raises(ValueError, match=r"rows must have shape \(N, 3\); received \(3, 2\)"):
        _checks.check_shape("rows", torch.ones(3, 2), ("N", 3))
    with pytest.raises(ValueError, match=r"rows must have shape \(4,\); received \(3,\)"):
        _checks.check_shape("rows", torch.ones(3), (4,))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_checked_labels_are_int64_and_minus_one_where_ignored(dtype):
    labels = torch.tensor([0, 4, 2, 4], dtype=dtype)
    checked = _checks.checked_labels(labels, 4, labels.device, num_classes=4, ignore_index=4)
    assert checked.dtype == torch.int64
    assert checked.tolist() == [0, -1, 2, -1]


@pytest.mark.parametrize(
    ("labels", "num_classes", "says"),
    [
        ([0, 3, -100], 3, "labels must be classes from 0 on below 3, or ignore_index=-100; received 3"),
        ([0, -1, -100], None, "labels must be classes from 0 on, or ignore_index=-100; received -1"),
        ([-100, 7, -2], 9, "received -2"),
    ],
)
def test_labels_that_are_no_class_are_named(labels, num_classes, says):
    labels = torch.tensor(labels)
    with pytest.raises(ValueError, match=says):
        _checks.checked_labels(labels, 3, labels.device, num_classes, ignore_index=-100)


def test_without_a_number_of_classes_any_label_from_0_on_is_one():
    labels = torch.tensor([0, 10**9])
    assert _checks.checked_labels(labels, 2, labels.device, None, -100).equal(labels)
    nothing = torch.empty(0, dtype=torch.long)
    assert _checks.checked_labels(nothing, 0, nothing.device, 3, -100).equal(nothing)


def test_indices_lie_within_the_samples():
    for indices in ([], [0, 4]):
        _checks.check_indices(torch.tensor(indices, dtype=torch.int32), len(indices), 5)
    for indices, received in [([0, 5], 5), ([-1, 2], -1)]:
        with pytest.raises(ValueError, match=f"indices must be at least 0 and below 5.*received {received}"):
            _checks.check_indices(torch.tensor(indices), 2, 5)
    with pytest.raises(ValueError, match=r"indices must have shape \(3,\); received \(2,\)"):
        _checks.check_indices(torch.tensor([0, 1]), 3, 5)


def test_an_empty_memory_is_refused():
    _checks.check_any_class(torch.tensor([False, True]))
    with pytest.raises(ValueError, match="the memory must hold a class to compare with; received an empty one"):
        _checks.check_any_class(torch.tensor([False, False]))


def test_values_are_not_looked_at_where_there_are_none():
    """On the meta device and within torch.func, in which a look is an error."""
    labels = torch.tensor([[7, -1], [0, 1]])

    def checked(row):
        return _checks.checked_labels(row, 2, row.device, 3, -100)

    assert torch.func.vmap(checked)(labels).equal(labels)
    assert checked(labels[0].to("meta")).is_meta
    _checks.check_any_class(torch.tensor([False], device="meta"))
