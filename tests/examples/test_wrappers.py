"""What other packages do with a module that contains the loss: they save, load and copy all of its state."""

import copy
import pickle

import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from spcl_loss import SupervisedPrototypicalContrastiveLoss

EMBEDDINGS, LABELS = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


class Config(PretrainedConfig):
    model_type = "encoder with a loss"


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config=None, seed=5, weights=(1.0, 2.0, 3.0)):
        super().__init__(config or Config())
        self.encoder = nn.Linear(8, 8)
        # from_pretrained builds on the meta device, on which weights would have no values.
        class_weights = torch.tensor(weights, device="cpu")
        self.loss = SupervisedPrototypicalContrastiveLoss(3, 8, seed=seed, class_weights=class_weights)
        self.post_init()

    def _init_weights(self, module):
        pass


@pytest.fixture
def trained():
    """A model with full and with empty slots, a fallback centre, a moved draw counter."""
    model = Model()
    model.loss.memory.initialize(EMBEDDINGS[:2], LABELS[:2])
    for scale in range(1, 8):
        model.loss(scale * model.encoder(EMBEDDINGS), LABELS)
    return model


def other():
    return Model(seed=6, weights=(1.0, 1.0, 1.0))


def through_deepcopy(model, folder):
    return copy.deepcopy(model)


def through_pickle(model, folder):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model, folder):
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


def through_state_dict(model, folder):
    torch.save(model.state_dict(), folder / "state.pt")
    loaded = other()
    loaded.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return loaded


def through_safetensors(model, folder):
    save_file(model.state_dict(), folder / "state.safetensors")
    loaded = other()
    loaded.load_state_dict(load_file(folder / "state.safetensors"))
    return loaded


def through_safetensors_model(model, folder):
    save_model(model, str(folder / "model.safetensors"))
    loaded = other()
    load_model(loaded, str(folder / "model.safetensors"))
    return loaded


def through_pretrained(model, folder):
    model.save_pretrained(folder)
    return Model.from_pretrained(folder).train()


@pytest.mark.filterwarnings("ignore")  # torch warns about its own distributed parts without a process group
def through_distributed_checkpoint(model, folder):
    torch.distributed.checkpoint.save(model.state_dict(), checkpoint_id=folder, no_dist=True)
    loaded = other()
    state = loaded.state_dict()
    torch.distributed.checkpoint.load(state, checkpoint_id=folder, no_dist=True)
    loaded.load_state_dict(state)
    return loaded


WAYS = [
    through_deepcopy,
    through_pickle,
    through_torch_save,
    through_state_dict,
    through_safetensors,
    through_safetensors_model,
    through_pretrained,
    through_distributed_checkpoint,
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_the_copy_trains_on_with_the_same_bits(way, trained, tmp_path):
    copied = way(trained, tmp_path)
    for _ in range(2):
        losses = [model.loss(model.encoder(EMBEDDINGS), LABELS) for model in (trained, copied)]
        assert torch.equal(*losses)
        assert torch.equal(*(model.loss.memory.fingerprint() for model in (trained, copied)))


def test_a_loss_that_the_checkpoint_does_not_mention_is_as_new(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: value for name, value in state.items() if name.startswith("encoder")},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    loaded = Model.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.weight, trained.encoder.weight)
    assert torch.equal(loaded.loss.memory.fingerprint(), Model().loss.memory.fingerprint())
    assert loaded.loss.class_weights.tolist() == [1.0, 2.0, 3.0]
