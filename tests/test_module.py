"""The loss module: which prototypes a call sees, what it leaves behind, and what survives saving and converting."""

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from spcl_loss import PrototypeMemory, SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss
from support import oracle

C, D = 4, 6


def module(**options):
    return SupervisedPrototypicalContrastiveLoss(C, D, **({"queue_size": 8, "support_size": 3} | options))


def batch(seed, N=10):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (N,), generator=generator)
    return torch.randn(N, D, generator=generator) + 2 * torch.eye(C, D)[labels], labels


def trained(**options):
    criterion = module(**options)
    for seed in range(5):
        criterion(*batch(seed))
    return criterion


def assert_same_state(a, b):
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def through_state_dict(criterion):
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    restored = module(seed=99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    return restored


class TestForward:
    def test_training_draws_then_compares_then_enqueues(self):
        criterion, memory = module(seed=3), PrototypeMemory(C, D, queue_size=8, support_size=3, seed=3)
        for seed in range(6):
            embeddings, labels = batch(seed)
            prototypes, exist = memory.prototypes()
            expected = oracle.value_and_gradients(
                oracle.loss, embeddings, labels, prototypes, prototype_mask=exist, temperature=0.05
            )
            memory.update(embeddings, labels)
            ours = oracle.value_and_gradients(criterion, embeddings, labels)
            torch.testing.assert_close(ours, expected[:2], rtol=1e-4, atol=1e-5, check_dtype=False)
            assert_same_state(criterion.memory, memory)

    @pytest.mark.parametrize("update_memory", [None, False])
    def test_evaluation_compares_with_the_centroids_and_changes_nothing(self, update_memory):
        criterion = trained().eval()
        before = copy.deepcopy(criterion)
        embeddings, labels = batch(9)
        centroids, exist = criterion.memory.centroids()
        value = criterion(embeddings, labels, update_memory=update_memory)
        expected = supervised_prototypical_contrastive_loss(embeddings, labels, centroids, prototype_mask=exist)
        assert torch.equal(value, expected)
        assert torch.equal(value, criterion(embeddings, labels))
        assert_same_state(criterion, before)

    def test_update_memory_overrides_the_mode(self):
        criterion, (embeddings, labels) = trained(), batch(9)
        before = copy.deepcopy(criterion)
        first = criterion(embeddings, labels, update_memory=False)
        assert torch.equal(criterion(embeddings, labels, update_memory=False), first)
        assert_same_state(criterion, before)
        criterion.eval()(embeddings, labels, update_memory=True)
        before.memory.update(embeddings, labels)
        assert torch.equal(criterion.memory.queue, before.memory.queue)

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 0.3},
            {"similarity": "cosine"},
            {"positives": "outside"},
            {"contrast": "negatives"},
            {"contrast": "class_balanced"},
            {"easy_threshold": 1.5},
            {"prototype_anchors": True},
            {"class_weights": torch.tensor([1.0, 2.0, 3.0, 4.0])},
            {"reduction": "sum"},
            {"reduction": "none"},
            {"ignore_index": 1},
        ],
        ids=str,
    )
    def test_options_reach_the_function(self, options):
        criterion, (embeddings, labels) = trained(**options), batch(9)
        prototypes, exist = copy.deepcopy(criterion).memory.prototypes()
        weight = torch.linspace(0.5, 2, len(labels))
        expected, default = (
            supervised_prototypical_contrastive_loss(
                embeddings, labels, prototypes, prototype_mask=exist, sample_weight=weight, **settings
            )
            for settings in (options, {})
        )
        value = criterion(embeddings, labels, sample_weight=weight)
        assert torch.equal(value, expected)
        assert not torch.equal(value, default)

    @pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("impl", ["dense", "strips"])
    def test_a_poisoned_step_has_a_nan_loss_and_never_happened(self, poison, impl):
        criterion, (embeddings, labels) = trained(impl=impl), batch(9)
        before = copy.deepcopy(criterion)
        embeddings[4, 2] = poison
        value, gradient = oracle.value_and_gradients(criterion, embeddings, labels)
        assert value.isnan()
        assert gradient.isnan().any()  # what gradient scalers look at
        assert_same_state(criterion, before)
        assert criterion(*batch(10)).isfinite()

    def test_what_an_ignored_row_holds_poisons_nothing(self):
        criterion, (embeddings, labels) = trained(), batch(9)
        before = copy.deepcopy(criterion)
        embeddings[0], labels[0] = torch.nan, -100
        assert criterion(embeddings, labels).isfinite()
        before(embeddings[1:], labels[1:])
        assert_same_state(criterion, before)

    def test_an_empty_batch_is_a_zero_and_enters_nothing(self):
        criterion = trained()
        before = criterion.memory.queue.clone()
        embeddings = torch.empty(0, D, requires_grad=True)
        criterion(embeddings, torch.empty(0, dtype=torch.long)).backward()
        assert torch.equal(criterion.memory.queue, before)

    def test_descending_separates_the_classes(self):
        embeddings, labels = torch.randn(32, D, requires_grad=True), torch.arange(32) % C
        criterion = module(temperature=0.3)
        optimizer = torch.optim.Adam([embeddings], lr=0.1)
        for _ in range(25):
            optimizer.zero_grad()
            criterion(embeddings, labels).backward()
            optimizer.step()
        assert torch.equal(criterion.predict(embeddings), labels)


class TestPrediction:
    def test_golden_nearest_prototype(self):
        golden = np.load(Path(__file__).parent / "golden" / "curriculum.npz")
        embeddings, centers = torch.from_numpy(golden["embeddings"]), torch.from_numpy(golden["centers"])
        criterion = SupervisedPrototypicalContrastiveLoss(*centers.shape)
        criterion.memory.initialize(centers, torch.arange(len(centers)))
        assert torch.equal(criterion.predict(embeddings), torch.from_numpy(golden["nearest_prototype"]))

    @pytest.mark.parametrize(("similarity", "temperature"), [("cosine", 0.1), ("shifted_cosine", 0.05)])
    def test_logits_are_scores_against_the_centroids(self, similarity, temperature):
        criterion = module(similarity=similarity, temperature=temperature)
        embeddings, labels = batch(0)
        labels[labels == 2] = -100
        criterion(embeddings, labels)
        logits = criterion.logits(embeddings)
        centroids, exist = criterion.memory.centroids()
        assert exist.tolist() == [True, True, False, True]
        assert (logits[:, 2] == -torch.inf).all()
        cosine = torch.nn.functional.cosine_similarity(embeddings[:, None], centroids, dim=2)
        scores = cosine / 0.1 if similarity == "cosine" else (1 + cosine) / 2 / 0.05
        torch.testing.assert_close(logits[:, exist], scores[:, exist], rtol=1e-5, atol=1e-5)
        assert torch.equal(criterion.predict(embeddings), logits.argmax(1))

    def test_changes_nothing_in_either_mode(self):
        criterion = trained()
        before = copy.deepcopy(criterion)
        criterion.predict(batch(9)[0])
        criterion.eval().logits(batch(9)[0])
        assert_same_state(criterion, before)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_half_embeddings_are_compared_in_float32(self, half):
        criterion, embeddings = trained(), batch(9)[0].to(half)
        assert torch.equal(criterion.logits(embeddings), criterion.logits(embeddings.float()))

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_autocast_around_backward_changes_no_gradient_of_the_logits(self, half):
        criterion, embeddings = trained(), batch(9)[0]

        def gradient(enabled):
            leaf = embeddings.clone().requires_grad_()
            logits = criterion.logits(leaf)
            with torch.autocast("cpu", dtype=half, enabled=enabled):
                logits[:, :2].square().sum().backward()
            return leaf.grad

        assert torch.equal(gradient(enabled=True), gradient(enabled=False))


class TestState:
    @pytest.mark.parametrize(
        "copied", [through_state_dict, copy.deepcopy, lambda criterion: pickle.loads(pickle.dumps(criterion))]
    )
    def test_a_copy_continues_bit_identically(self, copied):
        criterion = trained(seed=5)
        other = copied(criterion)
        for seed in range(20, 25):
            ours, theirs = (oracle.value_and_gradients(each, *batch(seed)) for each in (criterion, other))
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert_same_state(criterion, other)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_converted_modules_go_on(self, dtype):
        criterion = trained().to(dtype)
        counts = criterion.memory.counts.clone()
        embeddings, labels = batch(9)
        value = criterion(embeddings.to(dtype), labels)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.isfinite()
        assert torch.equal(criterion.memory.counts, (counts + labels.bincount(minlength=C)).clamp(max=8))

    def test_a_memory_can_be_handed_in(self):
        memory = trained().memory
        assert module(memory=memory).memory is memory

    def test_the_loss_has_no_parameters(self):
        assert not list(module().parameters())


BAD_CONSTRUCTION = {
    "memory of another width": (ValueError, "6", "5", {"memory": PrototypeMemory(C, 5)}),
    "memory of other classes": (ValueError, "4", "9", {"memory": PrototypeMemory(9, D)}),
    "memory of another type": (TypeError, "PrototypeMemory", "int", {"memory": 3}),
    "temperature": (ValueError, "above 0", "-1", {"temperature": -1.0}),
    "similarity": (ValueError, "cosine", "dot", {"similarity": "dot"}),
    "class weights": (ValueError, "(4,)", "(2,)", {"class_weights": torch.ones(2)}),
    "support size": (ValueError, "queue_size", "9", {"support_size": 9}),
}


@pytest.mark.parametrize("case", BAD_CONSTRUCTION)
def test_bad_settings_are_named_at_construction(case):
    error, expected, received, options = BAD_CONSTRUCTION[case]
    with pytest.raises(error) as caught:
        module(**options)
    assert expected in str(caught.value)
    assert received in str(caught.value)


@pytest.mark.parametrize(
    ("embeddings", "labels"),
    [(torch.ones(3, 5), [0, 1, 2]), (torch.ones(3, D), [0, 1, 9]), (torch.ones(3, D), [0, 1])],
    ids=["width", "label", "length"],
)
def test_a_rejected_batch_changes_no_state(embeddings, labels):
    criterion = trained()
    before = copy.deepcopy(criterion)
    with pytest.raises(ValueError, match="must"):
        criterion(embeddings, torch.tensor(labels))
    assert_same_state(criterion, before)


def test_the_options_serve_the_function_and_can_be_scheduled():
    criterion, (embeddings, labels) = trained(temperature=0.3, positives="outside"), batch(9)
    criterion.temperature = 0.1
    prototypes, exist = criterion.memory.prototypes(advance=False)
    expected = supervised_prototypical_contrastive_loss(
        embeddings, labels, prototypes, prototype_mask=exist, temperature=0.1, positives="outside"
    )
    with_options = supervised_prototypical_contrastive_loss(
        embeddings, labels, prototypes, prototype_mask=exist, **criterion._options()._asdict()
    )
    assert torch.equal(with_options, expected)
    assert torch.equal(criterion(embeddings, labels), expected)
