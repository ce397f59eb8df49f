"""Dialogues become inputs: windows, in which no turn sees a later one; the authors' prompts; batches of both."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import erc_tiny
from erc.batches import Epochs, length_buckets, longest_first
from erc.data import Dialogue, Turn
from erc.files import InputError
from erc.inputs import AFTER_ALL, Input, Prompts, Sample, Windows, collate
from erc.model import EmotionModel, load_encoder
from erc_tiny import TALK

# Windows


def windows(tokenizer, dialogue=TALK, **changes):
    return Windows((dialogue,), tokenizer, **{"context_turns": 8, "max_length": 96, **changes}).samples


def said(tokenizer, sample):
    return tokenizer.decode(sample.input.ids[sample.start : sample.end])


def test_one_input_serves_all_turns(tokenizer):
    samples = windows(tokenizer)
    assert [(s.dialogue, s.turn, s.label) for s in samples] == [("7", "0", 0), ("7", "2", 2), ("7", "3", 1)]
    assert len({id(sample.input) for sample in samples}) == 1
    whole = "Ann: one two three[SEP]Ben: four five[SEP]Ann: six[SEP]Cat: seven eight"
    assert list(samples[0].input.ids) == tokenizer(whole)["input_ids"]
    own = ["ann : one two three [SEP]", "ann : six [SEP]", "cat : seven eight [SEP]"]
    assert [said(tokenizer, s) for s in samples] == own


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


@pytest.mark.parametrize("kind", [Windows, Prompts])
def test_max_length_beyond_the_encoder_is_an_error(tokenizer, kind):
    with pytest.raises(InputError, match="max_length must be at most"):
        kind((TALK,), tokenizer, context_turns=2, max_length=tokenizer.model_max_length + 1)


@pytest.fixture(scope="module", params=["bert-eager", "bert-sdpa", "mpnet-eager"])
def tiny(request, tmp_path_factory):
    architecture, attention = request.param.split("-")
    folder = erc_tiny.encoder(tmp_path_factory.mktemp("encoder"), architecture)
    tokenizer, backbone = load_encoder(erc_tiny.settings(folder))
    backbone.set_attn_implementation(attention)
    return tokenizer, EmotionModel(backbone, 3, erc_tiny.settings(folder)).eval()


@torch.no_grad()
def represent(model, tokenizer, samples):
    return model(collate(samples))[0]


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
    samples = Windows(erc_tiny.corpus().train, tokenizer, context_turns=1, max_length=20).samples
    assert len({id(sample.input) for sample in samples}) > len(erc_tiny.corpus().train)
    together = represent(model, tokenizer, samples)
    for sample, row in zip(samples, together, strict=True):
        torch.testing.assert_close(represent(model, tokenizer, [sample])[0], row, rtol=1e-4, atol=1e-5)
    some = list(range(len(samples)))[::3][::-1]  # tokens after the last one needed are left out
    apart = represent(model, tokenizer, [samples[i] for i in some])
    torch.testing.assert_close(apart, together[some], rtol=1e-4, atol=1e-5)


# Prompts

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/authors_inputs.json").read_text(encoding="utf-8"))
LETTERS = Dialogue("1", tuple(Turn(str(i), *turn) for i, turn in enumerate(GOLDEN["dialogue"])))


class Letters:
    """A tokenizer of one token a character and one for [MASK], so that every input can be read."""

    model_max_length, mask_token, pad_token_id = 4096, "[MASK]", 0
    cls_token_id, sep_token_id, mask_token_id = -1, -2, -3

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) for c in text.replace("[MASK]", "\0")] for text in texts]}

    def read(self, ids):
        return "".join({-1: "[CLS]", -2: "[SEP]", 0: "[MASK]"}.get(token) or chr(token) for token in ids)


@pytest.mark.parametrize(("max_length", "inputs"), [(4096, "inputs"), (160, "inputs_short")])
def test_prompts_are_the_authors_to_the_letter(max_length, inputs):
    letters = Letters()
    samples = Prompts((LETTERS,), letters, context_turns=8, max_length=max_length).samples
    assert [letters.read(sample.input.ids) for sample in samples] == GOLDEN[inputs]
    assert [sample.label for sample in samples] == [label for *_, label in GOLDEN["dialogue"]]
    assert {letters.read(s.input.ids[s.start : s.end]) for s in samples} == {"[MASK]"}


def test_past_turns_are_asked_for_again_where_the_authors_ask():
    prompts = Prompts((LETTERS,) * 20, Letters(), context_turns=8, max_length=4096)
    turns = {f"For utterance:{t.speaker}:{t.text}": int(t.id) for t in LETTERS.turns}
    seen, numbers = set(), set()
    for seed in range(120):
        samples = prompts.past_queries(torch.Generator().manual_seed(seed))
        numbers.add(len(samples))
        for sample in samples:
            *context, query, _, _ = Letters().read(sample.input.ids).split("[SEP]")
            last = turns[f"For utterance:{context[-1]}"]  # the turn that asks ends its context
            seen.add((last, turns[query]))
            assert (sample.turn, sample.label) == (str(turns[query]), LETTERS.turns[turns[query]].label)
    assert seen == set(map(tuple, GOLDEN["asked_again"]))
    assert numbers == {round(0.2 * 7 * 20)}  # a fifth of those that may ask; the authors' draws gave a share of 0.203
    assert abs(GOLDEN["rate"] - 0.2) < 0.01
    once, again = (prompts.past_queries(torch.Generator().manual_seed(3)) for _ in range(2))
    assert once == again


def test_unlabelled_turns_are_context_only(tokenizer):
    talk = Dialogue("7", (*TALK.turns, Turn("4", "Ann", "nine", 0), Turn("5", "Ben", "ten", None)))
    prompts = Prompts((talk,) * 30, tokenizer, context_turns=8, max_length=96)
    own = prompts.samples[:4]
    assert [(s.dialogue, s.turn, s.label) for s in own] == [
        ("7", "0", 0), ("7", "2", 2), ("7", "3", 1), ("7", "4", 0),
    ]  # fmt: skip
    assert tokenizer.decode(own[1].input.ids) == (
        "[CLS] ann : one two three [SEP] ben : four five [SEP] ann : six [SEP] "
        "for utterance : ann : six [SEP] ann feels [MASK] [SEP]"
    )
    past = prompts.past_queries(torch.Generator().manual_seed(0))
    assert len(past) == 6  # turn 4 of each may ask: turn 5 has no label
    assert {sample.turn for sample in past} <= {"0", "2", "3"}


def test_real_tokenizers_place_the_mask_before_the_end(tokenizer):
    tricky = Dialogue("1", (Turn("0", "Ann", "a [MASK] b", 0), Turn("1", "Ben", "word " * 600, 1)))
    for sample in Prompts((tricky,), tokenizer, context_turns=8, max_length=64).samples:
        assert (sample.start, sample.end) == (len(sample.input.ids) - 2, len(sample.input.ids) - 1)
        assert sample.input.ids[sample.start] == tokenizer.mask_token_id
        assert len(sample.input.ids) <= 64


def test_context_turns_bound_what_is_shown(tokenizer):
    sample = Prompts((TALK,), tokenizer, context_turns=1, max_length=96).samples[2]
    assert tokenizer.decode(sample.input.ids).startswith("[CLS] ann : six [SEP] cat : seven eight [SEP] for utterance")
    alone = Prompts((TALK,), tokenizer, context_turns=0, max_length=96).samples[2]
    assert tokenizer.decode(alone.input.ids).startswith("[CLS] cat : seven eight [SEP] for utterance : cat :")


# Batches


def test_a_batch_is_as_wide_as_its_longest_member(tokenizer):
    samples = Prompts((TALK,), tokenizer, context_turns=8, max_length=96).samples
    batch = collate(samples)
    lengths = [len(sample.input.ids) for sample in samples]
    assert batch.input_ids.shape == (3, max(lengths))
    padding = batch.turns == AFTER_ALL
    assert (~padding).sum(1).tolist() == lengths
    assert batch.labels.tolist() == [0, 2, 1]
    assert batch.input_ids.flatten()[batch.tokens].tolist() == [tokenizer.mask_token_id] * 3
    assert batch.offsets.tolist() == [0, 1, 2]
    assert (batch.input_ids[padding] == 0).all()


LENGTHS = random.Random(0).choices(range(5, 91), k=1003)
ALONE = [Sample(Input((0,) * length), 0, 1, 0, "", "") for length in LENGTHS]


def test_buckets_hold_every_sample_once_and_little_padding():
    indices = random.Random(1).sample(range(1003), 900)
    batches = length_buckets(ALONE, indices, 16, seed=3)
    assert sorted(index for batch in batches for index in batch) == sorted(indices)
    assert max(map(len, batches)) == 16

    def padded(groups):
        return sum(len(group) * max(LENGTHS[i] for i in group) for group in groups)

    unsorted = [indices[i : i + 16] for i in range(0, 900, 16)]
    total = sum(LENGTHS[i] for i in indices)
    assert padded(batches) < 1.1 * total < padded(unsorted)


def test_buckets_come_in_an_order_of_the_seed():
    batches = [length_buckets(ALONE, range(1003), 16, seed=seed) for seed in (0, 0, 1)]
    assert batches[0] == batches[1] != batches[2]
    longest = [max(LENGTHS[i] for i in batch) for batch in batches[0]]
    assert longest != sorted(longest)


def test_longest_first():
    batches = longest_first(ALONE, 64)
    flat = [LENGTHS[i] for batch in batches for i in batch]
    assert flat == sorted(LENGTHS, reverse=True)


def epochs(count, **changes):
    inputs = SimpleNamespace(samples=list(range(count)), past_queries=lambda generator: [])
    return Epochs(erc_tiny.settings("any", **changes), inputs, 1, 0)


@pytest.mark.parametrize(("count", "sizes"), [(7, [3, 3]), (2, [2])])  # without the [2] there would be no batch at all
def test_the_authors_batches_are_full_keep_the_order_and_drop_the_rest(count, sizes):
    data = epochs(count, as_authors=True, curriculum="all", batch_size=3)
    batches = data.batches()
    assert [len(batch) for batch in batches] == sizes
    assert [index for batch in batches for index in batch] == data.indices.tolist()[: sum(sizes)]


def test_random_share():
    half, whole = epochs(101, curriculum="half"), epochs(101, curriculum="all")
    first = half.indices.tolist()
    assert len(first) == len(set(first)) == 50
    assert first == half.indices.tolist()
    half.prepare(1)
    second = half.indices
    assert set(first) != set(second.tolist())
    assert sorted(whole.indices.tolist()) == list(range(101))
    other = epochs(101, curriculum="half")
    other.prepare(1)  # as a continued run does
    assert torch.equal(other.indices, second)


def test_samples_that_share_an_input_are_in_one_batch():
    inputs = [Input((0,) * length, (0,) * length) for length in LENGTHS[:200]]
    samples = [Sample(one, turn, turn + 1, 0, "", "") for turn in range(5) for one in inputs]
    indices = random.Random(1).sample(range(1000), 700)
    for batches, asked in (
        (length_buckets(samples, indices, 16, seed=3), indices),
        (longest_first(samples, 16), range(1000)),
    ):
        assert sorted(index for batch in batches for index in batch) == sorted(asked)
        inside = [{id(samples[index].input) for index in batch} for batch in batches]
        assert sum(map(len, inside)) == len(set.union(*inside))
        assert all(16 <= len(batch) < 16 + 5 for batch in sorted(batches, key=len)[2:])  # a pool's last may have fewer
