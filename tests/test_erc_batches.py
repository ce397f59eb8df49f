"""Who sees which sample when."""

import random

from erc.batches import RandomShareSampler, length_buckets, longest_first

LENGTHS = random.Random(0).choices(range(5, 91), k=1003)


def test_buckets_hold_every_sample_once_and_little_padding():
    indices = random.Random(1).sample(range(1003), 900)
    batches = length_buckets(indices, LENGTHS, 16, seed=3)
    assert sorted(index for batch in batches for index in batch) == sorted(indices)
    assert max(map(len, batches)) == 16

    def padded(groups):
        return sum(len(group) * max(LENGTHS[i] for i in group) for group in groups)

    unsorted = [indices[i : i + 16] for i in range(0, 900, 16)]
    total = sum(LENGTHS[i] for i in indices)
    assert padded(batches) < 1.1 * total < padded(unsorted)


def test_buckets_come_in_an_order_of_the_seed():
    batches = [length_buckets(list(range(1003)), LENGTHS, 16, seed=seed) for seed in (0, 0, 1)]
    assert batches[0] == batches[1] != batches[2]
    longest = [max(LENGTHS[i] for i in batch) for batch in batches[0]]
    assert longest != sorted(longest)


def test_longest_first():
    batches = longest_first(LENGTHS, 64)
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


def test_ranks_share_a_random_share():
    whole = list(RandomShareSampler(101, share=0.5, seed=4))
    parts = [list(RandomShareSampler(101, share=0.5, seed=4, num_replicas=3, rank=rank)) for rank in range(3)]
    assert [len(part) for part in parts] == [16, 16, 16]
    assert sorted(index for part in parts for index in part) == sorted(whole[:48])


def test_a_restored_sampler_goes_on_in_its_epoch():
    sampler, other = RandomShareSampler(50, share=0.5, seed=0), RandomShareSampler(50, share=0.5, seed=0)
    sampler.set_epoch(3)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == list(sampler)
