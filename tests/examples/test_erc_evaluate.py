"""Encoding, heads, scores."""

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import erc_tiny
from erc.evaluate import Encoded, Heads, encode, f1_of_counts, paired_bootstrap, reference_samples, score
from erc.files import InputError
from erc.inputs import Prompts, collate
from erc.model import EmotionModel, load_encoder

LABELS = ("a", "b", "c")


def test_scores_by_hand():
    # a: 3 of 4 found, 3 of 5 guesses right -> F1 2*3/(4+5); b: 1 of 2, 1 of 1 -> 2/3; c: never right -> 0
    gold = np.array([0, 0, 0, 0, 1, 1, 2])
    guess = np.array([0, 0, 0, 2, 0, 1, 0])
    result = score(gold, guess, LABELS)
    f1 = {"a": 6 / 9, "b": 2 / 3, "c": 0.0}
    assert result["per_class_f1"] == pytest.approx(f1)
    assert result["weighted_f1"] == pytest.approx((4 * f1["a"] + 2 * f1["b"]) / 7)
    assert result["macro_f1"] == pytest.approx((f1["a"] + f1["b"]) / 3)
    assert result["accuracy"] == pytest.approx(4 / 7)


def test_a_class_that_does_not_occur_counts_in_macro_f1_only():
    result = score(np.array([0, 0, 1]), np.array([0, 0, 1]), LABELS)
    assert result["per_class_f1"] == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert (result["weighted_f1"], result["macro_f1"]) == (1.0, pytest.approx(2 / 3))


def test_a_pass_in_batches_by_length_gives_each_sample_its_own_row(encoder):
    settings = erc_tiny.settings(encoder)
    tokenizer, backbone = load_encoder(settings)
    model = EmotionModel(backbone, 3, settings)
    samples = Prompts(erc_tiny.corpus().train, tokenizer, context_turns=2, max_length=48).samples
    model.train()
    encoded = encode(model, samples, Accelerator(), batch_size=5, what="test")
    assert model.training
    assert encoded.labels.tolist() == [sample.label for sample in samples]
    model.eval()
    with torch.no_grad():
        for i in range(0, len(samples), 7):
            features = model(collate([samples[i]]))[0]
            torch.testing.assert_close(torch.from_numpy(encoded.features[i]).float(), features[0])
        next(model.backbone.encoder.layer[-1].parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="training diverged: representations are not finite"):
        encode(model, samples[:3], Accelerator(), batch_size=5, what="test")


def test_reference_samples_are_drawn_once_for_a_seed_and_at_most_so_many_of_a_class():
    labels = [0] * 50 + [1] * 3 + [2] * 7
    chosen = reference_samples(labels, 5, seed=0)
    assert [sum(labels[i] == label for i in chosen) for label in range(3)] == [5, 3, 5]
    assert chosen == sorted(set(chosen)) == reference_samples(labels, 5, seed=0) != reference_samples(labels, 5, seed=1)
    assert reference_samples(labels, None, seed=0) == list(range(60))


@pytest.fixture
def clusters():
    """Three classes in eight dimensions, a common one and two rare ones, that lie on both sides of a common offset."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(3, 8)) + 2
    counts = np.array([800, 100, 100])

    def draw(sizes):
        labels = np.repeat(np.arange(3), sizes)
        return Encoded(centers[labels] + generator.normal(size=(len(labels), 8)), labels)

    return draw([100, 100, 100]), draw(counts), counts


def heads(counts, temperature=0.05, weight=None, bias=None):
    linear = torch.nn.Linear(8 if weight is None else weight.shape[1], len(counts)).double()
    if weight is not None:
        linear.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return Heads(linear, np.array(counts), temperature)


def test_heads_by_hand():
    train = Encoded(np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 5.0], [-3.0, -3.0]]), np.array([0, 0, 1, 2]))
    split = Encoded(np.array([[9.0, 1.0], [-1.0, -2.0], [1.0, 1.2]]), np.zeros(3))
    weight, bias, counts = np.array([[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]), np.array([0.0, 0.0, 1.5]), [8, 1, 1]
    every = heads(counts, 0.2, weight, bias)
    scores = every.scores("prototype", train, split.features)
    cosine = split.features[0] @ [1, 0] / np.linalg.norm(split.features[0])
    assert scores[0, 0] == pytest.approx((1 + cosine) / 2 / 0.2)
    assert scores.argmax(1).tolist() == [0, 2, 1]
    prior = every.scores("prototype_prior", train, split.features)
    assert prior - scores == pytest.approx(np.tile(np.log([0.8, 0.1, 0.1]), (3, 1)))
    assert prior.argmax(1).tolist() == [0, 2, 0]  # the common class wins where the two are nearly as close
    linear = every.scores("linear", train, split.features)
    assert linear == pytest.approx(np.array([[1.0, -9.0, 1.5], [-2.0, 1.0, 1.5], [1.2, -1.0, 1.5]]))
    adjusted = every.scores("linear_adjusted", train, split.features)
    assert adjusted - linear == pytest.approx(-np.tile(np.log([0.8, 0.1, 0.1]), (3, 1)))


def test_fitted_heads_know_the_true_class_sizes(clusters):
    train, split, counts = clusters  # the train features hold as many of each class, the split does not
    guesses = heads(counts).predict(train, split.features)
    f1 = {name: score(split.labels, guess, LABELS)["weighted_f1"] for name, guess in guesses.items()}
    assert min(f1["logistic"], f1["lda"]) > f1["prototype"] + 0.02
    for name in ("logistic", "lda"):
        assert abs((guesses[name] == 0).mean() - 0.8) < 0.12, name


def test_a_class_without_train_features_is_never_predicted():
    generator = np.random.default_rng(0)
    train = Encoded(generator.normal(size=(20, 8)), np.arange(20) % 2 * 2)  # classes 0 and 2 of three
    features = generator.normal(size=(30, 8))
    for name, guess in heads([10, 0, 10]).predict(train, features).items():
        if not name.startswith("linear"):
            assert set(guess.tolist()) == {0, 2}, name
    alone = Encoded(train.features, np.full(20, 2))
    for name, guess in heads([0, 0, 20]).predict(alone, features).items():
        if not name.startswith("linear"):
            assert set(guess.tolist()) == {2}, name


def test_f1_from_counts_is_scikit_learns():
    generator = np.random.default_rng(0)
    gold, guess = generator.integers(4, size=(2, 300))
    gold[gold == 3] = 0  # a class that is predicted only
    counts = np.zeros((4, 4))
    np.add.at(counts, (gold, guess), 1)
    scores = score(gold, guess, "abcd")
    expected = {"weighted": scores["weighted_f1"], "macro": scores["macro_f1"]}
    assert f1_of_counts(counts) == pytest.approx(expected)


def test_the_bootstrap_of_what_cannot_vary_has_no_width():
    gold = np.array([0, 1] * 20)
    dialogues = [str(i // 2) for i in range(40)]
    right, wrong = np.tile(gold, (3, 1)), np.tile(1 - gold, (3, 1))
    for other, difference in ((wrong, 1.0), (right, 0.0)):
        expected = dict.fromkeys(("difference", "low", "high"), difference)
        found = paired_bootstrap(gold, right, other, dialogues, 2)
        assert found == {"weighted": expected, "macro": expected}


def test_the_bootstrap_resamples_whole_dialogues_and_pairs_of_seeds():
    # Arms agree but for one dialogue in four, where one arm is right and the other wrong in every turn, in all seeds:
    # with balanced classes the difference is the share of such dialogues, whose draws are binomial.
    gold = np.tile([0, 1], 200)
    dialogues = [str(i // 4) for i in range(400)]
    one = np.tile(gold, (2, 1))
    other = np.where((np.arange(400) // 4) % 4 == 0, 1 - gold, gold)[None].repeat(2, 0)
    found = paired_bootstrap(gold, one, other, dialogues, 2)["weighted"]
    assert found["difference"] == pytest.approx(0.25)
    width = 2 * 1.96 * (0.25 * 0.75 / 100) ** 0.5  # 100 dialogues, not 400 turns
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.1)
    # Two seeds of which one differs everywhere: the seeds alone make the interval reach from none to all.
    other = np.stack([gold, 1 - gold])
    found = paired_bootstrap(gold, one, other, dialogues, 2)["weighted"]
    assert found == {"difference": 0.5, "low": 0.0, "high": 1.0}


def test_the_bootstrap_draws_one_seed_fewer_than_there_are():
    gold = np.tile([0, 1], 100)
    one = np.tile(gold, (5, 1))
    other = np.stack([np.where(np.arange(200) < 20 * seed, 1 - gold, gold) for seed in (0, 1, 3, 4, 9)])
    found = paired_bootstrap(gold, one, other, ["all"] * 200, 2)["weighted"]
    means = [np.mean(seeds) for seeds in itertools.product((0.0, 0.1, 0.3, 0.4, 0.9), repeat=4)]
    expected = np.quantile(means, (0.025, 0.975))
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=0.011)
    assert np.var(means) == pytest.approx(np.var((0.0, 0.1, 0.3, 0.4, 0.9), ddof=1) / 5)
