"""Dialogues become the inputs that the paper describes."""

import pytest
import torch

from erc.dialogues import Dialogue, InputError, Turn, label_dialogues
from erc.inputs import collate
from erc.prompts import Prompts
from erc_tiny import TALK


def prompts(tokenizer, dialogues=(TALK,), **changes):
    return Prompts(dialogues, tokenizer, **{"context_turns": 8, "repeat_turn": False, "max_length": 96, **changes})


def text(tokenizer, sample):
    return tokenizer.decode(sample.input.ids)


def test_context_query_and_mask(tokenizer):
    samples = prompts(tokenizer).own_queries()
    assert [(s.dialogue, s.turn, s.label) for s in samples] == [("7", "0", 0), ("7", "2", 2), ("7", "3", 1)]
    assert text(tokenizer, samples[0]) == "[CLS] for utterance : one two three [SEP] ann feels [MASK] [SEP]"
    assert text(tokenizer, samples[1]) == (
        "[CLS] ann : one two three [SEP] ben : four five [SEP] for utterance : six [SEP] ann feels [MASK] [SEP]"
    )
    for sample in samples:
        assert sample.input.ids[sample.start : sample.end] == (tokenizer.mask_token_id,)


def test_pieces_tokenised_once_equal_the_whole_tokenised_at_once(tokenizer):
    whole = "Ann: one two three[SEP]Ben: four five[SEP]For utterance: six[SEP]Ann feels[MASK]"
    sample = prompts(tokenizer).own_queries()[1]
    assert list(sample.input.ids) == tokenizer(whole)["input_ids"]


def test_context_turns_limits_the_context(tokenizer):
    assert text(tokenizer, prompts(tokenizer, context_turns=1).own_queries()[2]).startswith("[CLS] ann : six [SEP] for")
    assert text(tokenizer, prompts(tokenizer, context_turns=0).own_queries()[2]).startswith("[CLS] for utterance")


def test_the_turn_may_end_its_own_context(tokenizer):
    sample = prompts(tokenizer, repeat_turn=True, context_turns=1).own_queries()[2]
    assert text(tokenizer, sample).startswith(
        "[CLS] ann : six [SEP] cat : seven eight [SEP] for utterance : seven eight"
    )


def test_the_oldest_context_goes_first_and_the_query_stays(tokenizer):
    whole = prompts(tokenizer).own_queries()[2].input.ids
    for room in range(len(whole), 8, -1):
        sample = prompts(tokenizer, max_length=room).own_queries()[2]
        query = "for utterance : seven eight [SEP] cat feels [MASK] [SEP]"
        said = ["ann : one two three [SEP] ", "ben : four five [SEP] ", "ann : six [SEP] "]
        assert text(tokenizer, sample) in {"[CLS] " + "".join(said[i:]) + query for i in range(4)}
        assert len(sample.input.ids) <= max(room, len(prompts(tokenizer, context_turns=0).own_queries()[2].input.ids))


def test_a_query_longer_than_max_length_stays_whole_up_to_the_encoders_limit(tokenizer):
    long = Dialogue("1", (Turn("0", "Ann", "word " * 600, 0), Turn("1", "Ben", "word " * 60, 1)))
    beyond, whole = prompts(tokenizer, (long,), max_length=16).own_queries()
    assert len(beyond.input.ids) == tokenizer.model_max_length
    assert text(tokenizer, beyond).startswith("[CLS] word")
    assert text(tokenizer, beyond).endswith("word [SEP] ann feels [MASK] [SEP]")
    assert text(tokenizer, whole).startswith("[CLS] for utterance : word")
    assert text(tokenizer, whole).count("word") == 60


def test_max_length_beyond_the_encoder_is_an_error(tokenizer):
    with pytest.raises(InputError, match="max_length must be at most"):
        prompts(tokenizer, max_length=tokenizer.model_max_length + 1)


def test_special_tokens_in_what_is_said_do_not_move_the_mask(tokenizer):
    tricky = Dialogue("1", (Turn("0", "Ann", "a [MASK] b", 0),))
    (sample,) = prompts(tokenizer, (tricky,)).own_queries()
    assert sample.start == len(sample.input.ids) - 2


def test_past_queries_ask_for_an_earlier_turn_in_the_same_context(tokenizer):
    for seed in range(8):
        samples = prompts(tokenizer).past_queries(1.0, torch.Generator().manual_seed(seed))
        assert len(samples) == 2  # turn 0 has no past, turn 1 no label
        assert text(tokenizer, samples[0]) == (
            "[CLS] ann : one two three [SEP] ben : four five [SEP] ann : six [SEP] "
            "for utterance : one two three [SEP] ann feels [MASK] [SEP]"
        )
        assert (samples[0].turn, samples[0].label) == ("0", 0)
        assert samples[1].turn in {"0", "2"}


def test_past_queries_have_a_fixed_number_and_a_drawn_choice(tokenizer):
    made = prompts(tokenizer, tuple(Dialogue(str(i), TALK.turns) for i in range(50)))
    draws = [made.past_queries(0.2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert [len(draw) for draw in draws] == [20, 20, 20]  # a fifth of the 100 turns that have a past
    assert draws[0] == draws[1] != draws[2]
    assert made.past_queries(0.0, torch.Generator()) == []


def test_a_batch_is_as_wide_as_its_longest_member(tokenizer):
    samples = prompts(tokenizer).own_queries()
    batch = collate(samples, padding=tokenizer.pad_token_id)
    lengths = [len(sample.input.ids) for sample in samples]
    assert batch.input_ids.shape == (3, max(lengths))
    assert batch.visible.sum(1).tolist() == lengths
    assert batch.labels.tolist() == [0, 2, 1]
    assert batch.input_ids.flatten()[batch.tokens].tolist() == [tokenizer.mask_token_id] * 3
    assert batch.offsets.tolist() == [0, 1, 2]
    assert (batch.input_ids[~batch.visible] == tokenizer.pad_token_id).all()


def test_future_turns_follow_the_turn_itself(tokenizer):
    sample = prompts(tokenizer, future_turns=1).own_queries()[1]
    assert text(tokenizer, sample) == (
        "[CLS] ann : one two three [SEP] ben : four five [SEP] ann : six [SEP] cat : seven eight [SEP] "
        "for utterance : six [SEP] ann feels [MASK] [SEP]"
    )
    last = prompts(tokenizer, future_turns=1).own_queries()[2]
    assert last == prompts(tokenizer, repeat_turn=True).own_queries()[2]


def test_the_past_comes_before_the_future_when_there_is_little_room(tokenizer):
    whole = prompts(tokenizer, future_turns=1).own_queries()[1]
    short = prompts(tokenizer, future_turns=1, max_length=len(whole.input.ids) - 1).own_queries()[1]
    assert "ann : one two three" in text(tokenizer, short)
    assert "cat : seven eight" not in text(tokenizer, short)


def test_a_classs_name_is_said_in_a_dialogue_of_its_own(tokenizer):
    samples = prompts(tokenizer, label_dialogues(("glad", "angry"))).own_queries()
    assert [sample.label for sample in samples] == [0, 1]
    assert text(tokenizer, samples[1]) == "[CLS] for utterance : i feel angry. [SEP] somebody feels [MASK] [SEP]"
