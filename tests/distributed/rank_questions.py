"""What each rank does for test_distributed.py: every question in turn, in one start of the processes."""

import contextlib
import io
import os
import re
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import rank_training as training
from spcl_loss import SupervisedPrototypicalContrastiveLoss, _distributed
from spcl_loss import supervised_prototypical_contrastive_loss as spcl

QUESTIONS = {}


def question(function):
    QUESTIONS[function.__name__] = function
    return function


def answer_all(rank, world_size, saved):
    """{question: answer}; `saved` is the state that `another_world_size` goes on from."""
    os.environ["SPCL_TILE_BYTES"] = "512"  # several tiles even of small batches
    answers = {name: ask(rank, world_size) for name, ask in QUESTIONS.items()}
    return answers | {"another_world_size": another_world_size(rank, world_size, saved)}


@question
def every_method(rank, world_size):
    return {case: training.on_a_rank(rank, world_size, case) for case in training.CASES}


@question
def accumulation(rank, world_size):
    return training.on_a_rank(rank, world_size, "EACL-weighted-strips", accumulate=3)


@question
def many_rows(rank, world_size):
    """More than the dense form is chosen for."""
    return training.on_a_rank(rank, world_size, "EACL-weighted-auto", sizes=many(world_size))


def many(world_size):
    return [[270 + 10 * rank for rank in range(world_size)]]


@question
def fully_sharded(rank, world_size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    learner, mesh = training.Learner("BCL"), init_device_mesh("cpu", (world_size,))
    for module in (learner.encoder[0], learner.encoder[2], learner):
        fully_shard(module, mesh=mesh)
    return training.train(learner, training.Objective("BCL-weighted-strips"), own_steps(rank, world_size))


@question
def accelerated(rank, world_size):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of the group before
    accelerator = Accelerator(cpu=True)
    learner = accelerator.prepare(training.Learner("SPCL"))
    return training.train(learner, training.Objective("SPCL-weighted-strips"), own_steps(rank, world_size))


@question
def compiled(rank, world_size):
    """On two ranks: losses and gradients of equal batches, eager and as one graph; the error of unequal batches."""
    if world_size != 2:
        return {}
    sizes = [[6] * world_size] * 2
    steps = [training.part(batch, counts, rank) for batch, counts in training.batches(world_size, sizes)]
    results = {}
    for case in ("SPCL-weighted-dense", "SPDCL-plain-strips", "EACL-plain-strips"):
        runs = []
        for wrap in (lambda loss: loss, one_graph):
            objective = training.Objective(case)
            objective.loss = wrap(objective.loss)
            runs.append(training.train(training.Learner(case.split("-")[0]), objective, steps))
        results[case] = runs
    uneven = torch.randn(4 + rank, 8)
    results["uneven"] = error_of(one_graph(spcl), uneven, torch.arange(4 + rank) % 2, gather_distributed=True)
    return results


def one_graph(loss):
    torch._dynamo.reset()
    return torch.compile(loss, fullgraph=True, backend="aot_eager")


@question
def two_passes(rank, world_size):
    """Gradients by the recipe of the documentation, in chunks of two rows, averaged with the last chunk."""
    recipe = functions_of_page("howto/large-batches.md")["backward_in_two_passes"]
    encoder = DistributedDataParallel(training.Learner("SPCL").encoder)
    loss_fn = training.Objective("SPCL-plain-strips").loss
    gradients = []
    for inputs, labels, _ in own_steps(rank, world_size):
        encoder.zero_grad()
        recipe(encoder, loss_fn, inputs, labels, 2)
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    return gradients


def functions_of_page(page):
    """What the first Python block of a page defines."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1], namespace)
    return namespace


@question
def groups(rank, world_size):
    """Halves of four ranks, each with a batch of its own."""
    if world_size != 4:
        return {}
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    objective = training.Objective("SPCL-plain-strips", process_group=halves[rank // 2])
    learner = DistributedDataParallel(training.Learner("SPCL"))
    return training.train(learner, objective, own_steps(rank, world_size)[:1])


@question
def local(rank, world_size):
    objective = training.Objective("SupCon-plain-strips", gather_distributed=False)
    return training.train(training.Learner("SupCon"), objective, own_steps(rank, world_size)[:1])


@question
def half_precision(rank, world_size):
    embeddings, labels = torch.randn(5 * world_size, 8).bfloat16(), torch.arange(5 * world_size) % 3
    dist.broadcast(embeddings, 0)
    own = embeddings[5 * rank : 5 * rank + 5].requires_grad_()
    loss = spcl(own, labels[5 * rank : 5 * rank + 5], gather_distributed=True, impl="strips")
    loss.backward()
    return {"embeddings": embeddings.detach(), "labels": labels, "loss": loss.detach(), "gradient": own.grad}


ENTRIES = ["SPCL-weighted-strips", "SPDCL-plain-dense"]


@question
def entries_as_candidates(rank, world_size):
    return {case: training.on_a_rank(rank, world_size, case, entries=4) for case in ENTRIES}


@question
def autocast_around_backward(rank, world_size):
    """{form: [gradients of embeddings, and of prototypes that are anchors, without and with autocast]}."""
    generator = torch.Generator().manual_seed(rank)
    embeddings, prototypes = torch.randn(6, 8, generator=generator), torch.eye(3, 8)
    answers = {}
    for impl in ("dense", "strips"):
        answers[impl] = []
        for enabled in (False, True):
            leaves = [leaf.clone().requires_grad_() for leaf in (embeddings, prototypes)]
            options = {"prototype_anchors": True, "gather_distributed": True, "impl": impl}
            loss = spcl(leaves[0], torch.arange(6) % 3, leaves[1], **options)
            with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
                loss.backward()
            answers[impl].append([leaf.grad for leaf in leaves])
    return answers


@question
def poisoned(rank, world_size):
    """A NaN on the last rank alone."""
    criterion = SupervisedPrototypicalContrastiveLoss(3, 8, queue_size=4, support_size=2, gather_distributed=True)
    torch.manual_seed(rank)
    labels = torch.arange(6) % 3
    criterion(torch.randn(6, 8), labels)
    before, embeddings = criterion.memory.fingerprint(), torch.randn(6, 8)
    if rank == world_size - 1:
        embeddings[2, 3] = torch.nan
    embeddings.requires_grad_()
    loss = criterion(embeddings, labels)
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradient": embeddings.grad,
        "fingerprints": torch.stack([before, criterion.memory.fingerprint()]),
    }


@question
def disagreements(rank, world_size):
    """What each rank says when the last one has something else, or a batch that is refused."""
    odd, embeddings, labels = rank == world_size - 1, torch.randn(4, 8), torch.tensor([0, 1, 0, 1])

    def say(*arguments, **options):
        return error_of(spcl, *arguments, gather_distributed=True, **options)

    def say_of_memory(change, **options):
        criterion = SupervisedPrototypicalContrastiveLoss(2, 8, support_size=4, gather_distributed=True, **options)
        change(criterion)
        return error_of(criterion, embeddings, labels)

    def support(size):
        return lambda criterion: setattr(criterion.memory, "support_size", size)

    return {
        "seed": say_of_memory(lambda criterion: None, seed=int(odd)),
        "no matter": say_of_memory(lambda criterion: criterion.eval(), seed=int(odd)),  # nothing is drawn
        "function": say(embeddings, labels, torch.ones(2, 8)) if odd else say_of_memory(lambda criterion: None),
        "draws": say_of_memory(lambda criterion: criterion.memory.prototypes() if odd else None),
        "training": say_of_memory(lambda criterion: criterion.train(not odd)),
        "support_size": say_of_memory(support(4 if odd else 3)),
        "refused support_size": say_of_memory(support(0 if odd else 3)),
        "width": say(embeddings[:, : 7 if odd else 8], labels),
        "dtype": say(embeddings.double() if odd else embeddings, labels),
        "temperature": say(embeddings, labels, temperature=0.1 if odd else 0.05),
        "sample_weight": say(embeddings, labels, sample_weight=torch.ones(4) if odd else None),
        "class_weights": say(embeddings, labels, class_weights=torch.tensor([1.0, 2.0 if odd else 3.0])),
        "no class_weights": say(embeddings, labels, class_weights=None if odd else torch.ones(2)),
        "prototypes": say(embeddings, labels, torch.randn(3 if odd else 2, 8)),
        "learned": say(embeddings, labels, torch.randn(2, 8, requires_grad=odd)),
        "refused option": say(embeddings, labels, temperature=-1.0 if odd else 0.05),
        "refused": say(embeddings, labels - 7 if odd else labels),
        "none": say(embeddings, labels),
    }


def error_of(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@question
def bytes_received(rank, world_size):
    """{case: bytes that come from other ranks in one step with six rows on each}."""
    received = 0
    gather = _distributed._all_gather

    def counted(output, part, group=None):
        nonlocal received
        received += (output.numel() - part.numel()) * output.element_size()
        return gather(output, part, group=group)

    _distributed._all_gather = counted
    [(batch, counts)] = training.batches(world_size, [[6] * world_size])
    counted_bytes = {}
    for case in training.CASES:
        received = 0
        learner, objective = training.Learner(case.split("-")[0]), training.Objective(case)
        embeddings, labels, weights = training.part(batch, counts, rank)
        objective(learner(embeddings), labels, weights).backward()
        counted_bytes[case] = received
    _distributed._all_gather = gather
    return counted_bytes


def another_world_size(rank, world_size, saved):
    """Three more steps, and what to go on from."""
    learner, objective = training.Learner("SPCL"), training.Objective("SPCL-weighted-strips")
    if saved:
        learner.load_state_dict(saved["learner"])
        objective.loss.load_state_dict(saved["loss"])
    wrapped = DistributedDataParallel(learner)
    result = training.train(wrapped, objective, own_steps(rank, world_size))
    return result | {"saved": {"learner": learner.state_dict(), "loss": objective.loss.state_dict()}}


def own_steps(rank, world_size):
    return [training.part(batch, counts, rank) for batch, counts in training.batches(world_size)]
