"""Comparison of what checkpoints hold."""

import torch


def same(one, other) -> bool:
    """Whether two values are equal: plain ones, tensors, and dictionaries, lists and tuples of them."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
