"""Diagnostics against plain loops, and that they change nothing."""

import copy
import math

import pytest
import torch

from spcl_loss import METHODS, SupervisedPrototypicalContrastiveLoss
from support import oracle
from support.values import ValuesRead

C, D = 4, 6


def module(**options):
    return SupervisedPrototypicalContrastiveLoss(
        C, D, queue_size=8, support_size=3, temperature=0.3, **options
    ).double()


def batch(seed, N=14):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(N, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(C - 1, (N,), generator=generator)  # the last class is never seen
    labels[4], embeddings[4] = -100, math.nan
    return embeddings.requires_grad_(), labels


def trained(**options):
    criterion = module(**options)
    for seed in range(5):
        criterion(*batch(seed))
    return criterion


def cosine(a, b):
    return float(oracle.unit(a) @ oracle.unit(b))


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def expected(criterion, embeddings, labels, options):
    """The same by loops, from the prototypes that the memory gives now."""
    memory = criterion.memory
    prototypes, exist = memory.prototypes(advance=False) if criterion.training else memory.centroids()
    rows = [i for i in range(len(labels)) if labels[i] >= 0]
    equation = {name: value for name, value in options.items() if name != "easy_threshold"}
    losses = oracle.anchor_losses(
        embeddings.detach(), labels, prototypes, prototype_mask=exist, temperature=0.3, **equation
    )
    threshold = options.get("easy_threshold")
    losses = {i: float(value) for i, value in losses.items() if threshold is None or value > threshold}
    label = {i: int(labels[i]) if i < len(labels) else i - len(labels) for i in losses}
    present = [c for c in range(C) if exist[c]]
    everyone = [int(labels[i]) for i in rows] + present
    anchors = everyone if options.get("prototype_anchors") else everyone[: len(rows)]
    if options["contrast"] == "all":
        losses = {i: value - math.log(everyone.count(label[i]) - 1) for i, value in losses.items()}
    pairs = [(i, j) for i in rows for j in rows if i != j]
    drift = []
    for c in range(C):
        own = [oracle.unit(embeddings[i].detach()) for i in rows if labels[i] == c]
        drift.append(1 - cosine(sum(own), prototypes[c]) if own and exist[c] else math.nan)
    counts = memory.counts.tolist()
    return {
        "loss_above_floor": mean(losses.values()),
        "loss_above_floor_by_class": [mean(v for i, v in losses.items() if label[i] == c) for c in range(C)],
        "positives_per_anchor": mean(everyone.count(c) - 1 for c in anchors),
        "cosine_within": mean(cosine(*embeddings.detach()[[i, j]]) for i, j in pairs if labels[i] == labels[j]),
        "cosine_between": mean(cosine(*embeddings.detach()[[i, j]]) for i, j in pairs if labels[i] != labels[j]),
        "prototype_drift": drift,
        "queue_fill": [count / 8 for count in counts],
        "queue_age": [
            count / int(n) * int(memory.cursors.sum()) / len(rows) if n else math.nan
            for count, n in zip(counts, memory.cursors, strict=True)
        ],
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_agree_with_plain_loops_and_change_no_state(method, training):
    options = dict(METHODS[method])
    criterion = trained(**options).train(training)
    before = copy.deepcopy(criterion.state_dict())
    embeddings, labels = batch(9)
    found = criterion.diagnostics(embeddings, labels)
    wanted = expected(criterion, embeddings, labels, options)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert not found[name].requires_grad
        value = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-6, equal_nan=True, msg=name)
    torch.testing.assert_close(criterion.state_dict(), before, rtol=0, atol=0)


def test_the_loss_that_follows_is_the_one_described():
    criterion, (embeddings, labels) = trained(), batch(9)
    found = criterion.diagnostics(embeddings, labels)
    exist = criterion.memory.prototypes(advance=False)[1]
    classes = torch.cat([labels, exist.nonzero()[:, 0]])
    floor = [math.log((classes == c).sum() - 1) for c in labels if c >= 0]
    torch.testing.assert_close(criterion(embeddings, labels) - mean(floor), found["loss_above_floor"])


def test_an_empty_memory_and_an_empty_batch_give_nan():
    found = module().diagnostics(torch.zeros(0, D, dtype=torch.float64), torch.zeros(0, dtype=torch.long))
    assert found["loss_above_floor"].isnan()
    assert found["loss_above_floor_by_class"].isnan().all()
    assert found["prototype_drift"].isnan().all()
    assert found["queue_age"].isnan().all()
    assert found["queue_fill"].tolist() == [0] * C
    found = trained().diagnostics(torch.zeros(0, D, dtype=torch.float64), torch.zeros(0, dtype=torch.long))
    assert found["queue_age"].isnan().all()


@pytest.mark.parametrize(("labels", "name"), [([0, 0, 0], "cosine_between"), ([0, 1, 2], "cosine_within")])
def test_a_mean_over_no_pair_is_nan(labels, name):
    for _ in range(20):  # what the sum of no cosines rounds to is zero by chance
        assert module().diagnostics(torch.randn(3, D, dtype=torch.float64), torch.tensor(labels))[name].isnan()


def test_the_age_counts_the_steps_since_the_queues_were_emptied():
    criterion = module().train()
    embeddings, labels = torch.randn(6, D, dtype=torch.float64), torch.arange(6) % C
    for steps in (5, 2):
        criterion.memory.initialize(embeddings, labels)
        for _ in range(steps):
            criterion(embeddings, labels)
        age, fill = (criterion.diagnostics(embeddings, labels)[name] for name in ("queue_age", "queue_fill"))
        assert age[fill < 1].tolist() == pytest.approx([steps] * int((fill < 1).sum()))
        assert age.max() <= steps


def test_learned_prototypes():
    criterion, (embeddings, labels) = trained(), batch(9)
    learned = torch.randn(C, D, dtype=torch.float64, requires_grad=True)
    drift = criterion.diagnostics(embeddings, labels, prototypes=learned)["prototype_drift"]
    own = sum(oracle.unit(row) for row in embeddings.detach()[labels == 1])
    assert drift[1].item() == pytest.approx(1 - cosine(own, learned.detach()[1]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="embedding_dim=6"):
        trained().diagnostics(torch.ones(3, 5), torch.arange(3))


def test_nothing_is_waited_for(monkeypatch):
    monkeypatch.setattr("spcl_loss._checks._readable", lambda _: False)  # as on a GPU
    with ValuesRead():
        trained().diagnostics(*batch(9))
