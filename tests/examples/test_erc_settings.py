"""Settings, presets and the options made from them."""

import argparse
from dataclasses import asdict, replace

import pytest

from erc.settings import OBJECTIVES, PRESETS, Settings, add_options, differences, given, names, preset


def parse(*options):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser.add_argument_group())
    return given(parser.parse_args(options))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    assert asdict(Settings(**PRESETS[name])).keys() == set(names())


def test_the_default_is_the_cpu_preset():
    assert Settings(**PRESETS["cpu"]) == Settings()


def test_the_paper_preset_holds_the_authors_settings():
    paper = Settings(**PRESETS["paper"])
    assert paper.encoder == "princeton-nlp/sup-simcse-roberta-large"
    assert (paper.temperature, paper.queue_size, paper.support_size, paper.draw) == (0.05, 256, 64, "bernoulli")
    assert (paper.context_turns, paper.max_length, paper.batch_size) == (8, 256, 32)
    assert (paper.encoder_rate, paper.head_rate) == (1e-5, 1e-3)


def test_every_setting_but_the_dataset_is_an_option():
    options = []
    for name in names():
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
    changes = parse("--epochs", "5", "--easy-threshold", "0.3", "--no-freeze-embeddings", "--patience", "none")
    assert changes == {"epochs": 5, "easy_threshold": 0.3, "freeze_embeddings": False, "patience": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "triplet"}, "objective must be one of spcl, spdcl, supcon, bcl, eacl, ce; received 'triplet'"),
        ({"temperature": 0.0}, "temperature must be at least"),
        ({"temperature": float("nan")}, "temperature must be at least"),
        ({"epochs": 0}, "epochs must be at least 1; received 0"),
        ({"average": 1.0}, "average must be below 1; received 1.0"),
        ({"objective": "supcon", "prototypes": "learned"}, "prototypes must be own: supcon has none"),
        ({"past_queries": 0.1}, "past_queries needs inputs=prompts; received 0.1 with dialogues"),
        ({"future_turns": 2}, "future_turns needs inputs=prompts"),
        ({"repeat_turn": True}, "repeat_turn needs inputs=prompts"),
        ({"support_size": 300}, "support_size must be at most queue_size=256; received 300"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_differences_name_setting_and_values():
    assert differences(Settings(), Settings()) == []
    assert differences(Settings(), replace(Settings(), seed=2, epochs=7)) == ["epochs (4, now 7)", "seed (0, now 2)"]


def test_the_objective_says_where_prototypes_come_from_unless_told():
    kinds = {objective: Settings(objective=objective).prototype_kind for objective in OBJECTIVES}
    assert kinds == {
        "spcl": "queue", "spdcl": "queue", "supcon": "none", "bcl": "learned", "eacl": "learned", "ce": "none",
    }  # fmt: skip
    assert Settings(prototypes="label_text").prototype_kind == "label_text"


SWITCHES = (
    "inputs",
    "joint",
    "contrast",
    "prototypes",
    "prototype_anchors",
    "difficulty_pass",
    "future_turns",
    "layer_decay",
    "average",
)


@pytest.mark.parametrize("dataset", ["MELD", "IEMOCAP", "EmoryNLP"])
def test_what_is_not_the_papers_is_off_in_its_preset(dataset):
    paper = Settings(**preset("paper", dataset))
    assert {name: getattr(paper, name) for name in SWITCHES} == {
        "inputs": "prompts", "joint": False, "contrast": "own", "prototypes": "own", "prototype_anchors": False,
        "difficulty_pass": "every", "future_turns": 0, "layer_decay": 1.0, "average": 0.0,
    }  # fmt: skip


def test_the_head_that_is_trained_selects():
    assert Settings(objective="ce").selects_by == "linear"
    assert Settings(objective="spdcl").selects_by == "prototype"
    assert Settings(objective="spdcl", joint=True).selects_by == "linear"
