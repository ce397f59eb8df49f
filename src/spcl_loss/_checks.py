"""Raise-helpers: every error of the public functions names what was expected, what came and the remedy.

Looking at the values of a tensor makes the host wait for a GPU. So value checks look at CPU tensors in eager code; on a
GPU and in compiled code they are assertions that run with the other operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_loss._numerics import in_torch_func

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PER_CLASS = {"class_weights", "prototype_mask", "center_mask"}  # vectors with one entry a class, not one a row


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:  # an array compares entry by entry
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}; received {value!r}. Pass one of these"
        )


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; received {value!r}. Pass one of the two")


def check_number(name: str, value: float, minimum: float = -math.inf, example: str = "0.05") -> None:
    """A finite number above `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a Python number; received {type(value).__name__}. Pass one such as {example}")
    if not (minimum < value < math.inf):
        bound = "" if minimum == -math.inf else f" above {minimum:g}"
        raise ValueError(f"{name} must be a finite number{bound}; received {value}. Pass one such as {example}")


def check_size(name: str, value: int, minimum: int = 1, below: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; received {type(value).__name__}. Convert it with int()")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; received {value}. Take a larger one")
    if below is not None and value >= below:
        raise ValueError(f"{name} must be below {below}; received {value}. Take a smaller one")


def check_ignore_index(value: int) -> None:
    check_size("ignore_index", value, -(2**63), 2**63)


def check_floating(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    """A floating tensor of this shape; a letter in `shape` stands for any size."""
    _check_tensor(name, tensor)
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be a floating tensor of 16, 32 or 64 bits; received {tensor.dtype}. "
            f"Convert with {name}.float()"
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; received {tensor.layout}. Convert with {name}.to_dense()")
    check_shape(name, tensor, shape)


def check_embeddings(embeddings: Tensor, queue: Tensor | None) -> None:
    """(N, D) floating rows that fit the queues (C, M, D) of a memory; None for a loss without a memory."""
    check_floating("embeddings", embeddings, ("N", "D" if queue is None else str(queue.shape[2])))
    width = embeddings.shape[1]
    if width < 1:  # torch.jit.trace gives sizes as tensors
        raise ValueError(f"embeddings must have a width of at least 1; received {width}. Take wider ones")
    if queue is None:
        return
    if width != queue.shape[2]:
        raise ValueError(
            f"embeddings must have shape (N, {queue.shape[2]}), since embedding_dim={queue.shape[2]}; received "
            f"{tuple(embeddings.shape)}. Build the loss and its memory with embedding_dim={width}"
        )
    if embeddings.device != queue.device:
        raise ValueError(
            f"embeddings must be on the device of the memory, {queue.device}; received {embeddings.device}. "
            f"Move the memory, or the loss that holds it, with .to({str(embeddings.device)!r})"
        )


def check_any_class(exists: Tensor) -> None:
    """At least one class has a centroid."""
    message = "the memory must hold a class to compare with; received an empty one. Fill it with update or initialize"
    if _is_false(exists.any(), message):
        raise ValueError(message)


def check_outside_backward() -> None:
    """Within a backward pass a call is a repetition by activation checkpointing, and would see another memory."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "the loss must not fill its memory within a backward pass; activation checkpointing has called it a second "
            "time. Checkpoint the encoder alone, or pass update_memory=False and call memory.update and "
            "memory.prototypes after the backward pass"
        )


def check_integers(name: str, tensor: Tensor) -> None:
    _check_tensor(name, tensor)
    if tensor.dtype not in _INTEGERS:
        raise TypeError(
            f"{name} must be an integer tensor; received {tensor.dtype}. Convert whole numbers with {name}.long()"
        )


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor; received {type(value).__name__}. "
            "Pass one: torch.as_tensor converts lists and arrays of numbers"
        )


def check_shape(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    received = tuple(tensor.shape)
    if len(received) != len(shape) or any(
        not isinstance(expected, str) and size != expected for size, expected in zip(received, shape, strict=True)
    ):
        wanted = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ValueError(
            f"{name} must have shape {wanted}; received {received}. {_shape_remedy(name, received, len(shape))}"
        )


def _shape_remedy(name: str, received: tuple[int, ...], dimensions: int) -> str:
    """What turns a tensor of the received shape into one of so many dimensions, for the mistakes that are common."""
    if len(received) == dimensions + 1 and received[-1] == 1:
        return f"Drop the last dimension with {name}.squeeze(-1)"
    if name.endswith("labels") and len(received) == 2:
        return (
            f"Turn one-hot labels into classes with {name}.argmax(1). A row has one class: where labels have several "
            "levels, add one loss for each"
        )
    if dimensions == 2 and len(received) == 3 and name == "prototypes":
        return "Pass several prototypes of a class as rows of candidates, with their classes as candidate_labels"
    if dimensions == 2 and len(received) == 3 and name != "centers":
        views, labels = received[1], "candidate_labels" if name == "candidates" else "labels"
        return (
            f"If these are {views} views of each sample, flatten them with {name}.flatten(0, 1) and repeat the labels "
            f"with {labels}.repeat_interleave({views}). If they are tokens, flatten their labels too with "
            f"{labels}.flatten(), or pool the tokens of each sample into one row"
        )
    if dimensions == 2 and len(received) > 3:
        return f"Flatten each sample into one row with {name}.flatten(1)"
    if dimensions == 2 and len(received) == 1:
        return f"Make it a single row with {name}[None]"
    if dimensions == 1 and len(received) == 1:
        return f"Pass as many entries as there are {'classes' if name in _PER_CLASS else 'rows'}"
    return "Pass a tensor whose sizes match those of the other arguments"


def check_mask(name: str, tensor: Tensor, size: int | None) -> None:
    """A boolean vector with one entry a prototype; `size` None says that there are no prototypes to mask."""
    if size is None:
        raise ValueError(f"{name} needs prototypes; received prototypes=None. Pass both or neither")
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
        received = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a bool tensor; received {received}. Compare, as in counts > 0, to get one")
    check_shape(name, tensor, (size,))


def check_device(name: str, tensor: Tensor, reference: str, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} must be on the device of {reference}, {device}; received {tensor.device}. "
            f"Move it with .to({str(device)!r})"
        )


def checked_labels(
    labels: Tensor,
    rows: int,
    device: torch.device,
    num_classes: int | None,
    ignore_index: int,
    name: str = "labels",
) -> Tensor:
    """Integer labels, one a row, each a class of [0, num_classes) or `ignore_index`. Returns int64, -1 if ignored."""
    if isinstance(labels, Tensor):  # the shape first: one-hot labels are often floating
        check_shape(name, labels, (rows,))
    check_integers(name, labels)
    check_device(name, labels, "embeddings", device)
    labels = labels.long()  # before the comparison, since -100 as a uint8 is the class 156
    if torch.compiler.is_compiling():  # numbers may be symbols there, which no text can hold
        message = f"{name} must be classes from 0 on, below the number of classes, or ignore_index"
    else:
        upper = "" if num_classes is None else f", below {num_classes}"
        message = f"{name} must be classes from 0 on{upper}, or ignore_index={ignore_index}"
    _check_range(labels, num_classes, ignore_index, message)
    # Valid labels are >= 0, so clamping maps a negative `ignore_index` to -1 in one operator.
    return labels.clamp_min(-1) if ignore_index < 0 else labels.masked_fill(labels == ignore_index, -1)


def check_indices(indices: Tensor, rows: int, size: int) -> None:
    """Integer indices, one a row, each of [0, size)."""
    check_integers("indices", indices)
    check_shape("indices", indices, (rows,))
    message = f"indices must be at least 0 and below {size}, the number of samples"
    _check_range(indices.long(), size, None, message)


def _check_range(numbers: Tensor, below: int | None, ignored: int | None, message: str) -> None:
    """Integers of [0, below), or the one that is ignored."""
    if _readable(numbers) and numbers.numel() > 0:  # the usual case, by one operator
        smallest, largest = (int(bound) for bound in numbers.aminmax())
        if smallest >= 0 and (below is None or largest < below):
            return
    valid = numbers >= 0
    if below is not None:
        valid &= numbers < below
    if ignored is not None:
        valid |= numbers == ignored
    if _is_false(valid.all(), message):
        wrong = int(numbers[~valid][0])
        otherwise = "check how many there are"
        if wrong < 0 and ignored is not None:
            otherwise = f"pass ignore_index={wrong} if such rows have no label"
        raise ValueError(f"{message}; received {wrong}. Number them from 0 on, or {otherwise}")


def _readable(tensor: Tensor) -> bool:
    """Whether the host can look at the values now: not in compiled code, and not without waiting for a GPU."""
    return not torch.compiler.is_compiling() and tensor.device.type == "cpu" and not in_torch_func()


def _is_false(holds: Tensor, message: str) -> bool:
    """Whether the host sees that `holds` is False. Where it cannot look, an assertion among the other operators does.

    Meta tensors have nothing to assert.
    """
    if _readable(holds):
        return not bool(holds)
    if torch.compiler.is_compiling() or not (holds.is_meta or in_torch_func()):
        torch._assert_async(holds, message)
    return False
