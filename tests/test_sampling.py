"""Schedules: the keep probability of each rank. Draws: exact lengths, and statistics of what is kept in which order."""

from itertools import repeat

import numpy as np
import pytest
import torch

from spcl_loss import _sampling
from spcl_loss._sampling import Settings, draw_samples, keep_parts, keep_probability

UNEVEN = torch.tensor([1.0] * 5 + [0.7] * 5 + [0.3] * 6 + [0.0] * 5)
each_draw = pytest.mark.parametrize("draw", ["fixed", "bernoulli"])


def scores(n):
    """Sample i has rank (i * 37) mod n: no relation between index and difficulty."""
    return np.arange(n) * 37 % n / n


def settings(schedule, epoch=0, num_epochs=4, *, draw="fixed", shuffle=True):
    """Of one rank; the tests bring their own generators instead of the seed."""
    return Settings(draw, shuffle, schedule, num_epochs, epoch, seed=0, num_replicas=1, rank=0)


def keep(schedule, epoch, num_epochs, n):
    """(n,) by rank."""
    parts, parts_per_sample = keep_parts(settings(schedule, epoch, num_epochs), n)
    return parts / parts_per_sample


def always(probabilities):
    return lambda epoch: probabilities


def seeds(times, epoch=0):
    return (np.random.default_rng([seed, epoch]) for seed in range(times))


def draws(schedule, generators, *, draw="fixed", n=101, epoch=0, num_epochs=4, shuffle=True):
    of_epoch = settings(schedule, epoch, num_epochs, draw=draw, shuffle=shuffle)
    return [draw_samples(of_epoch, scores(n), each) for each in generators]


class TestSchedules:
    @pytest.mark.parametrize("n", [1, 2, 11, 100])
    @pytest.mark.parametrize("schedule", ["linear", (0.2, 0.6), (1, 0), (0.5, 0.5), "root", "step"])
    def test_all_keep_half_of_the_data(self, n, schedule):
        for epoch in range(5):
            parts, parts_per_sample = keep_parts(settings(schedule, epoch, 5), n)
            assert parts.sum(dtype=np.int64) == max(1, n // 2) * parts_per_sample  # to the last part
            [kept] = draws(schedule, seeds(1), n=n, epoch=epoch, num_epochs=5)
            assert len(kept) == max(1, n // 2)

    @pytest.mark.parametrize(
        ("schedule", "tilts"),
        [
            ((0, 1), [0, 1]),
            ((0, 0.5), [0, 0.25, 0.5]),
            ((1.0, 0.0), [1, 0.5, 0]),
            ((0.5, 0.5), [0.5] * 3),
            ("linear", [0, 1 / 3, 2 / 3]),
        ],
    )
    def test_lines(self, schedule, tilts):
        for epoch, tilt in enumerate(tilts):
            expected = [(1 - tilt) * (9 - rank) / 9 + tilt * rank / 9 for rank in range(10)]
            assert keep(schedule, epoch, len(tilts), 10) == pytest.approx(expected, abs=1e-8)

    @pytest.mark.parametrize(
        ("schedule", "pools"),
        [("root", [5, 7, 8, 9, 10]), ("step", [5, 5, 5, 10, 10]), ("step", [5, 5, 10, 10])],
    )  # 10 * sqrt(1/4 + 3/4 k/4) = 5, 6.61, 7.91, 9.01, 10
    def test_pools_grow_from_the_easiest_half_to_all(self, schedule, pools):
        for epoch, pool in enumerate(pools):
            expected = [5 / pool] * pool + [0] * (10 - pool)
            assert keep(schedule, epoch, len(pools), 10) == pytest.approx(expected, abs=1e-8)

    def test_a_callable_keeps_its_tensor(self):
        quarter = torch.full((101,), 0.25, dtype=torch.float64)
        assert len(draws(always(quarter), seeds(1))[0]) == 25
        assert torch.equal(quarter, torch.full((101,), 0.25, dtype=torch.float64))

    def test_what_rounding_loses_is_made_up_by_samples_that_are_not_certain(self):
        thirds = torch.tensor([1.0] * 50 + [1 / 3] * 3, dtype=torch.float64)
        parts, parts_per_sample = keep_parts(settings(always(thirds)), 53)
        assert parts[:50].tolist() == [parts_per_sample] * 50
        assert parts.sum(dtype=np.int64) == 51 * parts_per_sample

    @pytest.mark.parametrize("n", [3, 7, 1000])
    def test_probabilities_that_add_up_to_one_sample(self, n):
        assert len(draws(always(torch.full((n,), 1 / n)), seeds(1), n=n)[0]) == 1

    @pytest.mark.parametrize("nearly", [1 - 1e-6, 1 - 2**-29, 1 - 1e-12, 0.999])
    def test_sums_next_to_a_whole_number(self, nearly):
        """Rounding makes up a whole number, a real lack does not; and no sample is taken twice."""
        probabilities = torch.tensor([1.0] * 50 + [nearly] + [0.0] * 50, dtype=torch.float64)
        for kept in draws(always(probabilities), seeds(20)):
            assert len(kept) == len(set(kept)) == (51 if nearly == 1 - 1e-12 else 50)
        parts, _ = keep_parts(settings(always(probabilities.flip(0))), 101)
        assert parts.tolist()[:50] == [0] * 50  # never made up by samples that are not wanted


class TestDraws:
    @each_draw
    @pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
    def test_an_epoch_holds_distinct_samples(self, draw, n):
        for epoch in range(4):
            [kept] = draws("linear", seeds(1, epoch), draw=draw, n=n, epoch=epoch)
            assert len(kept) == len(set(kept))
            assert set(kept) <= set(range(n))
            if draw == "fixed":
                assert len(kept) == max(1, n // 2)

    @each_draw
    @pytest.mark.parametrize(
        ("schedule", "n", "epoch"),
        [("linear", n, epoch) for n in (20, 21) for epoch in (0, 1, 3)]
        + [(schedule, 21, 1) for schedule in ((0.1, 0.7), (1.0, 0.0), "root", "step", always(UNEVEN))],
    )
    def test_every_sample_is_kept_with_its_probability(self, draw, schedule, n, epoch):
        self.assert_kept_as_stated(schedule, scores(n), seeds(600, epoch), draw, epoch)

    @each_draw
    def test_a_hundred_thousand_draws_show_no_bias(self, draw):
        """Sample 0, the last, and every rank among them."""
        self.assert_kept_as_stated((0.1, 0.1), scores(24), repeat(np.random.default_rng(0), 100_000), draw)

    @each_draw
    def test_samples_of_equal_difficulty_are_kept_equally(self, draw):
        """Scores that nobody knows yet are equal; their order in the data set must not matter."""
        probability = self.assert_kept_as_stated("linear", np.zeros(20), seeds(600), draw)
        assert (probability == 0.5).all()

    @staticmethod
    def assert_kept_as_stated(schedule, of_samples, generators, draw, epoch=0):
        """Chi-square of each sample's frequency against its keep probability."""
        of_epoch = settings(schedule, epoch, draw=draw)
        probability = keep_probability(of_epoch, of_samples)
        epochs = [draw_samples(of_epoch, of_samples, each) for each in generators]
        times, counts = len(epochs), np.bincount(np.concatenate(epochs), minlength=len(of_samples))
        certain = (probability == 0) | (probability == 1)
        assert (counts[certain] == times * probability[certain]).all()
        variance = times * probability * (1 - probability)
        chi_square = (counts - times * probability)[~certain] ** 2 / variance[~certain]
        assert chi_square.max() < 16  # one degree of freedom: once in 16,000
        assert chi_square.mean() < 2
        return probability

    def test_one_length_and_less_variance_than_coin_flips(self):
        hardness = {}
        for draw in ("fixed", "bernoulli"):
            epochs = draws("linear", seeds(1000), draw=draw, n=100)
            assert (len({len(kept) for kept in epochs}) == 1) == (draw == "fixed")
            hardness[draw] = np.var([(kept * 37 % 100).sum() for kept in epochs])
        # Coin flips: sum p q d^2. A fixed size: about sum p q (d - mean d)^2, with the mean weighted by p q.
        assert hardness["fixed"] < 0.5 * hardness["bernoulli"]

    @each_draw
    def test_the_order_tells_nothing_about_difficulty(self, draw):
        """Where in an epoch a kept sample comes is uniform, for the easiest, the hardest and all between."""
        sums, squares, counts = np.zeros(12), np.zeros(12), np.zeros(12)
        for kept in draws("linear", seeds(4000, 1), draw=draw, n=12, epoch=1):
            place = (np.arange(len(kept)) + 0.5) / len(kept) - 0.5
            sums[kept] += place
            squares[kept] += place**2
            counts[kept] += 1
        assert np.abs(sums / np.sqrt(squares)).max() < 4
        assert counts.min() > 500

    @each_draw
    def test_unshuffled_samples_are_the_same_from_easy_to_hard(self, draw):
        [shuffled], [ordered] = (draws("linear", seeds(1), draw=draw, shuffle=shuffle) for shuffle in (True, False))
        assert ordered.tolist() == sorted(shuffled.tolist(), key=lambda i: i * 37 % 101) != shuffled.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_sorted_stably_whatever_their_sign_and_size(dtype):
    scores = np.array([0, -0.0, 1e-30, -1e-30, 3, 3, -0.0, -2.5, 2e-30, -2e-30, 1e38, -1e38, 0, -2.5], dtype)
    assert _sampling._argsort(scores).tolist() == scores.argsort(kind="stable").tolist()
