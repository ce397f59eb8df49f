"""Draws against what random sampling without replacement must look like, rebuilding, bad input.

What any sequence of calls leaves in the queues is compared with a plain model in test_stateful.py.
"""

import copy
import math

import pytest
import torch

from spcl_loss import PrototypeMemory
from support.messages import says
from support.same import assert_same_state


def filled(num_classes=3, queue_size=12, support_size=5, entries=None, **options):
    """A memory whose slot m of every class holds the m-th unit vector, so that a prototype shows its support set."""
    memory = PrototypeMemory(num_classes, queue_size, queue_size=queue_size, support_size=support_size, **options)
    entries = queue_size if entries is None else entries
    classes = torch.arange(num_classes).repeat_interleave(entries)
    memory.update(torch.eye(queue_size)[:entries].repeat(num_classes, 1), classes)
    return memory


def support_sets(memory, draws):
    """(draws, C, M) bool: the slots behind each prototype, over successive draws."""
    sets = torch.stack([memory.prototypes()[0] for _ in range(draws)]) * memory.support_size
    chosen = sets > 0.5
    torch.testing.assert_close(sets, chosen.to(sets.dtype))
    return chosen


def assert_chi_square(statistic, degrees_of_freedom):
    """Within 4 standard deviations of the expectation, by the normal approximation of the cube root."""
    cube_root = (statistic / degrees_of_freedom) ** (1 / 3)
    variance = 2 / (9 * degrees_of_freedom)
    assert abs(cube_root - (1 - variance)) < 4 * math.sqrt(variance)


class TestQueues:
    def test_entries_stay_as_they_were_when_the_queue_moves_on(self):
        memory = filled(queue_size=4, support_size=1)
        entries, _ = memory.entries(4)
        before = entries.clone()
        memory.update(torch.randn(9, 4), torch.arange(9) % 3)
        assert torch.equal(entries, before)

    def test_one_batch_equals_its_rows_one_by_one(self):
        embeddings, labels = torch.randn(20, 3), torch.arange(20) % 2
        at_once = PrototypeMemory(2, 3, queue_size=4, support_size=2)
        at_once.update(embeddings, labels)
        one_by_one = PrototypeMemory(2, 3, queue_size=4, support_size=2)
        for i in range(20):
            one_by_one.update(embeddings[i : i + 1], labels[i : i + 1])
        assert_same_state(at_once, one_by_one)

    def test_entries_carry_no_graph(self):
        memory = filled()
        memory.update(torch.randn(2, 12, requires_grad=True), torch.tensor([0, 1]))
        assert not memory.queue.requires_grad

    def test_rows_of_another_ignore_index_stay_out(self):
        memory = PrototypeMemory(2, 3, queue_size=2, support_size=1, ignore_index=255)
        memory.update(torch.randn(3, 3), torch.tensor([255, 0, 255], dtype=torch.uint8))
        assert memory.counts.tolist() == [1, 0]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_rows_of_another_dtype_are_converted(self, dtype):
        memory = PrototypeMemory(1, 3, queue_size=2, support_size=1)
        memory.update(torch.full((1, 3), 0.5, dtype=dtype), torch.tensor([0]))
        assert memory.queue.dtype == torch.float32
        assert (memory.queue[0, 0] == 0.5).all()

    @pytest.mark.parametrize("method", ["update", "initialize"])
    def test_rows_that_overflow_the_memory_dtype_never_enter(self, method):
        memory = PrototypeMemory(1, 3, queue_size=2, support_size=1, dtype=torch.float16)
        getattr(memory, method)(torch.tensor([[1e6, 0, 0], [1, 2, 3]]), torch.tensor([0, 0]))
        assert memory.counts.tolist() == [1 if method == "update" else 0]
        assert memory.centroids()[0].tolist() == [[1, 2, 3]]

    @pytest.mark.parametrize("fill", ["update", "initialize"])
    def test_conversion_to_float16_saturates(self, fill):
        memory = PrototypeMemory(1, 2, queue_size=2, support_size=1)
        getattr(memory, fill)(torch.tensor([[1e6, -1e6]]), torch.tensor([0]))
        loaded = PrototypeMemory(1, 2, queue_size=2, support_size=1, dtype=torch.float16)
        loaded.load_state_dict(memory.state_dict())
        for converted in (memory.half(), loaded):
            assert converted.prototypes()[0].tolist() == converted.centroids()[0].tolist() == [[65504, -65504]]


class TestDraws:
    @pytest.mark.parametrize("entries", [5, 9, 12])
    def test_support_sets_are_k_distinct_entries(self, entries):
        chosen = support_sets(filled(entries=entries), draws=20)
        assert (chosen.sum(2) == 5).all()
        assert not chosen[..., entries:].any()

    @pytest.mark.parametrize("entries", [9, 12])
    def test_every_entry_and_pair_of_entries_is_equally_likely(self, entries):
        draws, C, K = 1500, 3, 5
        chosen = support_sets(filled(C, entries=entries), draws)[..., :entries].double()
        share = K / entries
        for counts in chosen.sum(0):  # an entry is in or out, and exactly K are in: hence the factor
            deviation = (counts - draws * share).square().sum() / (draws * share * (1 - share))
            assert_chi_square(deviation.item() * (entries - 1) / entries, entries - 1)
        together = chosen.flatten(0, 1).T @ chosen.flatten(0, 1)
        pairs = together[tuple(torch.triu_indices(entries, entries, 1))] / (draws * C)
        probability = share * (K - 1) / (entries - 1)
        assert (pairs - probability).abs().max() < 4.5 * math.sqrt(probability * (1 - probability) / (draws * C))

    def test_draws_and_classes_are_independent(self):
        draws, M, K = 1500, 12, 5
        chosen = support_sets(filled(3), draws).double()
        overlap_variance = K * (K / M) * (1 - K / M) * (M - K) / (M - 1)  # hypergeometric
        for a, b in [(chosen[1:, 0], chosen[:-1, 0]), (chosen[:, 0], chosen[:, 1]), (chosen[:, 1], chosen[:, 2])]:
            overlap = (a * b).sum(1).mean().item()
            assert abs(overlap - K * K / M) < 4 * math.sqrt(overlap_variance / len(a))

    def test_a_draw_is_a_function_of_seed_and_counter_alone(self):
        sets = support_sets(filled(), draws=6)
        torch.manual_seed(1)
        late = PrototypeMemory(3, 12, queue_size=12, support_size=5)
        for _ in range(3):
            late.prototypes()  # draws from nothing count as well
        late.update(torch.eye(12).repeat(3, 1), torch.arange(3).repeat_interleave(12))
        assert torch.equal(support_sets(late, draws=3), sets[3:])

    def test_counters_seeds_and_classes_differ(self):
        sets = support_sets(filled(seed=0), draws=8)
        assert len({tuple(s.flatten().tolist()) for s in sets}) == 8
        assert not torch.equal(sets, support_sets(filled(seed=1), draws=8))
        assert not torch.equal(sets[:, 0], sets[:, 1])

    def test_the_global_generator_is_left_alone(self):
        before = torch.get_rng_state()
        support_sets(filled(), draws=2)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("support_size", [256, 100])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_sums_do_not_overflow_in_half_precision(self, dtype, support_size):
        memory = PrototypeMemory(2, 3, support_size=support_size, dtype=dtype)
        memory.update(torch.full((256, 3), 300.0), torch.zeros(256, dtype=torch.long))
        assert memory.prototypes()[0][0].tolist() == memory.centroids()[0][0].tolist() == [300] * 3
        assert memory.prototypes()[0].dtype == dtype

    def test_a_support_size_that_is_set_later_is_checked(self):
        memory = filled(queue_size=6, support_size=2)
        memory.support_size = 7
        for call in (memory.prototypes, memory.centroids):
            with pytest.raises(ValueError, match="queue_size=6; received 7"):
                call()

    def test_one_entry_too_few_falls_back_in_half_precision_too(self):
        """bfloat16 rounds 257 to 256."""
        memory = PrototypeMemory(1, 2, queue_size=300, support_size=257).bfloat16()
        memory.initialize(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        memory.update(torch.ones(256, 2), torch.zeros(256, dtype=torch.int64))
        assert memory.prototypes()[0].tolist() == [[3, 4]]
        memory.update(torch.ones(1, 2), torch.tensor([0]))
        assert memory.prototypes()[0].tolist() == [[1, 1]]


class TestLifeCycle:
    def test_the_mean_of_millions_of_rows_keeps_its_digits(self):
        memory = PrototypeMemory(1, 1, queue_size=4, support_size=2)
        memory.initialize(torch.tensor([[0.1]]).expand(1 << 22, 1), torch.zeros(1, dtype=torch.int64).expand(1 << 22))
        torch.testing.assert_close(memory.centroids()[0], torch.tensor([[0.1]]))

    @pytest.mark.parametrize("method", ["reset", "reset_parameters"])
    def test_reset_makes_it_new(self, method):
        memory = filled(seed=3)
        memory.initialize(torch.randn(4, 12), torch.tensor([0, 1, 2, 0]))
        memory.prototypes()
        memory.update(torch.randn(4, 12), torch.tensor([0, 1, 2, 0]))
        memory.load_state_dict(filled(seed=4).state_dict())
        getattr(memory, method)()
        new = PrototypeMemory(3, 12, queue_size=12, support_size=5, seed=3)
        assert_same_state(memory, new)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_conversion_keeps_integers_and_draws(self, dtype):
        memory, new = filled(), filled()
        memory.to(dtype)
        for name in ("cursors", "seed", "draws"):
            assert torch.equal(getattr(memory, name), getattr(new, name)) and getattr(memory, name).dtype == torch.int64
        assert memory.prototypes()[0].dtype == memory.queue.dtype == dtype
        assert torch.equal(support_sets(memory, 3), support_sets(new, 4)[1:])

    def test_buffers_have_the_promised_names_and_shapes(self):
        memory = PrototypeMemory(3, 2, queue_size=5, support_size=4)
        buffers = dict(memory.named_buffers())
        assert buffers["queue"].shape == (3, 5, 2)
        assert buffers["queue"].dtype == torch.float32
        assert torch.equal(memory.counts, torch.zeros(3, dtype=torch.int64))
        assert set(buffers) == set(memory.state_dict()) == STATE  # no constant among them
        assert not list(memory.parameters())


STATE = {"queue", "cursors", "fallback", "has_fallback", "seed", "draws"}


class TestRebuilding:
    """From constructor and state dict alone, whatever a framework does to the buffers in between."""

    @staticmethod
    def on_meta(**options):
        with torch.device("meta"):
            return PrototypeMemory(3, 12, queue_size=12, support_size=5, **options)

    @pytest.mark.parametrize("assign", [False, True])
    def test_meta_initialisation(self, assign):
        memory, other = filled(seed=5), self.on_meta()
        memory.initialize(torch.randn(2, 12), torch.tensor([0, 1]))
        memory.update(torch.randn(9, 12), torch.arange(9) % 3)
        if not assign:
            other.to_empty(device="cpu")
        other.load_state_dict(copy.deepcopy(memory.state_dict()), assign=assign)
        for _ in range(3):
            assert torch.equal(memory.prototypes()[0], other.prototypes()[0])
            rows, labels = torch.randn(7, 12), torch.arange(7) % 3
            memory.update(rows, labels)
            other.update(rows, labels)
            assert_same_state(memory, other)
        assert other._numbered() is other._numbered()  # not built anew in every step

    def test_a_memory_that_no_checkpoint_mentions_is_as_new(self):
        model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2, device="meta"), "memory": self.on_meta(seed=3)})
        model.to_empty(device="cpu")
        model.load_state_dict({"encoder.weight": torch.ones(2, 2), "encoder.bias": torch.ones(2)}, strict=False)
        assert_same_state(model["memory"], PrototypeMemory(3, 12, queue_size=12, support_size=5, seed=3))

    def test_what_a_state_dict_has_assigned_stays(self):
        """Debuggers and inspection read every attribute, that of Hugging Face too."""
        memory, other = filled(seed=5), self.on_meta()
        state = copy.deepcopy(memory.state_dict())
        state["queue"] = state["queue"].mT.contiguous().mT  # strided in another way
        other.load_state_dict(state, assign=True)
        assert other._is_hf_initialized
        assert_same_state(other, memory)
        assert torch.equal(other.prototypes()[0], memory.prototypes()[0])

    def test_a_filled_memory_is_not_reinitialised(self):
        memory = filled(seed=5)
        before = copy.deepcopy(memory)
        assert memory._is_hf_initialized
        memory.to("cpu")
        assert_same_state(memory, before)

    def test_a_state_dict_with_a_bool_mask_loads(self):
        memory = filled()
        memory.initialize(torch.randn(2, 12), torch.tensor([0, 2]))
        state = memory.state_dict()
        state["has_fallback"] = state["has_fallback"].bool()
        for assign in (False, True):
            other = PrototypeMemory(3, 12, queue_size=12, support_size=5)
            other.load_state_dict(copy.deepcopy(state), assign=assign)
            assert torch.equal(other.prototypes()[0], memory.prototypes(advance=False)[0])
            assert other.prototypes()[1].tolist() == [True, False, True]

    @pytest.mark.parametrize("average", ["equal", "exponential"])
    def test_averages_of_weights_with_buffers(self, average):
        memory = filled()
        memory.initialize(torch.randn(2, 12), torch.tensor([0, 2]))
        memory.update(torch.randn(30, 12), torch.arange(30) % 2)
        swa = torch.optim.swa_utils
        averaging = swa.get_ema_multi_avg_fn(0.5) if average == "exponential" else None
        averaged = swa.AveragedModel(memory, multi_avg_fn=averaging, use_buffers=True)
        first = memory.queue.clone()
        averaged.update_parameters(memory)
        memory.update(torch.randn(30, 12), torch.arange(30) % 2)
        averaged.update_parameters(memory)
        torch.testing.assert_close(averaged.module.queue, (first + memory.queue) / 2)
        centroids, exist = averaged.module.centroids()
        assert exist.tolist() == memory.centroids()[1].tolist() == [True, True, True]
        torch.testing.assert_close(centroids[:2], ((first + memory.queue) / 2).mean(1)[:2])
        assert averaged.module.prototypes()[0].isfinite().all()

    @pytest.mark.parametrize("size", ["num_classes", "embedding_dim", "queue_size"])
    def test_sizes_are_those_of_the_queues_and_cannot_be_set(self, size):
        memory = PrototypeMemory(3, 2, queue_size=5, support_size=4)
        assert (memory.num_classes, memory.embedding_dim, memory.queue_size) == (3, 2, 5)
        with pytest.raises(AttributeError, match=size):
            setattr(memory, size, 4)


class TestFingerprint:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_every_bit_of_state_counts(self, dtype):
        memory = PrototypeMemory(3, 4, queue_size=5, support_size=2, dtype=dtype)
        memory.initialize(torch.randn(6, 4), torch.arange(6) % 3)
        memory.update(torch.randn(9, 4), torch.arange(9) % 3)
        seen = {int(memory.fingerprint())}
        for buffer in memory.state_dict().values():
            flat = buffer.view(-1) if buffer.dim() else buffer[None]
            for place in range(flat.shape[0]):
                before = flat[place].clone()
                flat[place] = ~before if buffer.dtype == torch.bool else before * 2 + 1
                seen.add(int(memory.fingerprint()))
                flat[place] = before
        assert len(seen) == 1 + sum(buffer.numel() for buffer in memory.state_dict().values())
        assert int(copy.deepcopy(memory).fingerprint()) in seen

    def test_order_counts(self):
        memory, other = PrototypeMemory(2, 3), PrototypeMemory(2, 3)
        rows, labels = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        memory.update(rows, labels)
        other.update(rows.flip(0), labels.flip(0))
        assert memory.fingerprint() != other.fingerprint()
        other.reset()
        other.update(rows, labels)
        assert torch.equal(memory.fingerprint(), other.fingerprint())
        assert memory.fingerprint().dtype == torch.int64


BAD_CONSTRUCTION = [
    (ValueError, "num_classes...0", {"num_classes": 0}),
    (ValueError, "embedding_dim...0", {"embedding_dim": 0}),
    (ValueError, "queue_size...0", {"queue_size": 0}),
    (ValueError, "support_size...0", {"support_size": 0}),
    (ValueError, "queue_size...9", {"queue_size": 8, "support_size": 9}),
    (TypeError, "queue_size must be an int...bool", {"queue_size": True}),
    (TypeError, "queue_size...float", {"queue_size": 8.0}),
    (TypeError, "dtype...str", {"dtype": "float32"}),
    (TypeError, "dtype...int64", {"dtype": torch.int64}),
    (ValueError, "seed...-1", {"seed": -1}),
    (ValueError, "below 9223372036854775808; received 9223372036854775808", {"seed": 2**63}),
    (ValueError, "at least -9223372036854775808...-9223372036854775809", {"ignore_index": -(2**63) - 1}),
    (ValueError, "below 9223372036854775808...9223372036854775809", {"ignore_index": 2**63 + 1}),
]
ROW, LABEL = torch.ones(1, 2), torch.tensor([0])
BAD_ROWS = [
    (TypeError, "tensor...list", [[1.0, 2.0]], LABEL),
    (TypeError, "float...int64", ROW.long(), LABEL),
    (ValueError, "(N, 2)...(1, 3)", torch.ones(1, 3), LABEL),
    (ValueError, "(N, 2)...(2,)", torch.ones(2), LABEL),
    (ValueError, "(1,)...(2,)", ROW, torch.tensor([0, 1])),
    (TypeError, "integer...float32", ROW, LABEL.float()),
    (ValueError, "3...4", ROW, LABEL + 4),
    (ValueError, "-100...-1", ROW, LABEL - 1),
    (ValueError, "cpu...meta", ROW.to("meta"), LABEL),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD_CONSTRUCTION)
def test_bad_sizes_name_expected_and_received(error, message, change):
    with pytest.raises(error, match=says(message)):
        PrototypeMemory(**({"num_classes": 3, "embedding_dim": 2} | change))


@pytest.mark.parametrize(
    ("error", "message", "embeddings", "labels"), BAD_ROWS, ids=[message for _, message, *_ in BAD_ROWS]
)
@pytest.mark.parametrize("method", ["update", "initialize"])
def test_bad_rows_name_expected_and_received_and_change_nothing(method, error, message, embeddings, labels):
    memory = PrototypeMemory(3, 2)
    before = copy.deepcopy(memory)
    with pytest.raises(error, match=says(message)):
        getattr(memory, method)(embeddings, labels)
    assert_same_state(memory, before)


@pytest.mark.parametrize(
    ("error", "message", "per_class"),
    [
        (ValueError, "per_class must be at most queue_size=12; received 13", 13),
        (ValueError, "per_class must be at least 0; received -1", -1),
        (TypeError, "per_class must be an int; received float", 2.0),
    ],
)
def test_an_impossible_number_of_entries_is_refused(error, message, per_class):
    with pytest.raises(error, match=message):
        filled().entries(per_class)


@pytest.mark.parametrize(("name", "meant"), [("suport_size", "support_size"), ("ignore_idx", "ignore_index")])
def test_a_misspelt_setting_is_an_error(name, meant):
    memory = PrototypeMemory(2, 3, queue_size=4, support_size=2)
    with pytest.raises(AttributeError, match=f"Did you mean {meant}"):
        setattr(memory, name, 3)
    memory.support_size, memory.ignore_index, memory.source = 3, -1, "train"
    assert (memory.support_size, memory.ignore_index, memory.source) == (3, -1, "train")


def test_ignore_index_is_checked_when_it_is_next_used():
    memory = filled()
    memory.ignore_index = None
    for call in (lambda: memory.update(torch.ones(1, 12), torch.tensor([0])), lambda: memory.entries(2)):
        with pytest.raises(TypeError, match="ignore_index must be an int; received NoneType"):
            call()
