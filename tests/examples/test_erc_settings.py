"""Settings, presets and the options made from them."""

import argparse
import json
from dataclasses import asdict

import pytest

from erc.files import InputError
from erc.folder import RunFolder
from erc.settings import NAMES, OBJECTIVES, PRESETS, Settings, add_options, given, preset
from spcl_loss import METHODS


def parse(*options):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser)
    return given(parser.parse_args(options))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dataset", ["MELD", "IEMOCAP", "EmoryNLP"])
def test_presets_are_valid(name, dataset):
    assert asdict(Settings(**preset(name, dataset))).keys() == set(NAMES)


def test_the_default_is_the_cpu_preset():
    assert Settings(**preset("cpu", "MELD")) == Settings()


def test_objectives_are_the_librarys_methods_and_cross_entropy():
    assert (*METHODS, "ce") == OBJECTIVES


@pytest.mark.parametrize(
    ("name", "epochs", "queue", "temperature"), [("paper", 16, 256, 0.05), ("paper-meld", 10, 512, 0.08)]
)
def test_the_paper_presets_hold_the_authors_settings(name, epochs, queue, temperature):
    paper = Settings(**preset(name, "MELD"))
    assert paper.encoder == "princeton-nlp/sup-simcse-roberta-large"
    assert (paper.epochs, paper.queue_size, paper.temperature) == (epochs, queue, temperature)
    assert (paper.objective, paper.contrastive_weight, paper.easy_threshold) == ("spcl", None, 0.3)
    assert (paper.support_size, paper.patience, paper.warmup, paper.as_authors) == (64, 5, 128, True)
    assert (paper.inputs, paper.context_turns, paper.max_length, paper.batch_size) == ("prompts", 8, 256, 32)
    assert (paper.encoder_rate, paper.head_rate, paper.freeze_embeddings) == (1e-5, 1e-3, False)
    assert (paper.selects_by, paper.reference_turns) == ("prototype", None)


def test_every_setting_but_the_dataset_is_an_option():
    options = []
    for name in NAMES:
        value = getattr(Settings(), name)
        if name == "dataset":
            continue
        elif isinstance(value, bool):
            options.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            options += [f"--{name.replace('_', '-')}", "none" if value is None else str(value)]
    assert Settings(**parse(*options)) == Settings()


def test_only_what_is_given_changes_the_preset():
    assert parse() == {}
    changes = parse("--epochs", "5", "--contrastive-weight", "0.3", "--no-freeze-embeddings", "--patience", "none")
    assert changes == {"epochs": 5, "contrastive_weight": 0.3, "freeze_embeddings": False, "patience": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "triplet"}, "objective must be one of spcl, spdcl, supcon, bcl, eacl, ce; received 'triplet'"),
        ({"temperature": 0.0}, "temperature must be at least"),
        ({"temperature": float("nan")}, "temperature must be at least"),
        ({"epochs": 0}, "epochs must be at least 1; received 0"),
        ({"train_fraction": 0.0}, "train_fraction must be above 0 and at most 1; received 0.0"),
        ({"train_fraction": 1.5}, "train_fraction must be above 0 and at most 1; received 1.5"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be at least 0; received -1.0"),
        ({"objective": "ce", "contrastive_weight": 0.5}, "contrastive_weight needs a contrastive objective"),
        ({"selects_by": "nearest"}, "selects_by must be one of linear, "),
        ({"seed": 1 << 31}, r"seed must be below 2 \*\* 31; received 2147483648"),
        ({"support_size": 300}, "support_size must be at most queue_size=256; received 300"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_settings_of_earlier_versions_are_read_where_they_change_nothing(tmp_path):
    path, stored = tmp_path / "settings.json", {**asdict(Settings(seed=4)), "memory_candidates": 0}
    path.write_text(json.dumps(stored | {"class_weights": False}))
    assert RunFolder(tmp_path).stored_settings() == Settings(seed=4)
    for text in (json.dumps(stored | {"memory_candidates": 16}), json.dumps({"colour": "red"}), "[1]", "{", "3"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"settings\.json holds no settings of this version \(.*train again"):
            RunFolder(tmp_path).stored_settings()


def test_the_default_recipe_and_cross_entropy_differ_in_the_objective_alone():
    recipe, cross_entropy = Settings(), Settings(objective="ce")
    assert (recipe.objective, recipe.contrastive_weight, recipe.curriculum, recipe.epochs) == ("spcl", 0.2, "all", 3)
    differing = [name for name in NAMES if getattr(recipe, name) != getattr(cross_entropy, name)]
    assert differing == ["objective", "contrastive_weight"] and cross_entropy.contrastive_weight is None
