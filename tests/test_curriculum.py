"""Sampler: golden numbers, epochs and ranks, scores that change, settings that change, errors.

Any sequence of epochs, iterators, observations, copies, saves and loads is compared with a model in test_stateful.py.
"""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from spcl_loss import DifficultyCurriculumSampler, PrototypeMemory, prototype_difficulty
from spcl_loss._sampling import Settings, draw_samples, keep_parts
from support import oracle
from support.messages import says
from support.same import through_a_file

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / "golden" / "curriculum.npz").items()}
DRAWN = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["fixed", "bernoulli"])
def draw(request):
    return request.param


def sampler(n=101, num_epochs=4, **options):
    """Sample i has difficulty rank (i * 37) mod n: no relation between index and difficulty."""
    difficulty = (torch.arange(n) * 37 % n) / n
    return DifficultyCurriculumSampler(difficulty, num_epochs=num_epochs, **options)


def epochs(curriculum):
    """What a training that calls set_epoch sees, epoch by epoch, from where the sampler stands."""
    for epoch in range(curriculum.epoch, curriculum.num_epochs):
        curriculum.set_epoch(epoch)
        yield list(curriculum)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def observe_all(curriculum, seed=1):
    rows = torch.randn(101, 3, generator=torch.Generator().manual_seed(seed))
    curriculum.observe(torch.arange(101), rows, torch.arange(101) % 2, torch.eye(2, 3))


def resumed(state, **options):
    """A new sampler that continues from a saved state."""
    curriculum = sampler(**options)
    curriculum.load_state_dict(through_a_file(state))
    return curriculum


class TestKeepProbability:
    def test_golden(self):
        curriculum = DifficultyCurriculumSampler(GOLDEN["difficulty"], num_epochs=int(GOLDEN["num_epochs"]))
        for epoch, expected in enumerate(GOLDEN["keep_probability_by_rank"]):
            probability = curriculum.keep_probability(epoch)[GOLDEN["easy_to_hard"]]
            torch.testing.assert_close(probability.double(), expected, rtol=0, atol=1e-6)

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


class TestEpochs:
    @pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
    def test_an_epoch_is_the_draw_of_its_seed(self, draw, n):
        curriculum = sampler(n, draw=draw, seed=3)
        scores, before = (np.arange(n) * 37 % n / n).astype(np.float32), torch.get_rng_state()
        for epoch in range(4):
            curriculum.set_epoch(epoch)
            settings = Settings(draw, True, "linear", 4, epoch, seed=3, num_replicas=1, rank=0)
            expected = draw_samples(settings, scores, np.random.default_rng([3, epoch]))
            drawn = list(curriculum)
            assert drawn == expected.tolist() == curriculum.indices.tolist()
            assert len(curriculum) == len(drawn)
            assert curriculum.indices.dtype == torch.int64
            assert all(type(i) is int for i in drawn)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_callable(self, draw):
        """All of a pool of the easiest that grows by one sample an epoch."""
        pools = DifficultyCurriculumSampler(
            torch.arange(10.0).flip(0), num_epochs=3, draw=draw, schedule=lambda epoch: torch.arange(10) < epoch + 2
        )
        assert [sorted(indices) for indices in epochs(pools)] == [[8, 9], [7, 8, 9], [6, 7, 8, 9]]

    def test_coin_flips_may_keep_nothing(self):
        assert list(sampler(4, draw="bernoulli", schedule=lambda epoch: torch.zeros(4))) == []

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_scores_of_any_floating_type_are_ranked_alike(self, dtype):
        scores = torch.tensor([0.0, -3.0, 2.5, -0.0, -0.25, 65504.0, 1.0]).to(dtype)
        curriculum = DifficultyCurriculumSampler(
            scores, num_epochs=1, schedule=lambda epoch: torch.ones(7), shuffle=False
        )
        order = list(curriculum)
        assert order[:2] + order[4:] == [1, 4, 6, 2, 5]
        assert set(order[2:4]) == {0, 3}

    @pytest.mark.parametrize("schedule", [(0, 1), (1.0, 0.0), (0.5, 0.5), "root", "step"])
    def test_schedules_reach_the_draw(self, schedule):
        curriculum = sampler(10, num_epochs=5, schedule=schedule)
        easy_to_hard = torch.arange(10).mul(37).remainder(10).argsort()
        for epoch in range(5):
            parts, whole = keep_parts(Settings("fixed", True, schedule, 5, epoch, seed=0, num_replicas=1, rank=0), 10)
            assert curriculum.keep_probability(epoch)[easy_to_hard].numpy() == pytest.approx(parts / whole, abs=1e-15)

    def test_defaults(self):
        stated = sampler(schedule="linear", draw="fixed", shuffle=True, seed=0, num_replicas=1, rank=0)
        assert list(epochs(sampler())) == list(epochs(stated))

    def test_serves_a_data_loader(self):
        loader = DataLoader(torch.arange(101), sampler=sampler(), batch_size=8)
        assert len(loader) == 7
        assert sorted(torch.cat(list(loader)).tolist()) == sorted(sampler())


class TestRanks:
    @pytest.mark.parametrize(("n", "num_replicas"), [(101, 2), (10, 3)])
    def test_they_share_an_epoch_equally(self, draw, n, num_replicas):
        whole = epochs(sampler(n, draw=draw))
        ranks = [epochs(sampler(n, draw=draw, num_replicas=num_replicas, rank=rank)) for rank in range(num_replicas)]
        for together, *shares in zip(whole, *ranks, strict=True):
            assert {len(share) for share in shares} == {len(shares[0])}
            assert len(set().union(*shares)) == sum(map(len, shares))  # disjoint
            assert set().union(*shares) <= set(together)
            assert len(together) - sum(map(len, shares)) < num_replicas

    def test_more_ranks_than_samples_are_an_error(self, draw):
        with pytest.raises(ValueError, match=r"num_replicas=4; received \d of 3 samples in epoch 0.*fewer ranks"):
            sampler(3, draw=draw, num_replicas=4, rank=1)

    @pytest.mark.parametrize(
        ("stated", "expected"),
        [
            ({}, (3, 1)),
            ({"num_replicas": 2}, (2, 1)),
            ({"num_replicas": 1, "rank": 0}, (1, 0)),
            ({"num_replicas": 1}, (1, 0)),
        ],
    )
    def test_they_are_those_of_the_running_process_group(self, stated, expected, monkeypatch):
        for name, value in {"is_initialized": True, "get_world_size": 3, "get_rank": 1}.items():
            monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
        curriculum = sampler(**stated)
        assert (curriculum.num_replicas, curriculum.rank) == expected
        assert list(curriculum) == list(sampler(num_replicas=expected[0], rank=expected[1]))


class TestScores:
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
            reused = indices.to(index_dtype, copy=True)
            curriculum.observe(reused, embeddings[indices], labels[indices], centers)
            reused.zero_()
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
        for step in range(1100):
            curriculum.observe(torch.tensor([step % 101]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.eye(2))
            assert len(curriculum._observed) < 1024
        assert (curriculum.difficulty == 0).all()

    def test_a_saved_state_does_not_change_with_the_sampler(self):
        curriculum = sampler()
        state, expected = curriculum.state_dict(), curriculum.keep_probability(1)
        observe_all(curriculum)
        curriculum.load_state_dict(state)
        curriculum.set_epoch(1)
        assert torch.equal(curriculum.keep_probability(), expected)


class TestResume:
    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 7), (2, 13), (2, "last"), (3, "last")])
    def test_a_plain_loop_goes_on_with_the_next_sample(self, draw, shuffle, epoch, step):
        options = {"draw": draw, "shuffle": shuffle}
        expected = list(epochs(sampler(**options)))
        step = len(expected[epoch]) if step == "last" else step
        first = sampler(**options)
        first.set_epoch(epoch)
        assert take(iter(first), step) == expected[epoch][:step]
        second = resumed(first.state_dict(), **options, seed=9)
        assert list(epochs(second)) == [expected[epoch][step:], *expected[epoch + 1 :]]

    def test_scores_observed_before_the_interruption_wait_for_the_next_epoch(self, draw):
        whole, first = sampler(draw=draw, seed=7), sampler(draw=draw, seed=7)
        whole.set_epoch(1)
        expected = list(whole)
        observe_all(whole)
        foreseen = whole.keep_probability(2)
        whole.set_epoch(2)
        assert torch.equal(whole.keep_probability(), foreseen)

        first.set_epoch(1)
        seen = take(iter(first), 20)
        observe_all(first)
        anew = resumed(first.state_dict(position=0), draw=draw)
        anew.set_epoch(1)
        assert list(anew) == expected
        second = resumed(first.state_dict(), draw=draw)
        assert torch.equal(second.keep_probability(), first.keep_probability())
        second.set_epoch(1)
        assert seen + list(second) == expected
        second.set_epoch(2)
        assert list(second) == list(whole)
        assert torch.equal(second.keep_probability(), whole.keep_probability())

    def test_the_position_is_what_the_training_used_where_a_loader_reads_ahead(self):
        first = sampler()
        handed_out = take(iter(first), 30)
        assert list(resumed(first.state_dict(position=8)))[:22] == handed_out[8:]
        assert first.state_dict(position=0)["position"] == 0

    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
    def test_another_number_of_ranks_sees_no_sample_twice(self, before, after):
        old = [sampler(num_replicas=before, rank=rank) for rank in range(before)]
        seen = [index for curriculum in old for index in take(iter(curriculum), 7)]
        states = [curriculum.state_dict() for curriculum in old]
        assert len({state["position"] for state in states}) == 1
        rest = [list(resumed(states[-1], num_replicas=after, rank=rank)) for rank in range(after)]
        assert len({len(part) for part in rest}) == 1
        together = seen + [index for part in rest for index in part]
        assert len(set(together)) == len(together) > 50 - before - after - 1

    def test_set_epoch_keeps_the_place_of_an_iterator_that_was_loaded_before_it(self):
        """Lightning's order: the loader's iterator is restored first, then set_epoch is called."""
        first = sampler()
        first.set_epoch(1)
        iterator = iter(first)
        expected = take(iterator, 20)
        state, own = first.state_dict(), iterator.state_dict()
        observe_all(first, seed=1)
        second = resumed(state)
        restored = iter(second)
        restored.load_state_dict(own)
        observe_all(second, seed=2)
        second.set_epoch(1)
        assert second.state_dict()["position"] == 20
        assert list(restored) == list(iterator) != expected
        second.set_epoch(1)
        assert second.state_dict()["position"] == 0

    def test_an_iterator_restores_an_epoch_of_its_own(self):
        """A StatefulDataLoader may have asked a new iterator for its state after the sampler's: the next epoch's."""
        first, expected = sampler(), list(epochs(sampler()))
        list(first)
        with pytest.warns(UserWarning, match="set_epoch"):
            own = iter(first).state_dict()
        assert own == {"epoch": 1, "position": 0}
        second = sampler()
        restored = iter(second)
        restored.load_state_dict(own | {"position": 7})
        assert (second.epoch, second.state_dict()["position"]) == (1, 7)
        assert list(restored) == expected[1][7:]

    def test_new_scores_begin_the_epoch_anew(self):
        first = sampler()
        take(iter(first), 1)
        second = resumed(first.state_dict())
        second.set_epoch(0, first.difficulty)
        assert list(second) == list(sampler())

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
        assert len(pickle.dumps({name: value for name, value in state.items() if name not in scores})) < 200

    def test_a_state_holds_numbers_of_python(self):
        bounds = tuple(np.linspace(0, 1, 2))
        state = sampler(schedule=bounds).state_dict(position=10)
        assert list(resumed(state, schedule=bounds)) == list(sampler())[10:]

    @pytest.mark.parametrize(
        ("name", "value"), [("draw", "bernoulli"), ("shuffle", False), ("schedule", "root"), ("num_epochs", 9)]
    )
    def test_an_epoch_that_goes_on_with_other_settings_warns(self, name, value):
        begun = sampler()
        state = begun.state_dict(position=10)
        with pytest.warns(UserWarning, match=f"{name}.*may repeat"):
            sampler(**{name: value}).load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampler(**{name: value}).load_state_dict(begun.state_dict(position=0))  # nothing to repeat
            sampler(num_epochs=9).load_state_dict(begun.state_dict(position=len(begun)))
            del state["settings"]  # as in a state of an earlier version
            sampler().load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("schedule", "rooot"), ("draw", "fixd"), ("seed", -1), ("shuffle", 1)])
def test_a_setting_is_checked_when_the_next_epoch_is_drawn(name, value):
    curriculum = sampler()
    setattr(curriculum, name, value)
    for call in (lambda: curriculum.set_epoch(1), lambda: curriculum.set_epoch(0), lambda: next(iter(curriculum))):
        with pytest.raises((TypeError, ValueError), match=name):
            call()
    with pytest.raises(AttributeError, match="epoch"):
        curriculum.epoch = 1


CHANGES = [
    {"schedule": "root"}, {"draw": "bernoulli"}, {"seed": 3}, {"shuffle": False}, {"num_epochs": 3},
    {"num_replicas": 2, "rank": 1}, {"schedule": lambda epoch: torch.linspace(0, 1, 101)},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("begin", [lambda part: part.set_epoch(1), lambda part: None])
def test_a_setting_that_is_set_before_an_epoch_is_that_of_the_constructor(begin, change):
    changed, built = sampler(), sampler(**change)
    begin(changed)
    for name, value in change.items():
        setattr(changed, name, value)
    begin(changed)
    begin(built)
    assert list(changed) == list(built)
    assert changed.keep_probability().equal(built.keep_probability())
    assert changed.state_dict()["settings"] == built.state_dict()["settings"]


@pytest.mark.parametrize("change", CHANGES)
def test_an_epoch_under_way_keeps_the_settings_it_was_drawn_with(change):
    curriculum, untouched = sampler(), sampler()
    curriculum.set_epoch(1)
    untouched.set_epoch(1)
    iterator, expected = iter(curriculum), list(untouched)
    seen = take(iterator, 9)
    before, probability = curriculum.state_dict(), curriculum.keep_probability()
    for name, value in change.items():
        setattr(curriculum, name, value)
    curriculum.set_epoch(1)
    state = curriculum.state_dict()
    assert {**state, "difficulty": None} == {**before, "difficulty": None}
    assert iterator.state_dict() == {"epoch": 1, "position": 9}
    assert curriculum.state_dict(position=9) == state
    assert curriculum.keep_probability().equal(probability)
    assert seen + list(iterator) == seen + list(resumed(state)) == expected
    curriculum.set_epoch(2)
    built = sampler(**change)
    built.set_epoch(2)
    assert list(curriculum) == list(built)


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

    def test_an_iteration_that_was_cut_short_counts_and_so_does_one_that_was_restored(self):
        first = sampler()
        take(iter(first), 3)
        second = resumed(first.state_dict())
        list(second)
        for curriculum in (first, second):
            with pytest.warns(UserWarning, match="set_epoch"):
                list(curriculum)
            assert curriculum.epoch == 1

    def test_no_advance_and_no_warning_where_set_epoch_is_called(self):
        curriculum = sampler()
        curriculum.set_epoch(0)
        assert list(curriculum) == list(curriculum)


FOUR, ONE = DRAWN[:, 0], (torch.ones(1, 2), torch.tensor([0]), torch.ones(1, 2))  # scores; embeddings, labels, centers


def new(difficulty=FOUR, **options):
    return DifficultyCurriculumSampler(difficulty, **{"num_epochs": 3} | options)


def scheduled(values):
    return new(schedule=lambda epoch: values)


BAD_SAMPLER = [
    (ValueError, "(n,)...(2, 2)", lambda: new(torch.ones(2, 2))),
    (ValueError, "at least one...none", lambda: new(torch.ones(0))),
    (ValueError, "finite...nan", lambda: new(torch.tensor([0.0, torch.nan]))),
    (ValueError, "num_epochs...0", lambda: new(num_epochs=0)),
    (ValueError, "bernoulli...poisson", lambda: new(draw="poisson")),
    (ValueError, "num_replicas must be at least 1...0", lambda: new(num_replicas=0)),
    (ValueError, "rank...2", lambda: new(num_replicas=2, rank=2)),
    (ValueError, "rank...-1", lambda: new(rank=-1)),
    (ValueError, "rank must be given...None", lambda: new(num_replicas=2)),
    (ValueError, "seed must be at least 0...-1", lambda: new(seed=-1)),
    (TypeError, "True or False...'no'", lambda: new(shuffle="no")),
    (ValueError, "'linear', 'root', 'step'...'cosine'", lambda: new(schedule="cosine")),
    (ValueError, "a pair (start, end)...array", lambda: new(schedule=np.array([0.2, 0.6]))),
    (ValueError, "a pair (start, end)...(0, 1, 2)", lambda: new(schedule=(0, 1, 2))),
    (ValueError, "from 0...(0.0, 1.5)", lambda: new(schedule=(0.0, 1.5))),
    (ValueError, "from 0...(-0.5, 1)", lambda: new(schedule=(-0.5, 1))),
    (TypeError, "number...str", lambda: new(schedule=("a", "b"))),
    (ValueError, "(4,)...(3,)", lambda: scheduled(torch.ones(3))),
    (ValueError, "(4,)...(2,)", lambda: scheduled([0.5, 0.5])),
    (TypeError, "NoneType...(4,)", lambda: scheduled(None)),
    (TypeError, "list...str...(4,)", lambda: scheduled([0.5, 0.5, 0.5, "all"])),
    (ValueError, "0 to 1...1.5", lambda: scheduled(torch.full((4,), 1.5))),
    (ValueError, "0 to 1...nan", lambda: scheduled(torch.full((4,), torch.nan))),
    (ValueError, "at least one...0.4", lambda: scheduled(torch.full((4,), 0.1))),
]


@pytest.mark.parametrize(("error", "message", "build"), BAD_SAMPLER)
def test_bad_sampler_settings_name_expected_and_received(error, message, build):
    with pytest.raises(error, match=says(message)):
        build()


BAD_CALLS = [
    (ValueError, "epoch...-1", lambda s: s.set_epoch(-1)),
    (ValueError, "num_epochs=4...4", lambda s: s.set_epoch(4)),
    (TypeError, "int...float", lambda s: s.set_epoch(1.0)),
    (ValueError, "(101,)...(3,)", lambda s: s.set_epoch(1, torch.rand(3))),
    (TypeError, "tensor...list", lambda s: s.set_epoch(1, [0.5] * 101)),
    (ValueError, "epoch...-1", lambda s: s.keep_probability(-1)),
    (ValueError, "num_epochs=4...4", lambda s: s.keep_probability(4)),
    (ValueError, "101...200", lambda s: s.observe(torch.tensor([200]), *ONE)),
    (ValueError, "101...-1", lambda s: s.observe(torch.tensor([-1]), *ONE)),
    (ValueError, "(1,)...(2,)", lambda s: s.observe(torch.tensor([1, 2]), *ONE)),
    (TypeError, "integer...float32", lambda s: s.observe(torch.tensor([1.0]), *ONE)),
    (TypeError, "tensor...list", lambda s: s.observe([1], *ONE)),
    (ValueError, "position...-3", lambda s: s.state_dict(position=-3)),
    (ValueError, "(101,)...(7,)", lambda s: s.load_state_dict(sampler(7).state_dict())),
    (ValueError, "num_epochs=4...8", lambda s: s.load_state_dict(sampler(seed=1).state_dict() | {"epoch": 8})),
    (ValueError, "seed must...-2", lambda s: s.load_state_dict(sampler(seed=1).state_dict() | {"seed": -2})),
    (ValueError, "position...-1", lambda s: s.load_state_dict(sampler(seed=1).state_dict() | {"position": -1})),
    (ValueError, "without...epoch", lambda s: s.load_state_dict({"seed": 1})),
    (ValueError, "from state_dict...NoneType", lambda s: s.load_state_dict(None)),
    (ValueError, "position must...-4", lambda s: iter(s).load_state_dict({"epoch": 0, "position": -4})),
    (ValueError, "num_epochs=4...4", lambda s: iter(s).load_state_dict({"epoch": 4, "position": 0})),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD_CALLS)
def test_bad_calls_name_expected_and_received_and_change_nothing(error, message, call):
    curriculum, untouched = sampler(), sampler()
    with pytest.raises(error, match=says(message)):
        call(curriculum)
    assert list(curriculum) == list(untouched)
    assert list(epochs(curriculum)) == list(epochs(untouched))


def test_a_schedule_that_an_epoch_refuses_changes_nothing():
    curriculum, untouched = sampler(), sampler()
    other = DifficultyCurriculumSampler(torch.arange(101.0), num_epochs=4, seed=1)
    curriculum.schedule = lambda epoch: torch.full((101,), 2.0)
    with pytest.raises(ValueError, match="0 to 1"):
        curriculum.set_epoch(1, other.difficulty)
    with pytest.raises(ValueError, match="0 to 1"):
        curriculum.load_state_dict(other.state_dict())
    curriculum.schedule = "linear"
    assert list(curriculum) == list(untouched)
    assert list(epochs(curriculum)) == list(epochs(untouched))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_copied(dtype):
    scores = torch.rand(20, dtype=dtype)
    one, before = DifficultyCurriculumSampler(scores, num_epochs=2), scores.clone()
    scores.zero_()
    assert one.difficulty.equal(before)
