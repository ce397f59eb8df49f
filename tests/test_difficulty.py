"""Difficulty: golden numbers, agreement with loops in float64, blocks, what is not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from spcl_loss import prototype_difficulty, prototype_difficulty_blocks
from support import oracle

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / "golden" / "curriculum.npz").items()}
DRAWN = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class TestDifficulty:
    def test_golden(self):
        difficulty = prototype_difficulty(GOLDEN["embeddings"], GOLDEN["labels"], GOLDEN["centers"])
        torch.testing.assert_close(difficulty, GOLDEN["difficulty"], rtol=1e-5, atol=0)
        assert torch.equal(difficulty.argsort(), GOLDEN["easy_to_hard"])

    def test_agrees_with_the_oracle_where_a_class_is_absent(self):
        embeddings, labels = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3 * 2  # classes 0, 2, 4
        centers = {c: embeddings[labels == c].mean(0) for c in (0, 2, 4)}
        expected = torch.tensor(oracle.difficulty(embeddings, labels, centers), dtype=torch.float64)
        torch.testing.assert_close(prototype_difficulty(embeddings, labels), expected)

    def test_blocks_change_no_number(self):
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(40_000, 4, generator=generator)
        labels = torch.randint(5, (40_000,), generator=generator)
        centers = torch.randn(5, 4, generator=generator)
        pieces = zip(embeddings.split(999), labels.split(999), strict=True)
        expected = torch.cat([prototype_difficulty(rows, own, centers) for rows, own in pieces])
        torch.testing.assert_close(prototype_difficulty(embeddings, labels, centers), expected, rtol=1e-5, atol=1e-7)
        means = torch.stack([embeddings[labels == c].mean(0) for c in range(5)])
        by_means = prototype_difficulty(embeddings, labels, means)
        torch.testing.assert_close(prototype_difficulty(embeddings, labels), by_means, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_half_embeddings_are_computed_in_float32(self, dtype):
        embeddings, labels = torch.randn(50, 8).to(dtype), torch.arange(50) % 4
        difficulty = prototype_difficulty(embeddings, labels)
        assert difficulty.dtype == torch.float32
        torch.testing.assert_close(difficulty, prototype_difficulty(embeddings.float(), labels))

    @pytest.mark.parametrize(
        ("embeddings", "labels"),
        [
            (DRAWN, [0] * 4),
            (torch.ones(4, 3), [0, 0, 1, 1]),
            (torch.zeros(4, 3), [0, 0, 1, 1]),
            (DRAWN * 1e30, [0, 1, 0, 1]),
            (DRAWN * 1e-30, [0, 1, 0, 1]),
            (torch.eye(3), [0, 1, 2]),
            (torch.empty(0, 3), []),
        ],
        ids=["one class", "all the same", "zero", "huge", "tiny", "own centre", "empty"],
    )
    def test_degenerate_embeddings_stay_in_the_unit_interval(self, embeddings, labels):
        difficulty = prototype_difficulty(embeddings, torch.tensor(labels, dtype=torch.long))
        assert difficulty.shape == (len(labels),)
        assert ((difficulty >= 0) & (difficulty <= 1)).all()  # false for NaN

    def test_carries_no_graph(self):
        assert not prototype_difficulty(torch.randn(4, 3, requires_grad=True), torch.tensor([0, 0, 1, 1])).requires_grad

    def test_classes_without_a_centre_take_no_part(self):
        embeddings, labels, centers = torch.randn(30, 5), torch.arange(30) % 3, torch.randn(3, 5)
        mask = torch.tensor([True, False, True])
        masked = prototype_difficulty(embeddings, labels, centers, mask)
        known = labels != 1
        expected = prototype_difficulty(embeddings[known], labels[known] // 2, centers[[0, 2]])
        torch.testing.assert_close(masked[known], expected)
        assert masked[~known].isnan().all()

    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_poisons_nothing_else(self, wrong):
        embeddings, labels = torch.randn(30, 5), torch.arange(30) % 3
        poisoned = embeddings.clone()
        poisoned[[4, 9], [0, 3]] = wrong
        labels[4] = 7  # the only row of its class
        finite = poisoned.isfinite().all(1)
        difficulty = prototype_difficulty(poisoned, labels)
        torch.testing.assert_close(difficulty[finite], prototype_difficulty(embeddings[finite], labels[finite]))
        assert difficulty[~finite].isnan().all()

    def test_a_centre_that_is_not_finite_is_none(self):
        embeddings, labels, centers = torch.randn(30, 5), torch.arange(30) % 3, torch.randn(3, 5)
        centers[1, 2] = torch.nan
        expected = prototype_difficulty(embeddings, labels, centers, torch.tensor([True, False, True]))
        torch.testing.assert_close(prototype_difficulty(embeddings, labels, centers), expected, equal_nan=True)

    @pytest.mark.parametrize("ignore_index", [-100, 3, 255])
    def test_ignored_rows_have_no_difficulty_and_change_nothing(self, ignore_index):
        embeddings, labels = torch.randn(30, 5), torch.arange(30) % 3
        ignored = torch.arange(30) % 7 == 2
        marked = labels.masked_fill(ignored, ignore_index)
        options = {} if ignore_index == -100 else {"ignore_index": ignore_index}
        for centers in (None, torch.randn(4, 5)):
            expected = prototype_difficulty(embeddings[~ignored], labels[~ignored], centers)
            blocks = in_blocks(embeddings, marked, 8)
            for difficulty in (
                prototype_difficulty(embeddings, marked, centers, **options),
                prototype_difficulty_blocks(blocks, 30, centers, **options),
            ):
                assert difficulty[ignored].isnan().all()
                torch.testing.assert_close(difficulty[~ignored], expected)

    @pytest.mark.parametrize("centers", [None, torch.empty(0, 3)])
    def test_where_all_rows_are_ignored_none_has_a_difficulty(self, centers):
        assert prototype_difficulty(DRAWN, torch.full((4,), -100), centers).isnan().all()

    def test_the_class_that_a_negative_index_would_wrap_to_is_not_ignored(self):
        embeddings, labels = torch.randn(6, 3), torch.tensor([156, 156, 7, 7, 0, 0])
        expected = prototype_difficulty(embeddings, labels)
        assert torch.equal(prototype_difficulty(embeddings, labels.to(torch.uint8)), expected)
        assert expected.isfinite().all()

    def test_labels_may_be_any_numbers(self):
        """As in the loss, memory depends on the classes that occur, not on the largest label."""
        embeddings, labels = torch.randn(30, 5), torch.arange(30) % 3
        numbers = torch.tensor([2**62, 5, 3 * 10**9])[labels]
        expected = prototype_difficulty(embeddings, labels)
        torch.testing.assert_close(prototype_difficulty(embeddings, numbers), expected)
        torch.testing.assert_close(prototype_difficulty_blocks(in_blocks(embeddings, numbers, 8), 30), expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_leave_one_out_agrees_with_a_plain_loop(self, dtype):
        embeddings = torch.randn(25, 6, dtype=torch.float64)
        labels = torch.tensor([0] * 12 + [2] * 10 + [5] * 2 + [6])  # 6 has one row, others are absent
        expected = []
        for row in range(25):
            centers = {}
            for c in (0, 2, 5, 6):
                members = [i for i in range(25) if labels[i] == c and (i != row)]
                if members:
                    centers[c] = embeddings[members].mean(0)
            own = int(labels[row])
            known = own in centers
            expected += oracle.difficulty(embeddings[[row]], labels[[row]], centers) if known else [float("nan")]
        expected = torch.tensor(expected, dtype=dtype)
        assert expected.isnan().nonzero().flatten().tolist() == [24]
        embeddings = embeddings.to(dtype)
        whole = prototype_difficulty(embeddings, labels, leave_one_out=True)
        torch.testing.assert_close(whole, expected, equal_nan=True)
        blocks = in_blocks(embeddings, labels, 7, torch.randperm(25))
        torch.testing.assert_close(prototype_difficulty_blocks(blocks, 25, leave_one_out=True), whole, equal_nan=True)

    def test_on_noise_only_leave_one_out_treats_small_classes_alike(self):
        labels = torch.cat([torch.zeros(800), torch.ones(200), torch.arange(2, 102).repeat(2)]).long()
        embeddings = torch.randn(1200, 16)
        own_included = prototype_difficulty(embeddings, labels)
        left_out = prototype_difficulty(embeddings, labels, leave_one_out=True)
        large, small = labels == 0, labels >= 2
        assert own_included[small].mean() < 0.5 * own_included[large].mean()
        assert left_out[small].mean() == pytest.approx(float(left_out[large].mean()), rel=0.05)
        only = prototype_difficulty(embeddings[:1001], labels[:1001])[1000]  # the one row of its class
        assert only == pytest.approx(0, abs=1e-5)

    def test_autocast_changes_no_number(self):
        embeddings, labels, centers = torch.randn(30, 5), torch.arange(30) % 3, torch.randn(3, 5)
        for options in ({}, {"centers": centers}, {"leave_one_out": True}):
            expected = prototype_difficulty(embeddings, labels, **options)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(prototype_difficulty(embeddings, labels, **options), expected)


def in_blocks(embeddings, labels, size, order=None):
    order = torch.arange(len(labels)) if order is None else order
    return [(rows, embeddings[rows], labels[rows]) for rows in order.split(size)]


class TestBlocks:
    @pytest.mark.parametrize("size", [1, 7, 40])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_two_passes_give_what_the_whole_gives(self, size, dtype):
        embeddings, labels = torch.randn(40, 6).to(dtype), torch.arange(40) % 5 * 2  # classes 1, 3, ... have no sample
        order = torch.randperm(40)
        expected = prototype_difficulty(embeddings, labels)
        actual = prototype_difficulty_blocks(in_blocks(embeddings, labels, size, order), 40)
        torch.testing.assert_close(actual, expected)

    def test_one_pass_over_a_generator_with_given_centres(self):
        embeddings, labels, centers = torch.randn(40, 6), torch.arange(40) % 3, torch.randn(4, 6)
        mask = torch.tensor([True, True, False, True])
        blocks = in_blocks(embeddings, labels, 9)
        actual = prototype_difficulty_blocks((block for block in blocks), 40, centers, mask)
        expected = prototype_difficulty(embeddings, labels, centers, mask)
        torch.testing.assert_close(actual, expected, equal_nan=True)

    def test_blocks_of_a_data_loader_that_shuffles(self):
        embeddings, labels = torch.randn(40, 6), torch.arange(40) % 3
        loader = DataLoader(TensorDataset(torch.arange(40), embeddings, labels), batch_size=7, shuffle=True)
        torch.testing.assert_close(prototype_difficulty_blocks(loader, 40), prototype_difficulty(embeddings, labels))

    def test_samples_in_no_block_and_not_finite_have_no_difficulty(self):
        embeddings, labels = torch.randn(10, 6), torch.arange(10) % 2
        embeddings[3, 0] = torch.nan
        difficulty = prototype_difficulty_blocks(in_blocks(embeddings, labels, 4), 12)
        assert difficulty.isnan().nonzero().flatten().tolist() == [3, 10, 11]
        torch.testing.assert_close(difficulty[:10], prototype_difficulty(embeddings, labels), equal_nan=True)

    def test_a_class_of_a_later_block_and_an_empty_block(self):
        embeddings, labels = torch.randn(8, 3), torch.tensor([0, 0, 0, 1, 1, 6, 6, 2])
        blocks = [*in_blocks(embeddings, labels, 3), (torch.zeros(0).long(), torch.zeros(0, 3), torch.zeros(0).long())]
        torch.testing.assert_close(prototype_difficulty_blocks(blocks, 8), prototype_difficulty(embeddings, labels))

    def test_there_may_be_more_classes_than_columns(self):
        embeddings, centers, labels = torch.randn(4, 2), torch.randn(5, 2), torch.tensor([4, 0, 3, 4])
        expected = prototype_difficulty(embeddings, labels, centers)
        actual = prototype_difficulty_blocks(in_blocks(embeddings, labels, 2), 4, centers)
        torch.testing.assert_close(actual, expected)

    def test_a_class_that_only_the_second_pass_has_is_without_a_centre(self):
        class Grows:
            last = 5

            def __iter__(self):
                self.last += 1
                return iter(in_blocks(embeddings, torch.tensor([0, 0, 2, self.last]), 4))

        embeddings = torch.randn(4, 3)
        grows = Grows()
        assert prototype_difficulty_blocks(grows, 4).isnan().tolist() == [False, False, False, True]
        assert grows.last == 7  # two passes, and no third one to look: a DataLoader would start its workers for it


class _Once:
    """Starts anew in looks only."""

    def __init__(self, blocks):
        self.blocks = iter(blocks)

    def __iter__(self):
        yield from self.blocks


class _Widens:
    """Has wider rows in the second pass."""

    width = 2

    def __iter__(self):
        self.width += 1
        yield torch.arange(4), torch.ones(4, self.width), torch.zeros(4, dtype=torch.int64)


# Each case: the error, what its message says of the expected and of the received, and what causes it.
BLOCKS = in_blocks(DRAWN, torch.tensor([0, 1, 0, 1]), 2)
(ROWS, _, CLASSES), FIRST = BLOCKS[1], BLOCKS[0]
BAD_BLOCKS = [
    (ValueError, "starts anew.*generator", {"blocks": (block for block in BLOCKS)}),
    (ValueError, "4 rows in the first.*0 in the second", {"blocks": _Once(BLOCKS)}),
    (ValueError, r"\(N, 3\); received \(4, 4\)", {"blocks": _Widens()}),
    (ValueError, r"\(N, 3\).*\(2, 4\)", {"blocks": [FIRST, (ROWS, torch.ones(2, 4), CLASSES)]}),
    (ValueError, "at least 1.*0", {"blocks": [(ROWS, torch.ones(2, 0), CLASSES)]}),
    (ValueError, r"\(indices, embeddings, labels\).*2 items", {"blocks": [FIRST[1:]]}),
    (TypeError, "iterable.*NoneType", {"blocks": None}),
    (ValueError, "at least one block.*none", {"blocks": []}),
    (ValueError, "num_samples.*0", {"num_samples": 0}),
    (ValueError, "below 3.*3", {"num_samples": 3}),
    (ValueError, r"\(N, 5\).*\(2, 3\)", {"centers": torch.ones(2, 5)}),
    (ValueError, "centers must.*meta", {"centers": torch.ones(2, 3, device="meta")}),
    (TypeError, "tensor.*list", {"centers": [[1.0] * 3], "center_mask": torch.tensor([True])}),
    (ValueError, "centers.*None", {"center_mask": torch.ones(2, dtype=torch.bool)}),
]
BAD_DIFFICULTY = [
    (TypeError, "float.*int64", {"embeddings": torch.ones(4, 3, dtype=torch.long)}),
    (ValueError, r"\(N, D\).*\(4,\)", {"embeddings": torch.ones(4)}),
    (ValueError, "at least 1.*0", {"embeddings": torch.ones(4, 0), "centers": torch.ones(2, 0)}),
    (ValueError, r"\(4,\).*\(2,\)", {"labels": torch.tensor([0, 1])}),
    (TypeError, "integer.*float32", {"labels": torch.ones(4)}),
    (ValueError, "ignore_index=-100.*-1", {"labels": torch.tensor([0, 1, -1, 0])}),
    (ValueError, "2.*7", {"labels": torch.tensor([0, 1, 7, 0])}),
    (TypeError, "ignore_index must be an int.*NoneType", {"ignore_index": None}),
    (ValueError, r"\(C, 3\).*\(2, 5\)", {"centers": torch.ones(2, 5)}),
    (ValueError, r"\(2, 4, 3\)\. Pass a tensor whose sizes", {"centers": torch.ones(2, 4, 3)}),
    (ValueError, "centers must.*meta", {"centers": torch.ones(2, 3, device="meta")}),
    (ValueError, r"\(2,\).*\(3,\)", {"center_mask": torch.ones(3, dtype=torch.bool)}),
    (TypeError, "bool.*int64", {"center_mask": torch.ones(2, dtype=torch.long)}),
    (ValueError, "center_mask must.*meta", {"center_mask": torch.ones(2, dtype=torch.bool, device="meta")}),
    (ValueError, "class means.*centers", {"leave_one_out": True}),
    (TypeError, "leave_one_out must be True or False; received 0", {"leave_one_out": 0}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD_BLOCKS)
def test_bad_blocks_name_expected_and_received(error, message, change):
    with pytest.raises(error, match=message):
        prototype_difficulty_blocks(**({"blocks": BLOCKS, "num_samples": 4} | change))


@pytest.mark.parametrize(("error", "message", "change"), BAD_DIFFICULTY)
def test_bad_difficulty_input_names_expected_and_received(error, message, change):
    arguments = {"embeddings": torch.ones(4, 3), "labels": torch.tensor([0, 1, 0, 1]), "centers": torch.ones(2, 3)}
    with pytest.raises(error, match=message):
        prototype_difficulty(**(arguments | change))
