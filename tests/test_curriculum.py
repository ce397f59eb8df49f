"""Sampler: golden numbers, exactness of the draws, statistics of inclusion, exact continuation."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from spcl_loss import DifficultyCurriculumSampler, PrototypeMemory, prototype_difficulty
from support import oracle

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / "golden" / "curriculum.npz").items()}
DRAWN = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
UNEVEN = torch.tensor([1.0] * 5 + [0.7] * 5 + [0.3] * 6 + [0.0] * 5)
each_draw = pytest.mark.parametrize("draw", ["fixed", "bernoulli"])


def sampler(n=101, num_epochs=4, **options):
    """Sample i has difficulty rank (i * 37) mod n: no relation between index and difficulty."""
    difficulty = (torch.arange(n) * 37 % n) / n
    return DifficultyCurriculumSampler(difficulty, num_epochs=num_epochs, **options)


def indices_by_epoch(curriculum):
    for epoch in range(curriculum.num_epochs):
        curriculum.set_epoch(epoch)
        yield curriculum.indices


def assert_included_as_stated(curriculum, epochs, draws):
    """Chi-square of each sample's frequency against its keep probability in the present epoch."""
    probability = curriculum.keep_probability()
    counts = torch.zeros_like(probability)
    for indices in epochs:
        counts[indices] += 1
    certain = (probability == 0) | (probability == 1)
    assert torch.equal(counts[certain], draws * probability[certain])
    variance = draws * probability * (1 - probability)
    chi_square = ((counts - draws * probability) ** 2 / variance)[~certain]
    assert chi_square.max() < 16  # one degree of freedom: once in 16,000
    assert chi_square.mean() < 2


class TestKeepProbability:
    def test_golden(self):
        curriculum = DifficultyCurriculumSampler(GOLDEN["difficulty"], num_epochs=int(GOLDEN["num_epochs"]))
        for epoch, expected in enumerate(GOLDEN["keep_probability_by_rank"]):
            probability = curriculum.keep_probability(epoch)[GOLDEN["easy_to_hard"]]
            torch.testing.assert_close(probability.double(), expected, rtol=0, atol=1e-6)

    @each_draw
    @pytest.mark.parametrize(("n", "num_epochs"), [(2, 1), (7, 3), (10, 5)])
    def test_agrees_with_the_oracle(self, draw, n, num_epochs):
        difficulty = torch.rand(n, generator=torch.Generator().manual_seed(n))
        curriculum = DifficultyCurriculumSampler(difficulty, num_epochs=num_epochs, draw=draw)
        # An odd n has an expected size of half a sample more than its fixed size.
        share = (n - 1) / n if draw == "fixed" and n % 2 else 1.0
        for epoch in range(num_epochs):
            curriculum.set_epoch(epoch)
            expected = share * torch.tensor(oracle.keep_probability(difficulty.tolist(), epoch, num_epochs))
            torch.testing.assert_close(curriculum.keep_probability().float(), expected)
            assert torch.equal(curriculum.keep_probability(epoch), curriculum.keep_probability())


class TestSchedules:
    @pytest.mark.parametrize("n", [1, 2, 11, 100])
    @pytest.mark.parametrize("schedule", ["linear", (0.2, 0.6), (1, 0), (0.5, 0.5), "root", "step"])
    def test_all_keep_half_of_the_data(self, n, schedule):
        curriculum = sampler(n, num_epochs=5, schedule=schedule)
        for epoch in range(5):
            curriculum.set_epoch(epoch)
            assert len(curriculum) == max(1, n // 2)
            assert curriculum.keep_probability().sum().item() == pytest.approx(max(1, n // 2), abs=1e-6)

    @pytest.mark.parametrize(
        ("schedule", "tilts"),
        [((0, 0.5), [0, 0.25, 0.5]), ((1.0, 0.0), [1, 0.5, 0]), ((0.5, 0.5), [0.5] * 3), ("linear", [0, 1 / 3, 2 / 3])],
    )
    def test_lines(self, schedule, tilts):
        curriculum = DifficultyCurriculumSampler(torch.arange(10.0), num_epochs=3, schedule=schedule)
        for epoch, tilt in enumerate(tilts):
            expected = [(1 - tilt) * (9 - rank) / 9 + tilt * rank / 9 for rank in range(10)]
            assert curriculum.keep_probability(epoch).tolist() == pytest.approx(expected, abs=1e-8)

    @pytest.mark.parametrize(
        ("schedule", "pools"), [("root", [5, 7, 8, 9, 10]), ("step", [5, 5, 5, 10, 10])]
    )  # 10 * sqrt(1/4 + 3/4 k/4) = 5, 6.61, 7.91, 9.01, 10
    def test_pools_grow_from_the_easiest_half_to_all(self, schedule, pools):
        curriculum = DifficultyCurriculumSampler(torch.arange(10.0), num_epochs=5, schedule=schedule)
        for epoch, pool in enumerate(pools):
            expected = [5 / pool] * pool + [0] * (10 - pool)
            assert curriculum.keep_probability(epoch).tolist() == pytest.approx(expected, abs=1e-8)

    @each_draw
    def test_a_callable(self, draw):
        """All of a pool of the easiest that grows by one sample an epoch."""
        pools = DifficultyCurriculumSampler(
            torch.arange(10.0).flip(0), num_epochs=3, draw=draw, schedule=lambda epoch: torch.arange(10) < epoch + 2
        )
        assert [sorted(indices) for indices in epochs(pools)] == [[8, 9], [7, 8, 9], [6, 7, 8, 9]]

    def test_a_callable_keeps_its_tensor(self):
        keep = torch.full((101,), 0.25, dtype=torch.float64)
        assert len(sampler(schedule=lambda epoch: keep)) == 25
        assert torch.equal(keep, torch.full((101,), 0.25, dtype=torch.float64))

    @pytest.mark.parametrize("n", [3, 7, 1000])
    def test_probabilities_that_add_up_to_one_sample(self, n):
        assert len(sampler(n, schedule=lambda epoch: torch.full((n,), 1 / n))) == 1

    @pytest.mark.parametrize("nearly", [1 - 1e-6, 1 - 1e-12, 0.999])
    def test_sums_next_to_a_whole_number(self, nearly):
        """Rounding makes up a whole number, a real lack does not; and no sample is taken twice."""
        keep = torch.tensor([1.0] * 50 + [nearly] + [0.0] * 50, dtype=torch.float64)
        for seed in range(20):
            drawn = list(sampler(schedule=lambda epoch: keep, seed=seed))
            assert len(drawn) == len(set(drawn)) == (51 if nearly > 1 - 1e-9 else 50)


class TestDraws:
    @each_draw
    @pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
    def test_an_epoch_holds_distinct_samples_and_len_is_right(self, draw, n):
        curriculum = sampler(n, draw=draw)
        for epoch in range(4):
            curriculum.set_epoch(epoch)
            drawn = list(curriculum)
            assert len(drawn) == len(set(drawn)) == len(curriculum)
            assert set(drawn) <= set(range(n))
            assert all(type(i) is int for i in drawn)
            if draw == "fixed":
                assert len(drawn) == max(1, n // 2)

    @each_draw
    @pytest.mark.parametrize("n", [20, 21])
    @pytest.mark.parametrize("epoch", [0, 1, 3])
    def test_every_sample_is_included_with_its_probability(self, draw, n, epoch):
        draws = [sampler(n, draw=draw, seed=seed) for seed in range(600)]
        for curriculum in draws:
            curriculum.set_epoch(epoch)
        assert_included_as_stated(draws[0], (curriculum.indices for curriculum in draws), len(draws))

    @each_draw
    @pytest.mark.parametrize("schedule", [(0.1, 0.7), (1.0, 0.0), "root", "step", lambda _: UNEVEN])
    def test_every_sample_is_included_as_the_schedule_says(self, draw, schedule):
        draws = [sampler(21, draw=draw, seed=seed, schedule=schedule) for seed in range(600)]
        for curriculum in draws:
            curriculum.set_epoch(1)
        assert_included_as_stated(draws[0], (curriculum.indices for curriculum in draws), len(draws))

    @each_draw
    def test_a_hundred_thousand_draws_show_no_bias(self, draw):
        """One epoch a draw; sample 0, the last, and every rank among them."""
        draws = 100_000
        linear = (9 * torch.arange(24).flip(0) + torch.arange(24)) / 230  # from 9/10 to 1/10
        curriculum = sampler(24, num_epochs=draws, draw=draw, schedule=lambda _: linear)
        assert_included_as_stated(curriculum, indices_by_epoch(curriculum), draws)

    @each_draw
    def test_samples_of_equal_difficulty_are_included_equally(self, draw):
        """Scores that nobody knows yet are equal; their order in the data set must not matter."""
        equal = torch.zeros(20)
        draws = [DifficultyCurriculumSampler(equal, num_epochs=4, draw=draw, seed=seed) for seed in range(600)]
        assert torch.equal(draws[0].keep_probability(), torch.full((20,), 0.5, dtype=torch.float64))
        assert_included_as_stated(draws[0], (curriculum.indices for curriculum in draws), len(draws))

    def test_one_length_and_less_variance_than_coin_flips(self):
        hardness = {}
        for draw in ("fixed", "bernoulli"):
            epochs = [sampler(100, draw=draw, seed=seed).indices for seed in range(1000)]
            assert (len({len(indices) for indices in epochs}) == 1) == (draw == "fixed")
            hardness[draw] = torch.tensor([(indices * 37 % 100).sum().item() for indices in epochs]).double().var()
        # Coin flips: sum p q d^2. A fixed size: about sum p q (d - mean d)^2, with the mean weighted by p q.
        assert hardness["fixed"] < 0.5 * hardness["bernoulli"]

    @each_draw
    def test_the_order_tells_nothing_about_difficulty(self, draw):
        """Where in an epoch a kept sample comes is uniform, for the easiest, the hardest and all between."""
        sums, squares, counts = (torch.zeros(12, dtype=torch.float64) for _ in range(3))
        for seed in range(4000):
            curriculum = sampler(12, draw=draw, seed=seed)
            curriculum.set_epoch(1)
            indices = curriculum.indices
            place = (torch.arange(len(indices)) + 0.5) / len(indices) - 0.5
            sums[indices] += place
            squares[indices] += place**2
            counts[indices] += 1
        assert (sums / squares.sqrt()).abs().max() < 4
        assert counts.min() > 500

    def test_the_curriculum_goes_from_easy_to_hard(self):
        curriculum = sampler(1001, num_epochs=10, shuffle=False)
        hardness = []
        for epoch in (0, 3, 6, 9):
            curriculum.set_epoch(epoch)
            hardness.append((torch.tensor(list(curriculum)) * 37 % 1001).double().mean().item())
        assert hardness == sorted(hardness)

    @each_draw
    def test_draws_depend_on_seed_and_epoch_alone(self, draw):
        before = torch.get_rng_state()
        curriculum = sampler(draw=draw, seed=3)
        first = list(curriculum)
        curriculum.set_epoch(2)
        second = list(curriculum)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert list(curriculum) == second != first
        again = sampler(draw=draw, seed=3)
        assert list(again) == first != list(sampler(draw=draw, seed=4))

    @each_draw
    def test_epochs_are_independent(self, draw):
        curriculum, n = sampler(2000, num_epochs=1000, draw=draw), 2000
        epochs = []
        for epoch in (500, 501):  # where every sample is kept with a probability of about one half
            curriculum.set_epoch(epoch)
            epochs.append(set(curriculum))
        assert abs(len(epochs[0] & epochs[1]) - n / 4) < 4 * (n * 3 / 16) ** 0.5

    @each_draw
    def test_unshuffled_samples_are_the_same_from_easy_to_hard(self, draw):
        ordered, shuffled = list(sampler(draw=draw, shuffle=False)), list(sampler(draw=draw))
        assert ordered == sorted(shuffled, key=lambda i: i * 37 % 101) != shuffled

    @each_draw
    @pytest.mark.parametrize(("n", "num_replicas"), [(101, 2), (10, 3)])
    def test_replicas_share_an_epoch_equally(self, draw, n, num_replicas):
        whole, parts = sampler(n, draw=draw), []
        for rank in range(num_replicas):
            parts.append(sampler(n, draw=draw, num_replicas=num_replicas, rank=rank))
        for epoch in range(4):
            for curriculum in (whole, *parts):
                curriculum.set_epoch(epoch)
            shares = [list(part) for part in parts]
            assert {len(share) for share in shares} == {len(parts[0])}
            assert len(set().union(*shares)) == sum(map(len, shares))  # disjoint
            assert set().union(*shares) <= set(whole)
            assert len(whole) - sum(map(len, shares)) < num_replicas

    @each_draw
    def test_more_ranks_than_samples_are_an_error(self, draw):
        with pytest.raises(ValueError, match=r"num_replicas=4; received \d of 3 samples in epoch 0.*fewer ranks"):
            sampler(3, draw=draw, num_replicas=4, rank=1)

    @pytest.mark.parametrize(("stated", "expected"), [({}, (3, 2)), ({"num_replicas": 1, "rank": 0}, (1, 0))])
    def test_ranks_are_those_of_the_running_process_group(self, stated, expected, monkeypatch):
        for name, value in {"is_initialized": True, "get_world_size": 3, "get_rank": 2}.items():
            monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
        curriculum = sampler(**stated)
        assert (curriculum.num_replicas, curriculum.rank) == expected
        alike = sampler(num_replicas=expected[0], rank=expected[1])
        assert list(curriculum) == list(alike)

    def test_serves_a_data_loader(self):
        loader = DataLoader(torch.arange(101), sampler=sampler(), batch_size=8)
        assert len(loader) == 7
        assert sorted(torch.cat(list(loader)).tolist()) == sorted(sampler())


class TestState:
    def test_set_epoch_replaces_the_difficulty(self):
        curriculum = sampler(10)
        curriculum.set_epoch(1, torch.arange(10).flip(0).float())
        expected = oracle.keep_probability(list(range(10, 0, -1)), 1, 4)
        torch.testing.assert_close(curriculum.keep_probability().double(), torch.tensor(expected, dtype=torch.float64))

    @pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32, torch.uint8])
    def test_observations_refresh_the_difficulty_of_their_samples(self, index_dtype):
        embeddings, labels = torch.randn(30, 5), torch.arange(30) % 3
        centers = torch.stack([embeddings[labels == c].mean(0) for c in range(3)])
        curriculum = DifficultyCurriculumSampler(torch.zeros(30), num_epochs=3)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
        for indices in order.split(7):
            curriculum.observe(indices.to(index_dtype), embeddings[indices], labels[indices], centers)
        curriculum.set_epoch(1)
        direct = DifficultyCurriculumSampler(prototype_difficulty(embeddings, labels, centers), num_epochs=3)
        torch.testing.assert_close(curriculum.keep_probability(), direct.keep_probability(1))

    def test_samples_not_seen_keep_their_score_and_the_last_one_seen_wins(self):
        curriculum = DifficultyCurriculumSampler(torch.tensor([0.1, 0.2, 0.3, 0.4]), num_epochs=3)
        centers, toward = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        curriculum.observe(torch.tensor([2, 0]), toward, torch.tensor([0, 0]), centers)  # easiest, hardest
        curriculum.observe(torch.tensor([2]), toward[1:], torch.tensor([0]), centers)
        torch.testing.assert_close(curriculum.difficulty, torch.tensor([1.0, 0.2, 1.0, 0.4]))
        curriculum.observe(torch.tensor([3, 3]), toward, torch.tensor([0, 0]), centers)
        torch.testing.assert_close(curriculum.difficulty, torch.tensor([1.0, 0.2, 1.0, 1.0]))

    def test_what_is_not_finite_changes_no_score(self):
        curriculum = DifficultyCurriculumSampler(torch.tensor([0.1, 0.2, 0.3, 0.4]), num_epochs=3)
        rows = torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [0.0, 0.0]])
        centers = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])
        curriculum.observe(torch.arange(4), rows, torch.tensor([1, 0, 0, 1]), centers)
        assert torch.equal(curriculum.difficulty, torch.tensor([0.1, 0.2, 0.3, 0.4]))
        curriculum.observe(torch.arange(4), torch.ones(4, 2), torch.full((4,), -100), torch.eye(2))
        curriculum.observe(torch.arange(4), torch.ones(4, 2), torch.full((4,), 9), torch.eye(2), ignore_index=9)
        assert torch.equal(curriculum.difficulty, torch.tensor([0.1, 0.2, 0.3, 0.4]))
        curriculum.set_epoch(1, torch.tensor([torch.nan, 0.9, torch.inf, 0.8]))
        assert torch.equal(curriculum.difficulty, torch.tensor([0.1, 0.9, 0.3, 0.8]))

    def test_centroids_of_a_memory_that_does_not_know_all_classes(self):
        memory = PrototypeMemory(3, 2)
        memory.update(torch.eye(2), torch.tensor([0, 1]))
        curriculum = DifficultyCurriculumSampler(torch.full((3,), 0.7), num_epochs=3)
        curriculum.observe(torch.arange(3), torch.ones(3, 2), torch.tensor([0, 1, 2]), *memory.centroids())
        torch.testing.assert_close(curriculum.difficulty, torch.tensor([0.5, 0.5, 0.7]))

    def test_many_observations_are_taken_in_before_they_pile_up(self):
        curriculum = sampler()
        for step in range(3000):
            curriculum.observe(torch.tensor([step % 101]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.eye(2))
            assert len(curriculum._observed) < 1024
        assert (curriculum.difficulty == 0).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_scores_of_any_floating_type_are_ranked_alike(self, dtype):
        scores = torch.tensor([0.0, -3.0, 2.5, -0.0, -0.25, 65504.0, 1.0]).to(dtype)
        curriculum = DifficultyCurriculumSampler(
            scores, num_epochs=1, schedule=lambda epoch: torch.ones(7), shuffle=False
        )
        order = list(curriculum)
        assert order[:2] + order[4:] == [1, 4, 6, 2, 5]
        assert set(order[2:4]) == {0, 3}

    @each_draw
    def test_a_restored_sampler_continues_identically(self, draw):
        original = sampler(draw=draw, seed=7)
        original.set_epoch(1)
        original.observe(torch.arange(8), torch.randn(8, 3), torch.arange(8) % 2, torch.randn(2, 3))
        restored = sampler(draw=draw, seed=0)
        restored.load_state_dict(original.state_dict())
        for epoch in (1, 2, 3):
            assert list(restored) == list(original)
            assert torch.equal(restored.keep_probability(), original.keep_probability())
            original.set_epoch(epoch)
            restored.set_epoch(epoch)

    def test_a_saved_state_does_not_change_with_the_sampler(self):
        curriculum = sampler()
        state, expected = curriculum.state_dict(), curriculum.keep_probability(1)
        curriculum.observe(torch.arange(50), torch.randn(50, 3), torch.arange(50) % 2, torch.randn(2, 3))
        curriculum.load_state_dict(state)
        curriculum.set_epoch(1)
        assert torch.equal(curriculum.keep_probability(), expected)

    def test_state_survives_a_safe_load(self, tmp_path):
        original = sampler()
        original.set_epoch(2)
        torch.save(original.state_dict(), tmp_path / "sampler.pt")
        restored = sampler()
        restored.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
        assert list(restored) == list(original)


def epochs(curriculum):
    """What a training that calls set_epoch sees, epoch by epoch, from where the sampler stands."""
    for epoch in range(curriculum.epoch, curriculum.num_epochs):
        curriculum.set_epoch(epoch)
        yield list(curriculum)


def saved(state, tmp_path):
    torch.save(state, tmp_path / "sampler.pt")
    return torch.load(tmp_path / "sampler.pt", weights_only=True)


class TestResume:
    @each_draw
    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 7), (2, 13), (3, "last")])
    def test_a_plain_loop_goes_on_with_the_next_sample(self, draw, shuffle, epoch, step, tmp_path):
        options = {"draw": draw, "shuffle": shuffle}
        expected = list(epochs(sampler(**options)))
        step = len(expected[epoch]) if step == "last" else step
        first = sampler(**options)
        first.set_epoch(epoch)
        iterator = iter(first)
        assert [next(iterator) for _ in range(step)] == expected[epoch][:step]
        second = sampler(**options, seed=9)
        second.load_state_dict(saved(first.state_dict(), tmp_path))
        assert list(epochs(second)) == [expected[epoch][step:], *expected[epoch + 1 :]]

    def test_scores_observed_before_the_interruption_wait_for_the_next_epoch(self, tmp_path):
        def observe(curriculum):
            generator = torch.Generator().manual_seed(1)
            rows = torch.randn(101, 3, generator=generator), torch.arange(101) % 2
            curriculum.observe(torch.arange(101), *rows, torch.eye(2, 3))

        whole, first, second = sampler(), sampler(), sampler()
        whole.set_epoch(1)
        expected = list(whole)
        observe(whole)
        whole.set_epoch(2)

        first.set_epoch(1)
        iterator = iter(first)
        seen = [next(iterator) for _ in range(20)]
        observe(first)
        second.load_state_dict(saved(first.state_dict(), tmp_path))
        second.set_epoch(1)
        assert seen + list(second) == expected
        second.set_epoch(2)
        assert list(second) == list(whole)

    def test_the_position_is_what_the_training_used_where_a_loader_reads_ahead(self):
        first, second = sampler(), sampler()
        iterator = iter(first)
        handed_out = [next(iterator) for _ in range(30)]
        second.load_state_dict(first.state_dict(position=8))
        assert list(second)[:22] == handed_out[8:]

    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
    def test_another_number_of_ranks_sees_no_sample_twice(self, before, after):
        old = [sampler(num_replicas=before, rank=rank) for rank in range(before)]
        iterators = [iter(curriculum) for curriculum in old]
        seen = [next(iterator) for iterator in iterators for _ in range(7)]
        states = [curriculum.state_dict() for curriculum in old]
        assert all(state["position"] == states[0]["position"] for state in states)
        new = [sampler(num_replicas=after, rank=rank) for rank in range(after)]
        for curriculum in new:
            curriculum.load_state_dict(states[-1])
        rest = [list(curriculum) for curriculum in new]
        assert len({len(part) for part in rest}) == 1
        together = seen + [index for part in rest for index in part]
        assert len(set(together)) == len(together) > 50 - before - after - 1

    def test_iterators_dropped_unused_move_nothing(self):
        """Loaders make some: torch's with workers makes two an epoch."""
        curriculum, expected = sampler(), list(sampler())
        iterator = iter(curriculum)
        next(iterator)
        state = curriculum.state_dict()
        iter(curriculum), iter(curriculum)
        assert curriculum.state_dict()["position"] == 1
        resumed = sampler()
        resumed.load_state_dict(state)
        iter(resumed), iter(resumed)
        assert list(resumed) == expected[1:]

    def test_set_epoch_keeps_the_place_of_an_iterator_that_was_loaded_before_it(self):
        """Lightning's order: the loader's iterator is restored first, then set_epoch is called."""
        first, second = sampler(), sampler()
        first.set_epoch(1)
        iterator = iter(first)
        expected = [next(iterator) for _ in range(20)]
        state, own = first.state_dict(), iterator.state_dict()
        first.observe(torch.arange(101), torch.randn(101, 3), torch.arange(101) % 2, torch.eye(2, 3))
        second.load_state_dict(state)
        resumed = iter(second)
        resumed.load_state_dict(own)
        second.observe(torch.arange(101), torch.randn(101, 3), torch.arange(101) % 2, torch.eye(2, 3))
        second.set_epoch(1)
        assert second.state_dict()["position"] == 20
        assert list(resumed) == list(iterator) != expected
        second.set_epoch(1)
        assert second.state_dict()["position"] == 0

    def test_set_epoch_keeps_the_place_of_an_iterator_that_runs(self, tmp_path):
        first, second, expected = sampler(), sampler(), list(epochs(sampler()))
        first.set_epoch(1)
        iterator = iter(first)
        for _ in range(20):
            next(iterator)
        first.set_epoch(1)
        assert first.state_dict()["position"] == 20
        second.load_state_dict(saved(first.state_dict(), tmp_path))
        assert list(iterator) == list(second) == expected[1][20:]
        assert list(first) == expected[1]

    def test_a_finished_epoch_is_followed_by_a_whole_one(self):
        first, second = sampler(), sampler()
        first.set_epoch(1)
        list(first)
        second.load_state_dict(first.state_dict())
        assert list(second) == []
        second.set_epoch(2)
        assert len(list(second)) == 50

    def test_new_scores_begin_the_epoch_anew(self):
        first, second = sampler(), sampler()
        next(iter(first))
        second.load_state_dict(first.state_dict())
        second.set_epoch(0, first.difficulty)
        assert list(second) == list(sampler())

    def test_looking_at_the_indices_is_no_iteration(self):
        curriculum = sampler(num_replicas=2, rank=1)
        looked = curriculum.indices.tolist()
        assert curriculum.indices.dtype == torch.int64
        assert curriculum.state_dict()["position"] == 0
        assert looked == list(curriculum)

    @pytest.mark.parametrize("observed", [False, True])
    def test_the_state_is_the_scores_and_little_else(self, observed):
        curriculum = sampler(10_001, num_epochs=10_000)
        curriculum.set_epoch(9_999)
        if observed:
            curriculum.observe(torch.tensor([5]), *ONE)
        list(curriculum)
        state = curriculum.state_dict()
        scores = {name for name, value in state.items() if isinstance(value, torch.Tensor)}
        assert scores == ({"difficulty", "drawn_from"} if observed else {"difficulty"})
        assert all(state[name].shape == (10_001,) for name in scores)
        assert len(pickle.dumps({name: value for name, value in state.items() if name not in scores})) < 100


class TestWithoutSetEpoch:
    def test_iterations_are_epochs_and_one_warning_says_so(self):
        expected = list(epochs(sampler()))
        curriculum = sampler()
        assert list(curriculum) == expected[0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")  # as Python does: once for each line of code
            assert [list(curriculum) for _ in range(4)] == [*expected[1:], expected[-1]]
        assert "sampler.set_epoch(epoch)" in str(caught[0].message)
        assert caught[0].filename == __file__
        assert len(caught) == 1

    def test_an_iteration_that_was_cut_short_counts(self):
        curriculum = sampler()
        for _ in zip(range(3), curriculum, strict=False):
            pass
        with pytest.warns(UserWarning, match="set_epoch"):
            list(curriculum)
        assert curriculum.epoch == 1

    def test_no_advance_and_no_warning_where_set_epoch_is_called(self):
        curriculum = sampler()
        curriculum.set_epoch(0)
        assert list(curriculum) == list(curriculum)

    @pytest.mark.parametrize("step", [0, 20, 50])
    def test_a_restored_sampler_goes_on_counting(self, step):
        expected = list(epochs(sampler()))
        first, second = sampler(), sampler()
        iterator = iter(first)
        for _ in range(step):
            next(iterator)
        second.load_state_dict(first.state_dict())
        assert list(second) == expected[0][step:]
        with pytest.warns(UserWarning, match="set_epoch"):
            assert list(second) == expected[1]


BAD_SAMPLER = {
    "difficulty two-dimensional": (ValueError, "(n,)", "(2, 2)", {"difficulty": torch.ones(2, 2)}),
    "difficulty empty": (ValueError, "at least one", "none", {"difficulty": torch.ones(0)}),
    "difficulty not finite": (ValueError, "finite", "nan", {"difficulty": torch.tensor([0.0, float("nan")])}),
    "no epochs": (ValueError, "num_epochs", "0", {"num_epochs": 0}),
    "unknown draw": (ValueError, "bernoulli", "poisson", {"draw": "poisson"}),
    "no replicas": (ValueError, "num_replicas", "0", {"num_replicas": 0}),
    "rank too large": (ValueError, "rank", "2", {"num_replicas": 2, "rank": 2}),
    "unknown schedule": (ValueError, "'linear', 'root', 'step'", "'cosine'", {"schedule": "cosine"}),
    "schedule of three": (ValueError, "a pair (start, end)", "(0, 1, 2)", {"schedule": (0, 1, 2)}),
    "schedule out of range": (ValueError, "from 0", "(0.0, 1.5)", {"schedule": (0.0, 1.5)}),
    "schedule of strings": (TypeError, "number", "str", {"schedule": ("a", "b")}),
    "schedule of another length": (ValueError, "(4,)", "(3,)", {"schedule": lambda epoch: torch.ones(3)}),
    "schedule no probability": (ValueError, "0 to 1", "1.5", {"schedule": lambda epoch: torch.full((4,), 1.5)}),
    "schedule with a NaN": (ValueError, "0 to 1", "nan", {"schedule": lambda epoch: torch.full((4,), torch.nan)}),
    "schedule that keeps nothing": (
        ValueError,
        "at least one",
        "0.4",
        {"schedule": lambda epoch: torch.full((4,), 0.1)},
    ),
    "rank missing": (ValueError, "rank must be given", "None", {"num_replicas": 2}),
    "rank negative": (ValueError, "rank", "-1", {"rank": -1}),
}


@pytest.mark.parametrize("case", BAD_SAMPLER)
def test_bad_sampler_settings_name_expected_and_received(case):
    error, expected, received, change = BAD_SAMPLER[case]
    with pytest.raises(error) as caught:
        DifficultyCurriculumSampler(**({"difficulty": DRAWN[:, 0], "num_epochs": 3} | change))
    assert expected in str(caught.value)
    assert received in str(caught.value)


ONE = (torch.ones(1, 2), torch.tensor([0]), torch.ones(1, 2))  # embeddings, labels, centers
BAD_CALLS = {
    "epoch negative": (ValueError, "epoch", "-1", lambda s: s.set_epoch(-1)),
    "epoch past the end": (ValueError, "num_epochs=4", "4", lambda s: s.set_epoch(4)),
    "keep probability before the start": (ValueError, "epoch", "-1", lambda s: s.keep_probability(-1)),
    "keep probability past the end": (ValueError, "num_epochs=4", "4", lambda s: s.keep_probability(4)),
    "epoch no int": (TypeError, "int", "float", lambda s: s.set_epoch(1.0)),
    "difficulty of another length": (ValueError, "(101,)", "(3,)", lambda s: s.set_epoch(1, torch.rand(3))),
    "difficulty no tensor": (TypeError, "tensor", "list", lambda s: s.set_epoch(1, [0.5] * 101)),
    "index too large": (ValueError, "101", "200", lambda s: s.observe(torch.tensor([200]), *ONE)),
    "index negative": (ValueError, "101", "-1", lambda s: s.observe(torch.tensor([-1]), *ONE)),
    "indices of another length": (ValueError, "(1,)", "(2,)", lambda s: s.observe(torch.tensor([1, 2]), *ONE)),
    "indices of floats": (TypeError, "integer", "float32", lambda s: s.observe(torch.tensor([1.0]), *ONE)),
    "indices no tensor": (TypeError, "tensor", "list", lambda s: s.observe([1], *ONE)),
    "state of another data set": (ValueError, "(101,)", "(7,)", lambda s: s.load_state_dict(sampler(7).state_dict())),
    "state of a longer training": (ValueError, "num_epochs=4", "8", lambda s: s.load_state_dict(late_state())),
    "position negative": (ValueError, "position", "-3", lambda s: s.state_dict(position=-3)),
    "state with a negative position": (ValueError, "position", "-1", lambda s: s.load_state_dict(bad_position())),
    "state of something else": (ValueError, "epoch", "without", lambda s: s.load_state_dict({"seed": 1})),
}


def bad_position():
    return sampler(seed=1).state_dict() | {"position": -1}


def late_state():
    longer = sampler(num_epochs=9, seed=1)
    longer.set_epoch(8)
    return longer.state_dict()


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_name_expected_and_received_and_change_nothing(case):
    error, expected, received, call = BAD_CALLS[case]
    curriculum, untouched = sampler(), sampler()
    with pytest.raises(error) as caught:
        call(curriculum)
    assert expected in str(caught.value)
    assert received in str(caught.value)
    assert list(curriculum) == list(untouched)
    curriculum.set_epoch(1)
    untouched.set_epoch(1)
    assert list(curriculum) == list(untouched)
