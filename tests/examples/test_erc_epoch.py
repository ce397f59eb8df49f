"""The loop that epochs are timed against trains on the same equation, only more slowly."""

from dataclasses import replace

import erc_epoch
import torch

import erc_tiny
from spcl_loss import supervised_prototypical_contrastive_loss


def test_its_loss_is_spcl():
    settings = erc_tiny.settings("any")
    centers, labels = torch.randn(3, 6), torch.tensor([0, 1, 1, 2, 0, 2, 1, 0])
    embeddings = torch.randn(8, 6, requires_grad=True)
    ours = supervised_prototypical_contrastive_loss(embeddings, labels, centers)
    gradient = torch.autograd.grad(ours, embeddings)[0]
    criterion = erc_epoch.PerSampleLoss(centers, settings)
    theirs = criterion(embeddings, labels)
    torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(torch.autograd.grad(theirs, embeddings)[0], gradient)
    assert [len(pool) for pool in criterion.pools] == [4, 4, 3]  # the centres are in them
    for _ in range(4):
        criterion(embeddings, labels)
    assert [len(pool) for pool in criterion.pools] == [8, 8, 8]


def test_it_pads_to_the_limit_and_scores_each_epoch(encoder):
    settings = erc_tiny.settings(encoder, epochs=2, batch_size=8)
    loop = erc_epoch.PlainLoop(settings, erc_tiny.corpus())
    batch = next(loop._batches(loop.dev))
    assert batch.input_ids.shape == (8, settings.max_length)
    scores = loop.run()
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)


def test_a_round_that_is_not_over_has_its_results():
    times = {"as the authors": [10.0, 20.0], "ours": [2.0]}
    rows = erc_epoch.results(times, {"as the authors": [0.1, 0.2], "ours": [0.3]})
    assert [row["seconds an epoch"] for row in rows] == [15.0, 2.0]
    assert [row["ratio"] for row in rows] == [1.0, 0.2]  # the second round's yardstick has no counterpart yet
    assert rows[0]["dev weighted-F1 by epoch"] == "0.1000 0.2000"


def test_padding_changes_no_representation(encoder):
    settings = erc_tiny.settings(encoder)
    loop = erc_epoch.PlainLoop(settings, erc_tiny.corpus())
    wide, _ = loop._encode(loop.dev[:5])
    loop.settings = replace(settings, max_length=max(len(sample.input.ids) for sample in loop.dev[:5]))
    narrow, _ = loop._encode(loop.dev[:5])
    torch.testing.assert_close(wide, narrow, rtol=1e-4, atol=1e-5)
