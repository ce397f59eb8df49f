"""A watch for values of tensors that the host reads."""

from torch.utils._python_dispatch import TorchDispatchMode


class ValuesRead(TorchDispatchMode):
    """Raises where the host would wait for a device: a value read, or a shape that depends on values."""

    operators = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(name in function.name() for name in self.operators), f"{function.name()} reads values"
        return function(*args, **(kwargs or {}))
