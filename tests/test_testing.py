"""The check of a loss on several processes: it passes right losses, and tells what is wrong with others."""

import atexit
import multiprocessing
import os
from functools import partial

import pytest
import torch
import torch.distributed as dist

from spcl_loss import SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss
from spcl_loss.testing import assert_matches_single_process

RANKS = ((4, 4), (6, 1))
gathered = partial(SupervisedPrototypicalContrastiveLoss, 3, 8, queue_size=4, support_size=2, gather_distributed=True)
local = partial(gathered, gather_distributed=False)


class Learned(torch.nn.Module):
    """Prototypes that are parameters of the loss."""

    def __init__(self):
        super().__init__()
        self.prototypes = torch.nn.Parameter(torch.randn(3, 8))

    def forward(self, embeddings, labels):
        return supervised_prototypical_contrastive_loss(
            embeddings, labels, self.prototypes, prototype_anchors=True, gather_distributed=True, impl="strips"
        )


def aborting_at_exit():
    """What a thread of gloo does that frees a tensor while the interpreter comes to its end."""
    atexit.register(os.abort)
    return Learned()


def compiled():
    return torch.compile(gathered(), backend="aot_eager", fullgraph=True)


class WrongGradients(torch.nn.Module):
    """The right value. The gradients of the encoder and of two parameters are multiples of the right ones."""

    def __init__(self):
        super().__init__()
        self.loss = gathered()
        self.halved, self.tripled = torch.nn.Parameter(torch.ones(())), torch.nn.Parameter(torch.ones(()))

    def forward(self, embeddings, labels):
        size = dist.get_world_size()
        loss = self.loss(with_gradient_times(size, embeddings), labels)
        return (
            loss
            * with_gradient_times(1 / size, self.halved)
            * with_gradient_times(3.0 if size > 1 else 1.0, self.tripled)
        )


def with_gradient_times(factor, tensor):
    return tensor.detach() + factor * (tensor - tensor.detach())


class OwnRowsOnly(torch.nn.Module):
    """A gathered loss whose memory remembers the rows of its own rank."""

    def __init__(self):
        super().__init__()
        self.loss = gathered()

    def forward(self, embeddings, labels):
        loss = self.loss(embeddings, labels, update_memory=False)
        self.loss.memory.update(embeddings, labels)
        return loss


class Stuck(torch.nn.Module):
    """Its first rank waits for the others, who go on."""

    def forward(self, embeddings, labels):
        if dist.get_world_size() > 1 and dist.get_rank() == 0:
            dist.barrier()
        return embeddings.sum()


def check(factory, **options):
    assert_matches_single_process(factory, num_classes=3, embedding_dim=8, **{"batch_sizes": RANKS} | options)


class FromAScriptWithADefaultDevice:
    """Sets a device that does not exist when a spawned process loads it, as a script's top-level code does."""

    def __reduce__(self):
        return _loaded_under_a_default_device, ()

    def __call__(self):
        # A mode that is active in a collective operation can make torch 2.6 wait for ever at the end.
        assert torch._C._len_torch_function_stack() == 0
        return gathered()


def _loaded_under_a_default_device():
    torch.set_default_device("cuda:7")
    return FromAScriptWithADefaultDevice()


def test_right_losses_pass():
    with torch.device("cuda:7"):
        check(FromAScriptWithADefaultDevice())
    check(aborting_at_exit, batch_sizes=[(2, 0, 5), (3, 4, 1)])
    check(compiled, batch_sizes=[(4, 4), (4, 4)])


@pytest.mark.parametrize(
    ("factory", "messages"),
    [
        (
            local,
            [
                "the loss differs between ranks",
                "gather_distributed=True",
                "not the single-process ones",
                "memory.queue",
            ],
        ),
        (
            WrongGradients,
            [
                "gradients of encoder.weight are 2x the single-process ones: the world size",
                "gradients of encoder.bias are 2x the single-process ones: the world size",
                "gradients of loss.halved are 0.5x the single-process ones: one over the world size",
                "gradients of loss.tripled are 3x the single-process ones",
            ],
        ),
        (OwnRowsOnly, ["buffer loss.memory.queue of the loss differs between ranks"]),
    ],
    ids=["local", "wrong gradients", "memories apart"],
)
def test_wrong_losses_are_told_what_is_wrong(factory, messages):
    with pytest.raises(AssertionError) as caught:
        check(factory)
    for message in messages:
        assert message in str(caught.value)


def test_ranks_that_wait_for_ever_are_ended():
    started = set(multiprocessing.active_children())
    with pytest.raises(AssertionError, match="2 ranks have not come to an end after 2 seconds"):
        check(Stuck, timeout=2)
    assert set(multiprocessing.active_children()) <= started


def test_a_loss_that_raises_is_reported():
    with pytest.raises(AssertionError, match="must have shape"):
        check(partial(SupervisedPrototypicalContrastiveLoss, 3, 9))
    with pytest.raises(AssertionError, match="scalar"):
        check(partial(gathered, reduction="none"))


@pytest.mark.parametrize("batch_sizes", [(), [()], [4, 4]])
def test_no_batch_is_an_error(batch_sizes):
    with pytest.raises(ValueError, match=r"batch_sizes must hold.*at least one step.*received"):
        check(gathered, batch_sizes=batch_sizes)


@pytest.mark.parametrize(("name", "example"), [("timeout", "60"), ("tolerance", "1e-5")])
def test_a_number_that_will_not_do_is_refused_with_an_example(name, example):
    with pytest.raises(
        ValueError, match=f"{name} must be a finite number above 0; received 0. Pass one such as {example}"
    ):
        check(gathered, **{name: 0})


def test_a_factory_that_cannot_be_sent_is_named():
    with pytest.raises(TypeError, match=r"picklable.*functools\.partial"):
        check(lambda: gathered())
