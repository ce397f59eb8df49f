"""Who sees which sample when."""

import random

from erc.batches import RandomShareSampler, length_buckets, longest_first
from erc.inputs import Input, Sample

LENGTHS = random.Random(0).choices(range(5, 91), k=1003)
ALONE = [Sample(Input((0,) * length), 0, 1, 0, "", "") for length in LENGTHS]


def test_buckets_hold_every_sample_once_and_little_padding():
    indices = random.Random(1).sample(range(1003), 900)
    batches = length_buckets(ALONE, indices, 16, seed=3)
    assert sorted(index for batch in batches for index in batch) == sorted(indices)
    assert max(map(len, batches)) == 16

    def padded(groups):
        return sum(len(group) * max(LENGTHS[i] for i in group) for group in groups)

    unsorted = [indices[i : i + 16] for i in range(0, 900, 16)]
    total = sum(LENGTHS[i] for i in indices)
    assert padded(batches) < 1.1 * total < padded(unsorted)


def test_buckets_come_in_an_order_of_the_seed():
    batches = [length_buckets(ALONE, range(1003), 16, seed=seed) for seed in (0, 0, 1)]
    assert batches[0] == batches[1] != batches[2]
    longest = [max(LENGTHS[i] for i in batch) for batch in batches[0]]
    assert longest != sorted(longest)


def test_longest_first():
    batches = longest_first(ALONE, 64)
    flat = [LENGTHS[i] for batch in batches for i in batch]
    assert flat == sorted(LENGTHS, reverse=True)


def test_random_share():
    sampler = RandomShareSampler(101, share=0.5, seed=0)
    first = list(sampler)
    assert len(first) == len(set(first)) == len(sampler) == 50
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert set(first) != set(sampler)
    assert sorted(RandomShareSampler(101, share=1.0, seed=0)) == list(range(101))


def test_samples_that_share_an_input_are_in_one_batch():
    inputs = [Input((0,) * length, (0,) * length) for length in LENGTHS[:200]]
    samples = [Sample(one, turn, turn + 1, 0, "", "") for turn in range(5) for one in inputs]
    indices = random.Random(1).sample(range(1000), 700)
    for batches, asked in (
        (length_buckets(samples, indices, 16, seed=3), indices),
        (longest_first(samples, 16), range(1000)),
    ):
        assert sorted(index for batch in batches for index in batch) == sorted(asked)
        inside = [{id(samples[index].input) for index in batch} for batch in batches]
        assert sum(map(len, inside)) == len(set.union(*inside))
        assert all(16 <= len(batch) < 16 + 5 for batch in sorted(batches, key=len)[2:])  # a pool's last may have fewer


def test_a_restored_sampler_goes_on_in_its_epoch():
    sampler, other = RandomShareSampler(50, share=0.5, seed=0), RandomShareSampler(50, share=0.5, seed=0)
    sampler.set_epoch(3)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == list(sampler)
