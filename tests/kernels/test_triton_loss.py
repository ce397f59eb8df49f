"""The loss with impl="triton" under the interpreter: the numbers of `dense`, and what PyTorch asks of an operator."""

import pytest
import torch

from interpreted import PATHS, WARNINGS, choose, interpret, tiles
from spcl_loss import METHODS, SupervisedPrototypicalContrastiveLoss
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity import Comparison, operator
from spcl_loss._similarity.kernels import config
from support import oracle

pytestmark = WARNINGS
OPTIONS = METHODS | {"spcl": METHODS["spcl"] | {"easy_threshold": 0.3}}  # as in the authors' code
IMPLS = ("triton", "dense")


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    interpret(monkeypatch)


def batch(N, C=5, D=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings, prototypes = torch.randn(N + C, D, generator=generator).split([N, C])
    return embeddings, torch.randint(C, (N,), generator=generator), prototypes


def assert_close(ours, exact, temperature):
    """A score is a rounded cosine over the temperature; so is all that follows from it."""
    tolerance = 16 * torch.finfo(torch.float32).eps * max(1, 1 / temperature)
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max()) if b.numel() else True


def in_double(value):
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


@pytest.mark.parametrize("path", PATHS[:2])
@pytest.mark.parametrize("D", [257, 1000, 4096])
def test_wide_rows(monkeypatch, path, D):
    choose(monkeypatch, path)
    deep = {name: tile._replace(depth=256) for name, tile in config.TILES["interpreter"]["ieee"].items()}
    deep["small"] = deep["small"]._replace(slice=256)
    monkeypatch.setitem(config.TILES["interpreter"], "ieee", deep)
    embeddings, labels, prototypes = batch(9, 3, D)
    expected = oracle.value_and_gradients(spcl, embeddings.double(), labels, prototypes.double(), impl="dense")
    assert_close(oracle.value_and_gradients(spcl, embeddings, labels, prototypes, impl="triton"), expected, 0.05)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_half_precision_embeddings_and_products(monkeypatch, path, dtype, options):
    """As on a GPU, where products of half embeddings are in half precision."""
    choose(monkeypatch, path)
    monkeypatch.setattr("spcl_loss.loss.product_dtype", lambda embeddings: embeddings.dtype)
    options = dict(options, easy_threshold=None, temperature=0.1)
    embeddings, labels, prototypes = batch(40)
    embeddings, prototypes = embeddings.to(dtype), prototypes.to(dtype)
    expected = oracle.value_and_gradients(
        spcl, embeddings.double(), labels, prototypes.double(), **options, impl="dense"
    )
    found = oracle.value_and_gradients(spcl, embeddings, labels, prototypes, **options, impl="triton")
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    # Entries of unit rows are rounded; the interpreter cuts bfloat16 off where a GPU rounds.
    rounding = torch.finfo(dtype).eps
    for ours, exact in zip(found, expected, strict=True):
        assert (ours - exact).norm() <= 2 * rounding / options["temperature"] * exact.norm()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_deterministic_algorithms_change_no_bit(monkeypatch, path, options):
    """All kernels add in a fixed order. Deterministic mode poisons fresh memory too: all that is read was written."""
    choose(monkeypatch, path)
    tensors = batch(60)
    once = oracle.value_and_gradients(spcl, *tensors, **options, impl="triton")
    torch.use_deterministic_algorithms(True)
    try:
        again = oracle.value_and_gradients(spcl, *tensors, **options, impl="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert all(value.isfinite().all() for value in once)


@pytest.mark.parametrize("path", ["small", "tiles, sorted"])
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_opcheck(monkeypatch, path, scale):
    choose(monkeypatch, path)
    embeddings, labels, _ = batch(40, D=8)
    rows = torch.nn.functional.normalize(embeddings).requires_grad_()
    arguments = (rows, labels, -torch.rand(40), scale, 35, 37, True, torch.float32, "triton")
    torch.library.opcheck(operator._statistics_op, arguments)
    negative, positive, _ = operator._statistics_op(*arguments)
    statistics = negative.detach(), positive.detach(), torch.rand(3, 35)
    arguments = (rows.detach(), labels, None, *arguments[3:8], *statistics, "triton")
    torch.library.opcheck(operator._gradient_op, arguments)


@pytest.mark.parametrize("method", ["spcl", "bcl", "eacl"])
def test_compiles_into_one_graph(monkeypatch, method):
    choose(monkeypatch, "tiles")
    options = OPTIONS[method]
    torch._dynamo.reset()
    compiled = torch.compile(spcl, fullgraph=True, backend="aot_eager", dynamic=True)
    for N in (33, 40):
        tensors = batch(N)
        expected = oracle.value_and_gradients(spcl, *tensors, **options, impl="triton")
        found = oracle.value_and_gradients(compiled, *tensors, **options, impl="triton")
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_the_module_trains_with_it():
    criterions = [SupervisedPrototypicalContrastiveLoss(5, 24, queue_size=8, support_size=4, impl=i) for i in IMPLS]
    for step in range(3):
        embeddings, labels, _ = batch(20, seed=step)
        leaves = [embeddings.clone().requires_grad_() for _ in IMPLS]
        losses = [criterion(leaf, labels) for criterion, leaf in zip(criterions, leaves, strict=True)]
        gradients = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_unavailable_is_said_with_the_reason_and_the_remedy(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"impl='triton'.*on the CPU.*TRITON_INTERPRET=1.*impl=\"auto\""):
        spcl(torch.eye(3), torch.arange(3), impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=r"impl='triton'.*float64"):
        spcl(torch.eye(3).double(), torch.arange(3), impl="triton")


@pytest.mark.parametrize(("setting", "precision"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_float32_products_obey_the_matmul_precision(setting, precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert config.precision(torch.float32) == precision
        contrast = Comparison(torch.arange(3), None, 10.0, 3, 3, False, torch.float32)
        constants = tiles.product_constants(config.TILES["sm_90"][precision]["forward"], contrast)
        assert constants["PRECISION"] == precision
        assert config.precision(torch.bfloat16) == "half"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_around_backward_changes_no_number(half):
    embeddings, labels, prototypes = batch(40)

    def gradient(enabled):
        leaf = embeddings.clone().requires_grad_()
        loss = spcl(leaf, labels, prototypes, temperature=0.02, impl="triton")
        with torch.autocast("cpu", dtype=half, enabled=enabled):
            loss.backward()
        return leaf.grad

    assert torch.equal(gradient(enabled=True), gradient(enabled=False))


@pytest.mark.parametrize("method", OPTIONS)
def test_float32_gradients_at_a_low_temperature_on_overlapping_classes(method):
    """To 1e-5 of the largest entry: constants must not carry gradients that cancel."""
    centers, noise = torch.randn(47, 64).split([7, 40])
    labels = torch.arange(40) % 7
    options = OPTIONS[method] | {"temperature": 0.005, "easy_threshold": None}
    tensors = centers[labels] / 2 + noise, labels, centers
    exact = oracle.value_and_gradients(spcl, *(in_double(tensor) for tensor in tensors), **options, impl="dense")
    ours = oracle.value_and_gradients(spcl, *tensors, **options, impl="triton")
    for a, b in zip(ours[1:], exact[1:], strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
