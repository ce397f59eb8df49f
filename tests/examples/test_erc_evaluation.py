"""Encoding and scoring."""

import pytest
import torch
from accelerate import Accelerator

import erc_tiny
from erc.encoder import EmotionModel, load_tokenizer_and_backbone
from erc.evaluation import Encoded, encode, predictions, score
from erc.inputs import collate
from erc.prompts import Prompts
from spcl_loss import SupervisedPrototypicalContrastiveLoss

LABELS = ("a", "b", "c")


def test_scores_by_hand():
    # a: 3 of 4 found, 3 of 5 guesses right -> F1 2*3/(4+5); b: 1 of 2, 1 of 1 -> 2/3; c: never right -> 0
    gold = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    guess = torch.tensor([0, 0, 0, 2, 0, 1, 0])
    result = score(gold, guess, LABELS)
    f1 = {"a": 6 / 9, "b": 2 / 3, "c": 0.0}
    assert result["per_class_f1"] == pytest.approx(f1)
    assert result["weighted_f1"] == pytest.approx((4 * f1["a"] + 2 * f1["b"]) / 7)
    assert result["macro_f1"] == pytest.approx((f1["a"] + f1["b"]) / 3)
    assert result["accuracy"] == pytest.approx(4 / 7)


def test_a_class_that_does_not_occur_counts_in_macro_f1_only():
    result = score(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), LABELS)
    assert result["per_class_f1"] == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert (result["weighted_f1"], result["macro_f1"]) == (1.0, pytest.approx(2 / 3))


def test_predicting_the_majority_class_of_melds_test_gives_the_known_yardstick():
    gold = torch.repeat_interleave(torch.arange(7), torch.tensor([1256, 402, 281, 345, 208, 68, 50]))
    result = score(gold, torch.zeros_like(gold), tuple("abcdefg"))
    assert result["weighted_f1"] == pytest.approx(0.31, abs=0.005)


def test_a_pass_in_batches_by_length_gives_each_sample_its_own_row(tmp_path):
    settings = erc_tiny.settings(erc_tiny.encoder(tmp_path))
    tokenizer, backbone = load_tokenizer_and_backbone(settings)
    model = EmotionModel(backbone, 3, head_trains_encoder=False)
    samples = Prompts(
        erc_tiny.corpus().train, tokenizer, context_turns=2, repeat_turn=False, max_length=48
    ).own_queries()
    model.train()
    encoded = encode(model, samples, Accelerator(), padding=0, batch_size=5, what="test")
    assert model.training
    assert encoded.labels.tolist() == [sample.label for sample in samples]
    model.eval()
    with torch.no_grad():
        for i, sample in enumerate(samples):
            features, scores = model(collate([sample], padding=0))
            torch.testing.assert_close(encoded.features[i], features[0])
            torch.testing.assert_close(encoded.scores[i], scores[0])


def test_heads_predict_by_nearest_class_mean_and_by_highest_score():
    criterion = SupervisedPrototypicalContrastiveLoss(3, 2)
    criterion.memory.initialize(torch.tensor([[1.0, 0.0], [0.0, 5.0], [-3.0, -3.0]]), torch.arange(3))
    encoded = Encoded(
        torch.tensor([[9.0, 1.0], [-1.0, -2.0]]), torch.tensor([[0.0, 1.0, 0.5], [2.0, 1.0, 0.0]]), LABELS
    )
    heads = predictions(criterion, encoded)
    assert heads["prototype"].tolist() == [0, 2]
    assert heads["linear"].tolist() == [1, 0]
