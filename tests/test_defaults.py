"""torch's default dtype and default device change nothing: every public function and method runs under both.

The default device "cuda:7" is one that does not exist, so that a factory call without a device fails. Like all modules
of torch, ours are built on the default device: here before it is set.
"""

import contextlib
import importlib.metadata
import importlib.util
import inspect

import pytest
import torch

import spcl_loss
import spcl_loss.testing
from spcl_loss import METHODS, DifficultyCurriculumSampler, PrototypeMemory, SupervisedPrototypicalContrastiveLoss

ROWS = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
CENTERS, INDICES = ROWS[:4].clone(), torch.arange(24)
LABELS = (INDICES % 3).masked_fill(INDICES == 5, -100)
MASK = torch.tensor([True, True, True, False])
BLOCKS = [(INDICES[rows], ROWS[rows], LABELS[rows]) for rows in (slice(0, 10), slice(10, 24))]
TRITON = importlib.util.find_spec("triton") is not None
if TRITON:  # PyTorch's CUDA builds bring one that may be too old for the kernels
    TRITON = tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) >= (3, 6)


def a_memory():
    memory = PrototypeMemory(4, 16, queue_size=8, support_size=2)
    memory.update(ROWS, LABELS)
    return memory


def a_loss():
    return SupervisedPrototypicalContrastiveLoss(4, 16, memory=a_memory(), class_weights=CENTERS[:, 0].abs())


def a_sampler():
    return DifficultyCurriculumSampler(ROWS[:, 0], num_epochs=3, schedule=lambda epoch: [0.5] * 24)


def every_method_and_backend(_):
    for method, options in METHODS.items():
        for impl in ("dense", "strips", *["triton"] * (TRITON and method in ("spcl", "bcl"))):
            rows, prototypes = ROWS.clone().requires_grad_(), CENTERS.clone().requires_grad_()
            weights = {"sample_weight": ROWS[:, 0].abs(), "class_weights": CENTERS[:, 0].abs(), "prototype_mask": MASK}
            loss = spcl_loss.supervised_prototypical_contrastive_loss(
                rows, LABELS, prototypes, impl=impl, **weights, **options
            )
            loss.backward()
            yield from (loss, rows.grad, prototypes.grad)


def training_step(criterion):
    rows = ROWS.clone().requires_grad_()
    for options in ({}, {"prototypes": CENTERS}, {"update_memory": False}):
        criterion(rows, LABELS, sample_weight=ROWS[:, 0].abs(), **options).backward()
    yield from (rows.grad, *criterion.state_dict().values(), criterion.eval()(rows, LABELS))


def difficulties(_):
    for options in ({}, {"leave_one_out": True}, {"centers": CENTERS, "center_mask": MASK}):
        yield spcl_loss.prototype_difficulty(ROWS, LABELS, **options)


def difficulties_of_blocks(_):
    for options in ({}, {"leave_one_out": True}, {"centers": CENTERS, "center_mask": MASK}):
        yield spcl_loss.prototype_difficulty_blocks(BLOCKS, 25, **options)


def state_after(call):
    def use(part):
        call(part)
        return list(part.state_dict().values())

    return use


def every_property(part):
    return [getattr(part, k) for k, v in vars(type(part)).items() if isinstance(v, property)]


def new_samplers():
    for draw in ("fixed", "bernoulli"):
        for schedule in ("linear", "root", "step", (0.2, 0.7)):
            sampler = DifficultyCurriculumSampler(ROWS[:, 0], num_epochs=3, schedule=schedule, draw=draw)
            yield from (list(sampler), sampler.indices, len(sampler))


SURFACE = {  # name: (what builds the object, what is done with it)
    "supervised_prototypical_contrastive_loss": (None, every_method_and_backend),
    "prototype_difficulty": (None, difficulties),
    "prototype_difficulty_blocks": (None, difficulties_of_blocks),
    "SupervisedPrototypicalContrastiveLoss.forward": (a_loss, training_step),
    "SupervisedPrototypicalContrastiveLoss.logits": (a_loss, lambda loss: [loss.logits(ROWS)]),
    "SupervisedPrototypicalContrastiveLoss.predict": (a_loss, lambda loss: [loss.predict(ROWS)]),
    "SupervisedPrototypicalContrastiveLoss.diagnostics": (
        a_loss,
        lambda loss: [value.nan_to_num(-1) for value in loss.diagnostics(ROWS, LABELS).values()],
    ),
    "SupervisedPrototypicalContrastiveLoss.extra_repr": (a_loss, lambda loss: [loss.extra_repr()]),
    "PrototypeMemory.initialize": (a_memory, state_after(lambda memory: memory.initialize(ROWS, LABELS))),
    "PrototypeMemory.update": (a_memory, state_after(lambda memory: memory.update(ROWS, LABELS))),
    "PrototypeMemory.reset": (a_memory, state_after(lambda memory: memory.reset())),
    "PrototypeMemory.prototypes": (a_memory, lambda memory: [*memory.prototypes(), memory.draws]),
    "PrototypeMemory.centroids": (a_memory, lambda memory: memory.centroids()),
    "PrototypeMemory.entries": (a_memory, lambda memory: memory.entries(3)),
    "PrototypeMemory.fingerprint": (a_memory, lambda memory: [memory.fingerprint()]),
    "PrototypeMemory.extra_repr": (a_memory, lambda memory: [memory.extra_repr()]),
    "SupervisedPrototypicalContrastiveLoss": (a_loss, every_property),
    "PrototypeMemory": (a_memory, every_property),
    "DifficultyCurriculumSampler": (a_sampler, lambda sampler: [*every_property(sampler), *new_samplers()]),
    "DifficultyCurriculumSampler.set_epoch": (
        a_sampler,
        state_after(lambda sampler: sampler.set_epoch(1, CENTERS[0, :1].expand(24))),
    ),
    "DifficultyCurriculumSampler.observe": (
        a_sampler,
        state_after(lambda sampler: sampler.observe(INDICES, ROWS, LABELS, CENTERS)),
    ),
    "DifficultyCurriculumSampler.load_state_dict": (
        a_sampler,
        state_after(lambda sampler: sampler.load_state_dict(sampler.state_dict(position=3))),
    ),
    "DifficultyCurriculumSampler.state_dict": (a_sampler, state_after(lambda sampler: next(iter(sampler)))),
    "DifficultyCurriculumSampler.keep_probability": (a_sampler, lambda sampler: [sampler.keep_probability()]),
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# Triton's interpreter computes with NumPy, which warns of the infinite logarithms that kernels discard.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)  # dtypes and devices too
        else:
            assert a == b


@pytest.mark.parametrize("name", SURFACE)
def test_a_default_dtype_of_float64_changes_nothing(name):
    build, use = SURFACE[name]
    expected = list(use(build and build()))
    with default_dtype(torch.float64):
        assert_same(list(use(build and build())), expected)


@pytest.mark.parametrize("name", SURFACE)
def test_a_default_device_that_does_not_exist_changes_nothing(name):
    build, use = SURFACE[name]
    expected, part = list(use(build and build())), build and build()
    with torch.device("cuda:7"):
        assert_same(list(use(part)), expected)


def test_nothing_public_is_left_out():
    public = set(spcl_loss.__all__) - {"METHODS"}
    for name in [name for name in public if inspect.isclass(getattr(spcl_loss, name))]:
        members = vars(getattr(spcl_loss, name)).items()
        public |= {f"{name}.{k}" for k, v in members if k[0] != "_" and callable(v)}
    assert public == set(SURFACE), "add it to SURFACE"


def test_the_loss_has_the_defaults_of_its_description():
    """The shifted cosine at temperature 0.05, positives inside, every other row in the denominator, a mean."""
    loss = spcl_loss.supervised_prototypical_contrastive_loss
    explicit = {
        "temperature": 0.05, "similarity": "shifted_cosine", "positives": "inside", "contrast": "all",
        "easy_threshold": None, "prototype_anchors": False, "ignore_index": -100, "reduction": "mean",
        "gather_distributed": False, "impl": "auto",
    }  # fmt: skip
    assert torch.equal(loss(ROWS, LABELS, CENTERS), loss(ROWS, LABELS, CENTERS, **explicit))
    module = SupervisedPrototypicalContrastiveLoss(4, 16)
    assert {name: getattr(module, name) for name in explicit} == explicit
    settings = explicit | {"process_group": None}
    assert {*module.extra_repr().split(", ")} == {f"{name}={value!r}" for name, value in settings.items()}
    for memory in (module.memory, PrototypeMemory(4, 16)):
        sizes = (memory.queue_size, memory.support_size, int(memory.seed), int(memory.draws), memory.ignore_index)
        assert sizes == (256, 64, 0, 0, -100)
        assert "num_classes=4, embedding_dim=16, queue_size=256, support_size=64" in repr(memory)
