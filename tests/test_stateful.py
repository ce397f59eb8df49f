"""Any sequence of calls on the memory and on the sampler, against plain Python models of what they should hold."""

import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spcl_loss import DifficultyCurriculumSampler, PrototypeMemory, prototype_difficulty
from support.same import through_a_file

COPIES = (copy.deepcopy, copy.copy, lambda part: pickle.loads(pickle.dumps(part)))
C, M, D = 3, 4, 2
ROWS = st.lists(
    st.tuples(st.sampled_from([*range(C), -100]), st.sampled_from([1.0] * 6 + [math.nan, math.inf])), max_size=9
)


class MemoryMachine(RuleBasedStateMachine):
    """The model: a list of whole numbers a class, a centre a class or none, how often was drawn, the seed.

    A draw is known by what makes it: the seed, the draw counter, the class and how many entries there ever were. The
    same four must give the same entries, on whatever copy, file or dtype the memory has gone through.
    """

    support_sets: dict = {}  # of all memories in this process  # noqa: RUF012

    @initialize(queue_size=st.integers(1, M), support_size=st.integers(1, M), seed=st.integers(0, 3))
    def build(self, queue_size, support_size, seed):
        self.M, support_size = queue_size, min(support_size, queue_size)
        self.memory = PrototypeMemory(C, D, queue_size=queue_size, support_size=support_size, seed=seed)
        self.constructor_seed = self.seed = seed
        self.entries, self.entered = [[] for _ in range(C)], [0] * C
        self.centres, self.draws, self.next_number, self.saved = [None] * C, 0, 1, None

    def batch(self, rows):
        numbers = [(self.next_number + i) % 200 + 1 for i in range(len(rows))]  # exact in bfloat16 too
        self.next_number += len(rows)
        labels = torch.tensor([label for label, _ in rows], dtype=torch.long)
        factors = [factor for _, factor in rows]
        embeddings = torch.tensor([[number, -number * by] for number, by in zip(numbers, factors, strict=True)])
        pairs = zip(numbers, rows, strict=True)
        known = [(label, number) for number, (label, factor) in pairs if factor == 1 and label >= 0]
        return embeddings.view(-1, D), labels, known

    @rule(rows=ROWS)
    def update(self, rows):
        embeddings, labels, known = self.batch(rows)
        self.memory.update(embeddings, labels)
        for label, number in known:
            self.entries[label] = [*self.entries[label], number][-self.M :]
            self.entered[label] += 1

    @rule(rows=ROWS)
    def initialise(self, rows):
        embeddings, labels, known = self.batch(rows)
        self.memory.initialize(embeddings, labels)
        by_class = [[number for label, number in known if label == c] for c in range(C)]
        self.centres = [sum(numbers) / len(numbers) if numbers else None for numbers in by_class]
        self.entries, self.entered = [[] for _ in range(C)], [0] * C

    @rule()
    def draw(self):
        self.memory.prototypes()
        self.draws += 1

    @invariant()
    def draws_what_the_model_may_draw(self):
        prototypes, exist = self.memory.prototypes(advance=False)
        K = self.memory.support_size
        assert prototypes.isfinite().all()
        for c, entries in enumerate(self.entries):
            assert bool(exist[c]) == bool(entries or self.centres[c] is not None)
            if len(entries) >= K:
                sums = {subset: sum(subset) / K for subset in itertools.combinations(entries, K)}
                self.assert_row(prototypes[c], *sums.values())
                key = self.seed, self.draws, c, self.entered[c], K, tuple(entries)
                seen = self.support_sets.setdefault(key, float(prototypes[c, 0]))
                self.assert_row(prototypes[c], seen)
            elif self.centres[c] is not None:
                self.assert_row(prototypes[c], self.centres[c])
            elif entries:
                self.assert_row(prototypes[c], sum(entries) / len(entries))

    def assert_row(self, row, *numbers):
        """The row of one of the numbers, within rounding of a number that was stored in half precision."""
        assert row[0] == -row[1]
        assert min(abs(float(row[0]) - number) / number for number in numbers) < 2**-7

    @rule(k=st.integers(0, M))
    def newest(self, k):
        before, k = self.memory.fingerprint(), min(k, self.M)
        rows, labels = self.memory.entries(k)
        assert rows.shape == (C * k, D) and labels.dtype == torch.int64
        for c, entries in enumerate(self.entries):
            newest, of_class = entries[::-1][:k], slice(c * k, c * k + k)
            absent = k - len(newest)
            assert rows[of_class].tolist() == [[number, -number] for number in newest + [0] * absent]
            assert labels[of_class].tolist() == [c] * len(newest) + [-100] * absent
        assert self.memory.fingerprint() == before

    @rule(support_size=st.integers(1, M))
    def set_support_size(self, support_size):
        self.memory.support_size = min(support_size, self.M)

    @rule()
    def reset(self):
        self.memory.reset()
        self.seed, self.draws = self.constructor_seed, 0
        self.entries, self.entered, self.centres = [[] for _ in range(C)], [0] * C, [None] * C

    @rule()
    def save(self):
        model = (self.entries, self.entered, self.centres, self.draws, self.seed)
        self.saved = through_a_file(self.memory.state_dict()), copy.deepcopy(model)

    @precondition(lambda self: self.saved is not None)
    @rule(new=st.booleans(), seed=st.integers(0, 3))
    def load(self, new, seed):
        if new:
            support_size = self.memory.support_size
            self.memory = PrototypeMemory(C, D, queue_size=self.M, support_size=support_size, seed=seed)
            self.constructor_seed = seed
        state, model = self.saved
        self.memory.load_state_dict(state)
        self.entries, self.entered, self.centres, self.draws, self.seed = copy.deepcopy(model)

    @rule(how=st.sampled_from([COPIES[0], COPIES[2]]))
    def copy(self, how):
        other = how(self.memory)
        assert other.fingerprint() == self.memory.fingerprint()
        self.memory.update(torch.ones(1, D), torch.zeros(1, dtype=torch.long))  # the copy does not see this
        self.memory = other

    @rule(dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    def convert(self, dtype):
        self.memory.to(dtype)

    @rule()
    def move(self):
        self.memory.to("cpu")

    @invariant()
    def holds_what_the_model_holds(self):
        assert self.memory.counts.tolist() == [len(entries) for entries in self.entries]
        assert self.memory.cursors.tolist() == self.entered
        assert (int(self.memory.draws), int(self.memory.seed)) == (self.draws, self.seed)
        newest, labels = self.memory.entries(self.M)
        for c, entries in enumerate(self.entries):
            of_class = slice(c * self.M, c * self.M + self.M)
            shown = newest[of_class][labels[of_class] == c].tolist()
            assert shown == [[number, -number] for number in reversed(entries)]
        centroids, exist = self.memory.centroids()
        assert centroids.isfinite().all()
        for c, entries in enumerate(self.entries):
            expected = sum(entries) / len(entries) if entries else None
            if len(entries) < self.memory.support_size and self.centres[c] is not None:
                expected = self.centres[c]
            assert bool(exist[c]) == (expected is not None)
            if expected is not None:
                self.assert_row(centroids[c], expected)


n, EPOCHS = 9, 4
GENERATOR = torch.Generator().manual_seed(0)
EMBEDDINGS, CENTERS = torch.randn(n, 3, generator=GENERATOR), torch.randn(2, 3, generator=GENERATOR)
LABELS = torch.arange(n) % 2
SCORES = st.lists(st.integers(0, 5), min_size=n, max_size=n)


class SamplerMachine(RuleBasedStateMachine):
    """The model: scores, those of the present epoch, how many of its samples were taken, and whether it is under way.

    Which samples an epoch has is asked of a new sampler: they depend on scores, seed and epoch alone.
    """

    @initialize(
        scores=SCORES,
        draw=st.sampled_from(["fixed", "bernoulli"]),
        shuffle=st.booleans(),
        replicas=st.sampled_from([1, 2]),
        seed=st.integers(0, 2),
    )
    def build(self, scores, draw, shuffle, replicas, seed):
        self.fixed = {"num_epochs": EPOCHS, "draw": "fixed" if replicas > 1 else draw, "shuffle": shuffle}
        self.fixed |= {"num_replicas": replicas, "rank": replicas - 1}
        self.scores = torch.tensor(scores, dtype=torch.float32)
        self.sampler, self.seed = self.new(seed), seed
        self.epoch, self.of_epoch, self.set, self.saved = 0, self.scores, False, None
        self.forget_iterators()

    def new(self, seed, scores=None):
        return DifficultyCurriculumSampler(self.scores if scores is None else scores, seed=seed, **self.fixed)

    def forget_iterators(self):
        self.iterator, self.taken, self.finished, self.resume_at = None, None, False, None

    @property
    def expected(self):
        fresh = self.new(self.seed, self.of_epoch)
        fresh.set_epoch(self.epoch)
        return fresh.indices.tolist()

    @property
    def position(self):
        return self.resume_at or 0 if self.taken is None else self.taken * self.sampler.num_replicas

    def begin(self, epoch):
        self.epoch, self.of_epoch = epoch, self.scores
        self.forget_iterators()

    @rule(epoch=st.integers(0, EPOCHS - 1))
    def set_epoch(self, epoch):
        self.sampler.set_epoch(epoch)
        self.set = True
        under_way = self.resume_at is not None or (self.taken is not None and not self.finished)
        if not (epoch == self.epoch and under_way):
            self.begin(epoch)

    @rule()
    def set_epoch_again(self):
        self.set_epoch(self.epoch)

    @rule(epoch=st.integers(0, EPOCHS - 1), scores=SCORES, missing=st.sets(st.integers(0, n - 1)))
    def set_epoch_with_scores(self, epoch, scores, missing):
        scores = torch.tensor(scores, dtype=torch.float64)
        scores[list(missing)] = torch.nan
        self.sampler.set_epoch(epoch, scores)
        self.set = True
        self.scores = torch.where(scores.isnan(), self.scores, scores.float())
        self.begin(epoch)

    @rule(indices=st.lists(st.integers(0, n - 1), unique=True), poison=st.booleans())
    def observe(self, indices, poison):
        rows = torch.tensor(indices, dtype=torch.long)
        embeddings = EMBEDDINGS[rows] * 2
        if poison and indices:
            embeddings[0] = torch.nan
        self.sampler.observe(rows, embeddings, LABELS[rows], CENTERS)
        scores = prototype_difficulty(embeddings, LABELS[rows], CENTERS)
        self.scores = self.scores.clone()
        self.scores[rows[scores.isfinite()]] = scores[scores.isfinite()]

    @rule(count=st.integers(1, 9))
    def start(self, count):
        """A new iterator. It starts with its first sample."""
        self.iterator = iter(self.sampler)
        start = -(-(self.resume_at or 0) // self.sampler.num_replicas)
        if self.resume_at is None and self.taken is not None and not self.set:
            iterator = self.iterator
            self.begin(min(self.epoch + 1, EPOCHS - 1))
            self.iterator = iterator
        self.taken, self.finished, self.resume_at = min(start, len(self.expected)), False, None
        self.take(count)

    @rule()
    def look(self):
        """Loaders make iterators that they never use."""
        iter(self.sampler), iter(self.sampler)

    @precondition(lambda self: self.iterator is not None and not self.finished)
    @rule(count=st.integers(1, 9))
    def go_on(self, count):
        self.take(count)

    def take(self, count):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "set_epoch was not called")
            given = list(itertools.islice(self.iterator, count))
        expected = self.expected[self.taken : self.taken + count]
        assert given == expected
        self.taken += len(given)
        self.finished = len(given) < count

    @rule()
    def save(self):
        model = (self.scores, self.of_epoch, self.epoch, self.seed)
        self.saved = self.sampler.state_dict(), model, self.position  # which must not change with the sampler

    @precondition(lambda self: self.saved is not None)
    @rule(new=st.booleans())
    def load(self, new):
        state, (self.scores, self.of_epoch, self.epoch, self.seed), position = self.saved
        if new:
            self.sampler, self.set = self.new(7), False
        self.sampler.load_state_dict(through_a_file(state))
        self.forget_iterators()
        self.resume_at = position

    @rule()
    def interrupt(self):
        """The training is stopped and goes on in another process."""
        self.save()
        self.load(new=True)

    @rule(how=st.sampled_from(COPIES))
    def copy(self, how):
        self.sampler, self.iterator = how(self.sampler), None

    @invariant()
    def holds_what_the_model_holds(self):
        assert self.sampler.epoch == self.epoch
        assert torch.equal(self.sampler.difficulty, self.scores)
        assert self.sampler.indices.tolist() == self.expected
        assert len(self.sampler) == len(self.expected)
        assert self.sampler.state_dict()["position"] == self.position


@pytest.mark.parametrize("machine", [MemoryMachine, SamplerMachine])
def test_any_sequence_of_calls(machine):
    case = machine.TestCase
    case.settings = settings(stateful_step_count=25)
    case("runTest").runTest()
