"""The practice corpus is what it says it is."""

import itertools
from collections import Counter, defaultdict

import pytest

from erc.practice import LABELS, LINES, SHARES, practice_corpus


@pytest.fixture(scope="module")
def corpus():
    return practice_corpus()


def test_a_seed_decides_everything_but_the_name(corpus):
    assert corpus.name == practice_corpus(seed=1).name == "practice corpus"
    assert practice_corpus() == corpus
    assert practice_corpus(seed=1) != corpus


def test_a_few_thousand_short_dialogues(corpus):
    assert 2000 <= sum(len(split) for split in (corpus.train, corpus.dev, corpus.test)) <= 5000
    assert all(3 <= len(dialogue.turns) <= 5 for dialogue in corpus.train)
    assert min(len({turn.speaker for turn in dialogue.turns}) for dialogue in corpus.train) >= 2


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_emotions_are_as_unbalanced_as_melds(corpus, split):
    counts = Counter(turn.label for dialogue in getattr(corpus, split) for turn in dialogue.turns)
    total = sum(counts.values())
    for label, share in enumerate(SHARES):
        error = (share * (1 - share) / total) ** 0.5
        assert abs(counts[label] / total - share) < 4 * error, LABELS[label]


def test_no_two_splits_share_a_sentence():
    seen: dict[str, str] = {}
    for split in LINES["ambiguous"]:
        groups = [*LINES["events"][split].values(), *LINES["overt"][split].values(), LINES["ambiguous"][split]]
        for sentence in itertools.chain(*groups):
            assert seen.setdefault(sentence, split) == split, sentence


def test_the_same_words_carry_different_emotions_by_speaker_and_context(corpus):
    by_words, by_words_and_speaker = defaultdict(Counter), defaultdict(Counter)
    for dialogue in corpus.train:
        for turn in dialogue.turns:
            by_words[turn.text][turn.label] += 1
            by_words_and_speaker[turn.text, turn.speaker][turn.label] += 1
    for sentence in LINES["ambiguous"]["train"]:
        assert len(by_words[sentence]) >= 6
    emotions = [len(found) for (text, _), found in by_words_and_speaker.items() if text in LINES["ambiguous"]["train"]]
    assert sum(number >= 2 for number in emotions) > 0.8 * len(emotions)


def test_every_place_holder_is_filled(corpus):
    texts = [turn.text for split in (corpus.train, corpus.dev, corpus.test) for d in split for turn in d.turns]
    assert not any("{" in text for text in texts)
