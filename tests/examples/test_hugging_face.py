"""A loss inside a Hugging Face model: what `from_pretrained` and safetensors bring back."""

import copy

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from spcl_loss import SupervisedPrototypicalContrastiveLoss

C, D = 3, 4


class Encoder(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Linear(D, D)
        self.post_init()


class Classifier(Encoder):
    def __init__(self, config):
        super().__init__(config)
        self.criterion = SupervisedPrototypicalContrastiveLoss(
            C, D, seed=7, class_weights=torch.tensor([1.0, 2.0, 3.0], device="cpu")
        )
        self.post_init()


def trained():
    model = Classifier(PreTrainedConfig())
    for _ in range(3):
        model.criterion(torch.randn(9, D), torch.arange(9) % C)
    return model


def assert_goes_on_alike(criterion, other):
    criterion, other = copy.deepcopy(criterion).train(), other.train()  # from_pretrained is in evaluation mode
    for _ in range(3):
        rows, labels = torch.randn(9, D), torch.arange(9) % C
        assert torch.equal(criterion(rows, labels), other(rows, labels))
        torch.testing.assert_close(other.state_dict(), criterion.state_dict(), rtol=0, atol=0)


def test_a_saved_loss_goes_on(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path)
    assert_goes_on_alike(model.criterion, Classifier.from_pretrained(tmp_path).criterion)


@pytest.mark.parametrize("lacking", ["memory.seed", "memory.queue", "class_weights"])
def test_what_a_checkpoint_lacks_is_as_the_constructor_sets_it(tmp_path, lacking):
    model = trained()
    model.criterion.memory.seed.fill_(3)
    model.criterion.class_weights.fill_(3)
    state = model.state_dict()
    del state[f"criterion.{lacking}"]
    model.save_pretrained(tmp_path, state_dict=dict(state))  # which it empties
    expected = Classifier(PreTrainedConfig())
    expected.load_state_dict(state, strict=False)
    assert_goes_on_alike(expected.criterion, Classifier.from_pretrained(tmp_path).criterion)


def test_beside_a_pretrained_encoder_the_loss_is_new(tmp_path):
    encoder = Encoder(PreTrainedConfig())
    encoder.save_pretrained(tmp_path)
    model = Classifier.from_pretrained(tmp_path)
    assert torch.equal(model.encoder.weight, encoder.encoder.weight)
    assert_goes_on_alike(Classifier(PreTrainedConfig()).criterion, model.criterion)


def test_a_trained_memory_may_stand_in_a_new_model():
    criterion = trained().criterion
    before = copy.deepcopy(criterion)

    class Wrapper(Encoder):
        def __init__(self, config):
            super().__init__(config)
            self.criterion = criterion
            self.post_init()

    assert_goes_on_alike(before, Wrapper(PreTrainedConfig()).criterion)


@pytest.mark.parametrize("seed", [7, 8])
def test_safetensors(tmp_path, seed):
    criterion = trained().criterion
    save_model(criterion, str(tmp_path / "criterion.safetensors"))
    other = SupervisedPrototypicalContrastiveLoss(C, D, seed=seed, class_weights=torch.ones(C))
    load_model(other, str(tmp_path / "criterion.safetensors"))
    assert_goes_on_alike(criterion, other)
