"""What checkpoints hold: through a file and back, and compared."""

import io

import torch


def through_a_file(state):
    """What is loaded of what was saved."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_state(one, other):
    """Of two modules, to the bit."""
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


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
