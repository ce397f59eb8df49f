"""Dialogues as inputs: every turn sees what was said before it, and nothing of what comes after."""

import pytest
import torch

import erc_tiny
from erc.dialogues import Dialogue, InputError, Turn
from erc.encoder import EmotionModel, load_tokenizer_and_backbone
from erc.inputs import collate
from erc.windows import Windows
from erc_tiny import TALK


def windows(tokenizer, dialogue=TALK, **changes):
    return Windows((dialogue,), tokenizer, **{"context_turns": 8, "max_length": 96, **changes}).own_queries()


def said(tokenizer, sample):
    return tokenizer.decode(sample.input.ids[sample.start : sample.end])


def test_one_input_serves_all_turns(tokenizer):
    samples = windows(tokenizer)
    assert [(s.dialogue, s.turn, s.label) for s in samples] == [("7", "0", 0), ("7", "2", 2), ("7", "3", 1)]
    assert len({id(sample.input) for sample in samples}) == 1
    whole = "Ann: one two three[SEP]Ben: four five[SEP]Ann: six[SEP]Cat: seven eight"
    assert list(samples[0].input.ids) == tokenizer(whole)["input_ids"]
    assert [said(tokenizer, s) for s in samples] == [
        "ann : one two three [SEP]",
        "ann : six [SEP]",
        "cat : seven eight [SEP]",
    ]


def test_a_long_dialogue_goes_on_in_windows_that_begin_with_what_was_said_before(tokenizer):
    long = Dialogue("1", tuple(Turn(str(i), "Ann", f"word {i}", 0) for i in range(12)))  # 5 tokens a turn
    samples = windows(tokenizer, long, context_turns=2, max_length=1 + 5 * 5)
    assert [sample.turn for sample in samples] == [str(i) for i in range(12)]
    inputs = list({id(sample.input): sample.input for sample in samples}.values())
    assert [sorted(set(one.turns)) for one in inputs] == [[*range(5)], [*range(3, 8)], [*range(6, 11)], [9, 10, 11]]
    asked = [[int(sample.turn) for sample in samples if sample.input is one] for one in inputs]
    assert asked == [[*range(5)], [5, 6, 7], [8, 9, 10], [11]]


def test_a_window_keeps_to_its_length(tokenizer):
    words = [3, 40, 1, 90, 2, 2, 30, 60, 1]
    mixed = Dialogue("1", tuple(Turn(str(i), "Ann", "word " * n, 0) for i, n in enumerate(words)))
    for room in (16, 32, 64, 128):
        samples = windows(tokenizer, mixed, max_length=room)
        assert [sample.turn for sample in samples] == [str(i) for i in range(9)]
        assert max(len(sample.input.ids) for sample in samples) <= room
        for sample, count in zip(samples, words, strict=True):
            assert said(tokenizer, sample).count("word") == min(count, room - 4)  # [CLS], "ann", ":", [SEP]


def test_max_length_beyond_the_encoder_is_an_error(tokenizer):
    with pytest.raises(InputError, match="max_length must be at most"):
        windows(tokenizer, max_length=tokenizer.model_max_length + 1)


@pytest.fixture(scope="module", params=["bert-eager", "bert-sdpa", "mpnet-eager"])
def tiny(request, tmp_path_factory):
    architecture, attention = request.param.split("-")
    folder = erc_tiny.encoder(tmp_path_factory.mktemp("encoder"), architecture)
    tokenizer, backbone = load_tokenizer_and_backbone(erc_tiny.settings(folder, attention=attention))
    return tokenizer, EmotionModel(backbone, 3, head_trains_encoder=False).eval()


@torch.no_grad()
def represent(model, tokenizer, samples):
    return model(collate(samples, tokenizer.pad_token_id))[0]


@torch.no_grad()
def test_the_first_turn_is_the_mean_of_its_tokens_as_if_it_were_alone(tiny):
    tokenizer, model = tiny
    first, *_ = windows(tokenizer)
    hidden = model.backbone(input_ids=torch.tensor([first.input.ids[: first.end]])).last_hidden_state[0]
    for asked in ([first], windows(tokenizer)):
        own = represent(model, tokenizer, asked)[0]
        torch.testing.assert_close(own, hidden[first.start : first.end].mean(0), rtol=1e-4, atol=1e-5)


def test_no_turn_sees_a_later_one_and_every_turn_sees_the_earlier_ones(tiny):
    tokenizer, model = tiny
    before = represent(model, tokenizer, windows(tokenizer))
    turns = list(TALK.turns)
    turns[2] = Turn("2", "Ann", "nine", 2)  # as many tokens
    after = represent(model, tokenizer, windows(tokenizer, Dialogue("7", tuple(turns))))
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert (after[2] - before[2]).abs().max() > 1e-4
    turns[3] = Turn("3", "Cat", "much longer than it was before", 1)
    longer = represent(model, tokenizer, windows(tokenizer, Dialogue("7", tuple(turns))))
    torch.testing.assert_close(longer[:2], after[:2], rtol=1e-4, atol=1e-5)


def test_what_else_is_in_the_batch_changes_no_representation(tiny):
    tokenizer, model = tiny
    samples = Windows(erc_tiny.corpus().train, tokenizer, context_turns=1, max_length=20).own_queries()
    assert len({id(sample.input) for sample in samples}) > len(erc_tiny.corpus().train)
    together = represent(model, tokenizer, samples)
    for sample, row in zip(samples, together, strict=True):
        torch.testing.assert_close(represent(model, tokenizer, [sample])[0], row, rtol=1e-4, atol=1e-5)
    some = list(range(len(samples)))[::3][::-1]  # tokens after the last that is asked for are left out
    torch.testing.assert_close(
        represent(model, tokenizer, [samples[i] for i in some]), together[some], rtol=1e-4, atol=1e-5
    )
