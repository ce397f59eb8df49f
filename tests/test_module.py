"""The loss module: which prototypes a call sees, what it leaves behind, and what survives saving and converting."""

import contextlib
import copy
import functools
import io
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint
from torch._subclasses import FakeTensorMode

from spcl_loss import PrototypeMemory, SupervisedPrototypicalContrastiveLoss
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._checks import check_any_class
from support import oracle
from support.messages import says
from support.same import assert_same_state, through_a_file

C, D = 4, 6
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


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


def through_state_dict(criterion):
    restored = module(seed=99, class_weights=torch.ones(C))
    restored.load_state_dict(through_a_file(criterion.state_dict()))
    return restored


def through_distributed_checkpoint(criterion):
    restored = module(seed=99, class_weights=torch.ones(C))
    state = restored.state_dict()
    with TemporaryDirectory() as folder:
        torch.distributed.checkpoint.save(criterion.state_dict(), checkpoint_id=folder)
        torch.distributed.checkpoint.load(state, checkpoint_id=folder)
    restored.load_state_dict(state)
    return restored


def through_pickle(part):
    return pickle.loads(pickle.dumps(part))


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

    @pytest.mark.parametrize("impl", ["dense", "strips"])
    def test_entries_of_the_memory_are_candidates_and_absent_ones_are_not(self, impl):
        criterion, absent = module(impl=impl, temperature=0.2), []
        for seed in range(3):
            embeddings, labels = batch(seed, N=5)
            memory = copy.deepcopy(criterion.memory)
            prototypes, exist = memory.prototypes()
            entries, classes = memory.entries(8)
            absent.append(int((classes == -100).sum()))
            stored = torch.cat([memory.queue[c, : memory.counts[c]] for c in range(C)])
            options = {"prototype_mask": exist, "candidates": stored, "temperature": 0.2}
            options["candidate_labels"] = torch.arange(C).repeat_interleave(memory.counts)
            expected = oracle.value_and_gradients(oracle.loss, embeddings, labels, prototypes, **options)
            loss = functools.partial(criterion, candidates=entries, candidate_labels=classes)
            ours = oracle.value_and_gradients(loss, embeddings, labels)
            torch.testing.assert_close(ours, expected[:2], rtol=1e-4, atol=1e-5, check_dtype=False)
            memory.update(embeddings, labels)
            assert_same_state(criterion.memory, memory)
        assert absent == [32, 27, 22]

    @pytest.mark.parametrize("update_memory", [None, False])
    def test_evaluation_compares_with_the_centroids_and_changes_nothing(self, update_memory):
        criterion = trained().eval()
        before = copy.deepcopy(criterion)
        embeddings, labels = batch(9)
        centroids, exist = criterion.memory.centroids()
        value = criterion(embeddings, labels, update_memory=update_memory)
        expected = spcl(embeddings, labels, centroids, prototype_mask=exist)
        assert torch.equal(value, expected)
        assert torch.equal(value, criterion(embeddings, labels))
        assert_same_state(criterion, before)

    @pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_nothing_enters_unless_asked_for(self, disabled):
        criterion, (embeddings, labels) = trained(), batch(9)
        before = copy.deepcopy(criterion)
        with disabled():
            criterion(embeddings, labels)
        assert_same_state(criterion, before)
        with disabled():
            criterion(embeddings, labels, update_memory=True)
        before(embeddings, labels)
        assert_same_state(criterion, before)

    def test_checkpointing_around_the_loss_is_refused_where_it_would_change_gradients(self):
        criterion, (embeddings, labels) = trained(), batch(9)
        encoder = torch.nn.Linear(D, D)

        def step(embeddings, update_memory):
            return criterion(encoder(embeddings), labels, update_memory=update_memory)

        (expected,) = torch.autograd.grad(step(embeddings, False), encoder.weight)
        checkpointed = torch.utils.checkpoint.checkpoint(step, embeddings, False, use_reentrant=False)
        (gradient,) = torch.autograd.grad(checkpointed, encoder.weight)
        assert torch.equal(gradient, expected)
        checkpointed = torch.utils.checkpoint.checkpoint(step, embeddings, None, use_reentrant=False)
        with pytest.raises(RuntimeError, match="Checkpoint the encoder alone"):
            checkpointed.backward()

    def test_the_memory_can_be_filled_by_hand(self):
        """As the pages say for a loss that activation checkpointing or torch.func repeats."""
        criterion, (embeddings, labels) = trained(), batch(9)
        before = copy.deepcopy(criterion)
        criterion(embeddings, labels, update_memory=False)
        criterion.memory.update(embeddings, labels)
        criterion.memory.prototypes()
        before(embeddings, labels)
        assert_same_state(criterion, before)

    def test_func_grad_works_without_update(self):
        criterion, (embeddings, labels) = trained(), batch(9)
        before = copy.deepcopy(criterion)
        gradient = torch.func.grad(lambda rows: criterion(rows, labels, update_memory=False))(embeddings)
        assert_same_state(criterion, before)
        expected = oracle.value_and_gradients(criterion, embeddings, labels)[1]
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:torch.searchsorted")  # of vmap
    def test_an_ensemble_steps_under_vmap(self):
        criterion, (embeddings, labels) = trained(), batch(9)
        stack = torch.stack([embeddings.detach(), embeddings.detach() + 1])
        buffers = {name: torch.stack([buffer, buffer]) for name, buffer in criterion.named_buffers()}
        losses = torch.func.vmap(lambda own, rows: torch.func.functional_call(criterion, own, (rows, labels)))(
            buffers, stack
        )
        for i in range(2):
            member = copy.deepcopy(criterion)
            torch.testing.assert_close(losses[i], member(stack[i].requires_grad_(), labels).detach())
            assert torch.equal(buffers["memory.cursors"][i], member.memory.cursors)
            assert torch.equal(buffers["memory.queue"][i], member.memory.queue)

    def test_update_memory_overrides_the_mode(self):
        criterion, (embeddings, labels) = trained(), batch(9)
        before = copy.deepcopy(criterion)
        first = criterion(embeddings, labels, update_memory=False)
        assert torch.equal(criterion(embeddings, labels, update_memory=False), first)
        assert_same_state(criterion, before)
        criterion.eval()(embeddings, labels, update_memory=True)
        before.memory.update(embeddings, labels)
        assert torch.equal(criterion.memory.queue, before.memory.queue)

    @pytest.mark.parametrize("impl", ["dense", "strips"])
    def test_a_poisoned_step_in_which_no_anchor_counts_has_a_nan_loss_too(self, impl):
        criterion = module(impl=impl)
        embeddings = torch.ones(2, D).requires_grad_()
        with torch.no_grad():
            embeddings[0, 1] = torch.nan
        assert criterion(embeddings, torch.tensor([0, 1])).isnan()
        assert criterion.memory.counts.tolist() == [0] * C

    @pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("impl", ["dense", "strips"])
    @pytest.mark.parametrize("row", [1, 9, 4, 6])  # one of each class
    def test_a_poisoned_step_has_a_nan_loss_and_never_happened(self, poison, impl, row):
        criterion, (embeddings, labels) = trained(impl=impl), batch(9)
        before = copy.deepcopy(criterion)
        embeddings[row, 2] = poison
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

    def test_a_batch_of_ignored_rows_counts_as_a_step_and_enters_nothing(self):
        criterion = SupervisedPrototypicalContrastiveLoss(1, D)
        criterion(torch.randn(3, D, requires_grad=True), torch.full((3,), -100)).backward()
        memory = criterion.memory
        assert (int(memory.draws), memory.counts.tolist(), memory.queue.any().item()) == (1, [0], False)

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

    @pytest.mark.filterwarnings(
        "ignore::torch.jit.TracerWarning", "ignore:.torch.jit:DeprecationWarning", "ignore:.torch.jit:FutureWarning"
    )
    def test_a_trace_scores_other_numbers_of_rows(self):
        criterion, rows = trained(), batch(9)[0]
        traced = torch.jit.trace(lambda rows: criterion.logits(rows), batch(4, N=4)[0])
        assert torch.equal(traced(rows), criterion.logits(rows))

    @pytest.mark.parametrize("method", ["predict", "logits"])
    def test_a_memory_with_no_class_is_an_error(self, method):
        criterion, (embeddings, labels) = module(), batch(9)
        for empty in (criterion, criterion.eval()):
            with pytest.raises(ValueError, match="empty"):
                getattr(empty, method)(embeddings)
        criterion.memory.update(embeddings[:1], labels[:1])
        assert (criterion.predict(embeddings) == labels[0]).all()

    def test_a_compiled_graph_asserts_that_there_is_a_class(self):
        criterion, (embeddings, labels) = module(), batch(9)
        compiled = torch.compile(criterion.predict, backend="aot_eager", fullgraph=True)
        with pytest.raises(RuntimeError, match="empty"):
            compiled(embeddings)
        criterion.memory.update(embeddings, labels)
        assert torch.equal(compiled(embeddings), criterion.predict(embeddings))


class TestState:
    @pytest.mark.parametrize("known", [True, False], ids=["known weights", "weights on meta"])
    def test_meta_initialisation(self, known):
        criterion = trained(class_weights=WEIGHTS)
        with torch.device("meta"):
            other = module(class_weights=WEIGHTS if known else torch.ones(C))
        with contextlib.nullcontext() if known else pytest.warns(UserWarning, match="class_weights"):
            other.to_empty(device="cpu")
        state = criterion.state_dict()
        if known:  # older state dicts hold no class weights
            state.pop("class_weights")
        other.load_state_dict(state)
        assert_same_state(criterion, other)
        assert torch.equal(criterion(*batch(9)), other(*batch(9)))

    def test_class_weights_that_nothing_knows_are_missed(self):
        with torch.device("meta"):
            criterion = module(class_weights=torch.ones(C))
        with pytest.warns(UserWarning, match="build it with device='cpu'"):
            criterion.to_empty(device="cpu")
        with pytest.raises(RuntimeError, match="class_weights"):
            criterion.load_state_dict(trained().state_dict())
        assert criterion(*batch(9)).isnan()

    def test_class_weights_are_a_copy(self):
        weights = torch.nn.Parameter(torch.ones(C))
        criterion = module(class_weights=weights)
        criterion.class_weights.fill_(2)
        assert weights.tolist() == [1] * C
        assert not criterion.class_weights.requires_grad

    def test_reset_parameters_restores_what_the_constructor_sets(self):
        criterion, new = trained(class_weights=WEIGHTS, seed=5), module(class_weights=WEIGHTS, seed=5)
        criterion.class_weights.zero_()
        criterion.memory.seed.zero_()
        criterion.reset_parameters()
        assert_same_state(criterion, new)
        for seed in range(3):
            assert torch.equal(criterion(*batch(seed)), new(*batch(seed)))
        without = module()
        without.class_weights = WEIGHTS
        without.reset_parameters()
        assert without.class_weights is None

    def test_copies_keep_the_process_group_and_pickles_say_that_they_do_not(self):
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            group = torch.distributed.new_group([0])
            criterion = trained(process_group=group, gather_distributed=True)
            model = copy.deepcopy(torch.nn.Sequential(torch.nn.Linear(D, D), criterion))
            assert model[1].process_group is copy.copy(criterion).process_group is group
            assert_same_state(model[1], criterion)
            assert model[1].memory.queue.data_ptr() != criterion.memory.queue.data_ptr()
            for save, load in (
                (pickle.dump, pickle.load),
                (torch.save, functools.partial(torch.load, weights_only=False)),
            ):
                file = io.BytesIO()
                save(criterion, file)
                file.seek(0)
                with pytest.warns(
                    UserWarning, match=r"process_group is not part.*Set criterion\.process_group"
                ) as caught:
                    other = load(file)
                assert load is not pickle.load or caught[0].filename == __file__
                assert other.process_group is None
                assert criterion.process_group is group
                assert_same_state(other, criterion)
                assert torch.equal(copy.deepcopy(other)(*batch(9)), copy.deepcopy(criterion)(*batch(9)))
        finally:
            torch.distributed.destroy_process_group()

    @pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # of torch 2.6, by its own code
    @pytest.mark.filterwarnings("ignore:torch.distributed is .*uninitialized")  # one process, which is what is meant
    @pytest.mark.parametrize(
        "copied", [through_state_dict, through_distributed_checkpoint, copy.deepcopy, through_pickle]
    )
    def test_a_copy_continues_bit_identically(self, copied):
        criterion = trained(seed=5, class_weights=WEIGHTS)
        other = copied(criterion)
        for seed in range(20, 25):
            ours, theirs = (oracle.value_and_gradients(each, *batch(seed)) for each in (criterion, other))
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert_same_state(criterion, other)

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_pickle])
    def test_a_copy_of_a_compiled_loss_does_not_run_the_original(self, copied):
        criterion = trained()
        criterion.compile(backend="eager")
        other = copied(criterion)
        other.temperature = 1.0
        assert torch.equal(other(*batch(9)), trained(temperature=1.0)(*batch(9)))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_converted_modules_go_on(self, dtype):
        criterion = trained().to(dtype)
        counts = criterion.memory.counts.clone()
        embeddings, labels = batch(9)
        value = criterion(embeddings.to(dtype), labels)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.isfinite()
        assert torch.equal(criterion.memory.counts, (counts + labels.bincount(minlength=C)).clamp(max=8))

    def test_what_the_dtype_of_the_memory_cannot_hold_stays_out(self):
        memory = PrototypeMemory(2, D, queue_size=4, support_size=1, dtype=torch.float16)
        criterion = SupervisedPrototypicalContrastiveLoss(2, D, memory=memory)
        embeddings = torch.randn(3, D)
        embeddings[1, 0] = 1e6
        assert criterion(embeddings.requires_grad_(), torch.tensor([0, 0, 1])).isfinite()
        assert memory.counts.tolist() == [1, 1]

    def test_the_loss_has_no_parameters(self):
        assert not list(module().parameters())


BAD_MEMORY = {
    "of another width": (ValueError, "embedding_dim=6...5", PrototypeMemory(C, 5)),
    "of other classes": (ValueError, "num_classes=4...9", PrototypeMemory(9, D)),
    "with another ignore_index": (ValueError, "=-100...7", PrototypeMemory(C, D, ignore_index=7)),
    "of another type": (TypeError, "PrototypeMemory...int", 3),
    "none": (TypeError, "NoneType...Build one with PrototypeMemory(4, 6)", None),
}


@pytest.mark.parametrize("case", BAD_MEMORY)
def test_a_memory_that_does_not_fit_is_refused(case):
    error, message, memory = BAD_MEMORY[case]
    criterion = trained()
    before = copy.deepcopy(criterion)
    with pytest.raises(error, match=says(message)):
        criterion.memory = memory
    assert_same_state(criterion, before)
    if memory is not None:
        with pytest.raises(error, match=says(message)):
            module(memory=memory)


def test_a_memory_can_be_handed_in_and_set():
    memory, criterion = PrototypeMemory(C, D), trained()
    assert module(memory=memory).memory is memory
    criterion.memory = memory
    assert criterion.memory is memory


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("above 1e-06...-1", {"temperature": -1.0}),
        ("cosine...dot", {"similarity": "dot"}),
        ("(2,)...Pass as many entries as there are classes", {"class_weights": torch.ones(2)}),
    ],
)
def test_bad_settings_are_named_at_construction(message, options):
    with pytest.raises(ValueError, match=says(message)):
        module(**options)


X, Y, TO_META = torch.ones(3, D), torch.tensor([0, 1, 2]), "the loss...with .to('meta')"
BAD_CALLS = {  # what the message says, embeddings, labels, options
    "width": ("(N, 6), since embedding_dim=6; received (3, 5)", torch.ones(3, 5), torch.tensor([0, 1, 9]), {}),
    "label": ("labels must be classes from 0 on, below 4...received 9", X, torch.tensor([0, 1, 9]), {}),
    "length": ("labels must have shape (3,); received (2,)", X, Y[:2], {}),
    "another device": (f"memory, cpu; received meta...{TO_META}", X.to("meta"), Y.to("meta"), {}),
    "another device beside learned prototypes": (
        f"memory, cpu; received meta...{TO_META}", X.to("meta"), Y.to("meta"),
        {"prototypes": torch.ones(C, D).to("meta")},
    ),
    "too few prototypes": ("shape (4, 6); received (3, 6)", X, Y, {"prototypes": torch.ones(3, D)}),
    "too many prototypes": ("shape (4, 6); received (5, 6)", X, Y, {"prototypes": torch.ones(5, D)}),
    "update_memory": ("update_memory must be True or False; received 'no'", X, Y, {"update_memory": "no"}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_refused_batch_changes_no_state(case):
    message, embeddings, labels, options = BAD_CALLS[case]
    criterion = trained(class_weights=torch.ones(C))
    before = copy.deepcopy(criterion)
    with pytest.raises(TypeError if case == "update_memory" else ValueError, match=says(message)):
        criterion(embeddings, labels, **options)
    for call in (criterion.logits, criterion.predict) if case in ("width", "another device") else ():
        with pytest.raises(ValueError, match=says(message)):
            call(embeddings)
    assert_same_state(criterion, before)


OPTIONS = [
    ("temperature", 0.3), ("similarity", "cosine"), ("positives", "outside"), ("contrast", "negatives"),
    ("contrast", "class_balanced"), ("easy_threshold", 1.5), ("prototype_anchors", True), ("class_weights", WEIGHTS),
    ("reduction", "sum"), ("reduction", "none"), ("ignore_index", 1), ("impl", "strips"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_an_option_of_the_constructor_or_set_later_reaches_the_function(name, option):
    changed, built = module(), module(**{name: option})
    setattr(changed, name, option)
    assert getattr(changed, name) is option
    assert repr(changed) == repr(built)
    assert f"{name}={option!r}" in repr(changed) or name == "class_weights"
    weight = torch.linspace(0.5, 2, 10)
    for seed in range(3):
        embeddings, labels = batch(seed)
        prototypes, exist = built.memory.prototypes(advance=False)
        equation = functools.partial(spcl, embeddings, labels, prototypes, prototype_mask=exist, sample_weight=weight)
        value = built(embeddings, labels, sample_weight=weight)
        assert torch.equal(value, equation(**{name: option}))
        assert torch.equal(value, changed(embeddings, labels, sample_weight=weight))
        assert_same_state(changed, built)
    assert name == "impl" or not torch.equal(value, equation())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"), ("simliarity", "similarity"), ("easy_treshold", "easy_threshold"),
        ("class_weight", "class_weights"), ("gather_distribute", "gather_distributed"), ("queue_size", "new loss"),
        ("support_size", "criterion.memory.support_size"), ("seed", "new loss"), ("num_classes", "new loss"),
    ],
)  # fmt: skip
def test_a_misspelt_option_is_an_error(name, meant):
    with pytest.raises(AttributeError, match=meant):
        setattr(module(), name, 0.5)


def test_other_attributes_are_left_to_their_owners():
    criterion = module()
    criterion.id, criterion.qconfig, criterion.projection = 3, None, torch.nn.Linear(D, D)
    criterion._hf_hook = criterion.forward = criterion.forward
    criterion.contrastive = criterion.positions = None  # names that a subclass may well have
    criterion.base_temperature, criterion.temperature_end, criterion.class_weights_source = 0.07, 0.02, "counts"
    assert (criterion.id, criterion.qconfig) == (3, None)
    criterion.num_classes, criterion.embedding_dim, criterion.seed = C, D, 0  # as a subclass keeps its arguments
    with pytest.raises(AttributeError, match="num_classes belongs to the memory"):
        criterion.num_classes = C + 1
    assert set(dict(criterion.named_parameters())) == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize("label", [-7, C])
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_graph_asserts_that_labels_are_classes(label, training):
    criterion, (embeddings, labels) = trained().train(training), batch(9)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    labels[0] = -100
    assert compiled(embeddings, labels).isfinite()
    labels[0] = label
    with pytest.raises(RuntimeError, match="classes from 0 on"):
        compiled(embeddings, labels)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("similarity", "dot"), ("contrast", "none"), ("reduction", "max"), ("impl", "fast")],
)
def test_an_option_is_checked_when_it_is_next_used(name, value):
    criterion = trained()
    before = copy.deepcopy(criterion)
    setattr(criterion, name, value)
    for call in (lambda: criterion(*batch(9)), lambda: criterion.predict(batch(9)[0])):
        with pytest.raises(ValueError, match=f"{name} must be"):
            call()
    assert_same_state(criterion, before)


def test_a_scheduled_temperature_compiles_twice():
    """The second value makes it an input of the graph."""
    torch._dynamo.reset()
    criterion, graphs = module(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(criterion, backend=backend, fullgraph=True)
    for step in range(12):
        criterion.temperature = 0.5 * 0.9**step
        expected = oracle.value_and_gradients(copy.deepcopy(criterion), *batch(step))
        ours = oracle.value_and_gradients(compiled, *batch(step))
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert len(graphs) == 2


@pytest.mark.parametrize(
    ("embeddings", "labels", "remedy"),
    [
        (torch.ones(3, 2, D), torch.arange(3), r"embeddings\.flatten\(0, 1\).*labels\.repeat_interleave\(2\)"),
        (torch.ones(3, D), torch.ones(3, 1, dtype=torch.long), r"labels\.squeeze\(-1\)"),
        (torch.ones(3, D), torch.eye(C)[:3], r"labels\.argmax\(1\)"),
        (torch.ones(3, D), torch.ones(3, 2, dtype=torch.long), "several levels, add one loss for each"),
        (torch.ones(3, 2, D), torch.ones(3, 2, dtype=torch.long), r"tokens, flatten their labels.*labels\.flatten\(\)"),
    ],
    ids=["views", "column", "one-hot", "levels", "tokens"],
)
def test_a_wrong_shape_names_the_remedy(embeddings, labels, remedy):
    criterion = trained()
    for call in (criterion, criterion.memory.update, criterion.memory.initialize):
        with pytest.raises(ValueError, match=remedy):
            call(embeddings, labels)


def test_a_gpu_is_not_waited_for(monkeypatch):
    """Looking at a value of a fake tensor raises, as it would wait on a GPU."""
    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda condition, message: asserted.append((condition.device, message)))
    with FakeTensorMode():
        check_any_class(torch.zeros(3, dtype=torch.bool, device="cuda:0"))
    ((device, message),) = asserted
    assert device == torch.device("cuda:0")
    assert "empty" in message


def test_a_pickle_that_says_nothing_of_a_group_loads_without_a_warning():
    state = module().__getstate__()
    del state["_had_process_group"]
    other = SupervisedPrototypicalContrastiveLoss.__new__(SupervisedPrototypicalContrastiveLoss)
    other.__setstate__(state)
    assert other.process_group is None
