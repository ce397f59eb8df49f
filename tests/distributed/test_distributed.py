"""Several processes against one: the loss, the gradients after DDP's averaging, and the memories."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rank_questions
import rank_training as training
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity import Comparison, strips
from spcl_loss._similarity.comparison import Upstream
from support import ranks

WORLD_SIZES = [1, 2, 3, 4]


@pytest.fixture(params=WORLD_SIZES)
def world_size(request):
    return request.param


@pytest.fixture(scope="module")
def answers():
    """answers(world_size) is what every rank says. Each world size goes on from the one before."""
    pool = ranks.Pool(max(WORLD_SIZES))

    @functools.cache
    def ask(world_size):
        saved = ask(world_size - 1)[0]["another_world_size"]["saved"] if world_size > 1 else {}
        return pool.ask(rank_questions.answer_all, world_size, saved)

    yield ask
    pool.end()


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setenv("SPCL_TILE_BYTES", "512")


def assert_same_training(ours, expected):
    """To 1e-6 of the largest gradient: what rounding in float32 leaves."""
    torch.testing.assert_close(ours["losses"], expected["losses"], rtol=2e-6, atol=2e-6)
    for step, step_expected in zip(ours["gradients"], expected["gradients"], strict=True):
        largest = max(float(gradient.abs().max()) for gradient in step_expected)
        for a, b in zip(step, step_expected, strict=True):
            assert (a - b).abs().max() <= 1e-6 * max(largest, 1)
    torch.testing.assert_close(ours["memory"], expected["memory"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", training.CASES)
def test_ranks_together_do_what_one_process_does(answers, world_size, case):
    expected = training.in_one_process(world_size, case)
    for answer in answers(world_size):
        assert_same_training(answer["every_method"][case], expected)


@pytest.mark.parametrize("case", training.CASES)
def test_losses_and_memories_are_the_same_on_every_rank_to_the_bit(answers, world_size, case):
    first, *others = (answer["every_method"][case] for answer in answers(world_size))
    for other in others:
        assert torch.equal(other["losses"], first["losses"])
        torch.testing.assert_close(other["memory"], first["memory"], rtol=0, atol=0)
        assert torch.equal(other["fingerprint"], first["fingerprint"])


@pytest.mark.parametrize(
    ("question", "case", "settings"),
    [
        ("accumulation", "EACL-weighted-strips", {"accumulate": 3}),  # steps that send no gradient
        ("fully_sharded", "BCL-weighted-strips", {}),
        ("accelerated", "SPCL-weighted-strips", {}),
    ],
)
def test_whatever_averages_the_gradients(answers, world_size, question, case, settings):
    expected = training.in_one_process(world_size, case, **settings)
    for answer in answers(world_size):
        assert_same_training(answer[question], expected)


def test_the_form_that_is_chosen_for_many_rows(answers, world_size):
    sizes = rank_questions.many(world_size)
    expected = training.in_one_process(world_size, "EACL-weighted-auto", sizes=sizes)
    for answer in answers(world_size):
        assert_same_training(answer["many_rows"], expected)


@pytest.mark.parametrize("case", ["SPCL-weighted-dense", "SPDCL-plain-strips", "EACL-plain-strips"])
def test_equal_batches_compile_into_one_graph(answers, case):
    for answer in answers(2):
        eager, compiled = answer["compiled"][case]
        assert_same_training(compiled, eager)


def test_a_compiled_loss_refuses_unequal_batches(answers):
    for answer in answers(2):
        assert "equally many rows" in answer["compiled"]["uneven"]


def test_each_process_group_has_a_loss_of_its_own(answers):
    [(batch, counts)] = list(training.batches(4))[:1]
    halves = [training.part(batch, [sum(counts[:2]), sum(counts[2:])], half) for half in (0, 1)]
    expected = [training.train(training.Learner("SPCL"), training.Objective("SPCL-plain-strips"), [h]) for h in halves]
    average = [torch.stack(both).mean(0) for both in zip(*(e["gradients"][0] for e in expected), strict=True)]
    for rank, answer in enumerate(answers(4)):
        assert_same_training(answer["groups"], expected[rank // 2] | {"gradients": [average]})


def test_without_gathering_the_loss_is_that_of_the_own_rows(answers, world_size):
    for rank, answer in enumerate(answers(world_size)):
        steps = rank_questions.own_steps(rank, world_size)[:1]
        expected = training.train(training.Learner("SupCon"), training.Objective("SupCon-plain-strips"), steps)
        assert_same_training(answer["local"], expected)


def test_half_precision_is_sent_as_it_is_and_computed_in_float32(answers, world_size):
    for rank, answer in enumerate(answers(world_size)):
        got = answer["half_precision"]
        embeddings = got["embeddings"].requires_grad_()
        loss = spcl(embeddings, got["labels"], impl="strips")
        loss.backward()
        torch.testing.assert_close(got["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
        own = embeddings.grad[5 * rank : 5 * rank + 5]
        torch.testing.assert_close(got["gradient"] / world_size, own, rtol=0.01, atol=1e-3)  # each rounded to bfloat16


@pytest.mark.parametrize("case", rank_questions.ENTRIES)
def test_entries_of_the_memory_as_candidates_count_once_not_once_a_rank(answers, world_size, case):
    expected = training.in_one_process(world_size, case, entries=4)
    for answer in answers(world_size):
        assert_same_training(answer["entries_as_candidates"][case], expected)


@pytest.mark.parametrize("impl", ["dense", "strips"])
def test_autocast_around_backward_changes_no_gradient(answers, impl):
    for answer in answers(2):
        for plain, under_autocast in zip(*answer["autocast_around_backward"][impl], strict=True):
            assert torch.equal(plain, under_autocast)


def test_a_nan_on_one_rank_is_a_step_that_never_happened_on_all(answers, world_size):
    for answer in answers(world_size):
        poisoned = answer["poisoned"]
        assert poisoned["loss"].isnan()
        assert poisoned["gradient"].isnan().any()
        assert torch.equal(*poisoned["fingerprints"])
        assert torch.equal(poisoned["fingerprints"], answers(world_size)[0]["poisoned"]["fingerprints"])


DISAGREEMENTS = {
    "width": ("width of embeddings", "8 on rank 0", "7 on rank 2"),
    "dtype": ("dtype of embeddings", "torch.float32 on rank 0", "torch.float64 on rank 2"),
    "temperature": ("temperature", "0.05 on rank 0", "0.1 on rank 2"),
    "sample_weight": ("dtype of sample_weight", "None on rank 0", "torch.float32 on rank 2"),
    "class_weights": ("class_weights", "[1.0, 3.0] on rank 0", "[1.0, 2.0] on rank 2"),
    "no class_weights": ("dtype of class_weights", "torch.float32 on rank 0", "None on rank 2"),
    "learned": ("requires_grad of prototypes", "False on rank 0", "True on rank 2"),
    "prototypes": ("shape of prototypes", "(2, 8) on rank 0", "(3, 8) on rank 2"),
    "seed": ("seed", "0 on rank 0", "1 on rank 2"),
    "draws": ("draw counter", "0 on rank 0", "1 on rank 2"),
    "function": ("training", "True on rank 0", "None on rank 2"),
    "training": ("training", "True on rank 0", "False on rank 2"),
    "support_size": ("support_size", "3 on rank 0", "4 on rank 2"),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_all_say_so(answers, what):
    for answer in answers(3):
        message = answer["disagreements"][what]
        assert message.startswith("ValueError: ranks must agree on the ")
        assert all(part in message for part in DISAGREEMENTS[what])


def test_a_batch_that_one_rank_refuses_is_an_error_on_all(answers):
    *others, odd = (answer["disagreements"] for answer in answers(3))
    assert odd["refused"].startswith("ValueError: labels must be classes")
    for other in others:
        assert "rank 2 refused its own: labels must be classes" in other["refused"]
        assert "rank 2 refused its own: temperature must be" in other["refused option"]
        assert "rank 2 refused its own: support_size must be" in other["refused support_size"]
    assert not any(answer["none"] or answer["no matter"] for answer in [*others, odd])


def test_a_run_goes_on_with_another_number_of_ranks(answers, world_size):
    """Each world size loads what the one before saved: together they are one run of a single process."""
    learner, objective = training.Learner("SPCL"), training.Objective("SPCL-weighted-strips")
    for size in range(1, world_size + 1):
        expected = training.train(learner, objective, [batch for batch, _ in training.batches(size)])
    for answer in answers(world_size):
        assert_same_training(answer["another_world_size"], expected)
        first = answers(world_size)[0]["another_world_size"]
        assert torch.equal(answer["another_world_size"]["fingerprint"], first["fingerprint"])


def test_two_passes_give_the_gradients_of_one(answers, world_size):
    encoder, loss_fn = training.Learner("SPCL").encoder, training.Objective("SPCL-plain-strips").loss
    for step, ((inputs, labels, _), _) in enumerate(training.batches(world_size)):
        encoder.zero_grad()
        loss_fn(encoder(inputs), labels).backward()
        expected = [parameter.grad for parameter in encoder.parameters()]
        for answer in answers(world_size):
            for a, b in zip(answer["two_passes"][step], expected, strict=True):
                assert (a - b).abs().max() <= 1e-6 * max(1, max(float(g.abs().max()) for g in expected))


class TestScaling:
    """The formulas of docs/scaling.md."""

    formulas = rank_questions.functions_of_page("scaling.md")

    @pytest.mark.parametrize("case", training.CASES)
    def test_bytes(self, answers, world_size, case):
        method, weighted, impl = case.split("-")
        statistics = 0 if impl == "dense" else 3 if training.OPTIONS[method].get("positives") == "outside" else 2
        expected = self.formulas["bytes_received"](
            6 * world_size, world_size, training.WIDTH, 4, statistics, weighted == "weighted"
        )
        if method == "EACL" and impl == "strips":
            # the statistics of prototypes that are anchors, padded to equal parts
            expected += (world_size - 1) * 4 * statistics * -(-training.NUM_CLASSES // world_size)
        assert {answer["bytes_received"][case] for answer in answers(world_size)} == {expected}

    @pytest.mark.parametrize("world_size", [1, 2, 4, 8])
    def test_operations(self, world_size, monkeypatch):
        # Tiles on the diagonal are computed whole: small ones add little.
        monkeypatch.setenv("SPCL_TILE_BYTES", "4096")
        N, D, labels = 800, 128, torch.arange(800) % 5
        rows, n = torch.nn.functional.normalize(torch.randn(N, D)), N // world_size

        def of_addmm(target, left, right, **_):  # the counter knows shapes only, and no products in place
            return 2 * left[0] * left[1] * right[1]

        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: of_addmm}) as counter:
            comparison = Comparison(labels, None, 5.0, n, n, False, torch.float32)
            strips.statistics(rows, comparison)
            strips.gradient(rows, comparison, Upstream(torch.ones(N), torch.ones(N), torch.ones(3, N)))
        assert counter.get_total_flops() == pytest.approx(self.formulas["operations"](N, world_size, D), rel=0.05)
