"""The lines of docs/howto/from-others.md that have a counterpart in pytorch-metric-learning."""

import pytest
import torch
from pytorch_metric_learning import losses

from spcl_loss import METHODS, supervised_prototypical_contrastive_loss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(32, 16, dtype=torch.float64, requires_grad=True), torch.randint(5, (32,))


@pytest.mark.parametrize("labels", ["five classes", "a class of one row"])
def test_supcon_is_their_supcon(batch, labels):
    embeddings, classes = batch
    if labels == "a class of one row":
        classes[0] = 5
    theirs = losses.SupConLoss(temperature=0.1)(embeddings, classes)
    ours = supervised_prototypical_contrastive_loss(embeddings, classes, temperature=0.1, **METHODS["supcon"])
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_candidates_are_their_cross_batch_memory(batch):
    embeddings, classes = batch
    earlier, earlier_classes = torch.randn(32, 16, dtype=torch.float64), torch.randint(5, (32,))
    memory = losses.CrossBatchMemory(losses.SupConLoss(temperature=0.1), 16, memory_size=128).double()
    memory(earlier, earlier_classes)
    ours = supervised_prototypical_contrastive_loss(
        embeddings, classes, candidates=earlier, candidate_labels=earlier_classes, temperature=0.1, **METHODS["supcon"]
    )
    torch.testing.assert_close(ours, memory(embeddings, classes))
