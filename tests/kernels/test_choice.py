"""Which backend `auto` takes, and that no fault of the kernels ends a training."""

import contextlib
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import triton

from interpreted import WARNINGS, choose, dispatch, interpret
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity import Comparison, operator, strips
from spcl_loss._similarity.kernels import config, probe
from support import oracle

pytestmark = WARNINGS
NUM_ROWS = 40


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """As in a new process, and with kernels that the interpreter runs."""
    interpret(monkeypatch)
    monkeypatch.setattr(probe, "_works", {})


@pytest.fixture
def on_a_gpu(monkeypatch):
    """`auto` treats CPU tensors as a GPU's."""
    choose(monkeypatch, "tiles")
    monkeypatch.setattr(config, "preferred", lambda device, product_dtype: True)
    monkeypatch.setattr(operator, "_DENSE_ROWS", 0)
    tensors = torch.randn(NUM_ROWS, 16), torch.arange(NUM_ROWS) % 5, torch.randn(5, 16)
    return lambda impl: oracle.value_and_gradients(spcl, *tensors, impl=impl)


def comparison(device=("cuda", 0), product_dtype=torch.bfloat16):
    """What the choice of a backend looks at."""
    labels = SimpleNamespace(device=torch.device(*device), shape=(4,))
    return Comparison(labels, None, 10.0, 4, 4, False, product_dtype)


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_auto_takes_the_kernels_where_they_run(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(operator, "kernels_work", lambda device, comparison: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert operator._backend("auto", comparison()) is dispatch
    assert not operator.uses_dense("auto", comparison())
    assert operator._backend("triton", comparison()) is dispatch
    assert operator._backend("strips", comparison()) is strips
    for other in (comparison(("cpu",)), comparison(product_dtype=torch.float64)):
        assert operator._backend("auto", other) is strips
        assert operator.uses_dense("auto", other)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert operator._backend("auto", comparison()) is strips
    with pytest.raises(ValueError, match=r"compute capability 8\.0"):
        operator._backend("triton", comparison())


def test_auto_leaves_full_float32_to_the_vendors_products(monkeypatch):
    monkeypatch.setattr(operator, "kernels_work", lambda device, comparison: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    in_float32 = comparison(product_dtype=torch.float32)
    for precision, taken in [("ieee", strips), ("tf32", dispatch)]:
        monkeypatch.setattr(config, "_allows_tf32", lambda precision=precision: precision == "tf32")
        assert operator._backend("auto", in_float32) is taken
        assert operator.uses_dense("auto", in_float32) == (taken is strips)
        assert operator._backend("triton", in_float32) is dispatch


@pytest.mark.parametrize(
    ("installed", "reason"),
    [(None, "not installed"), ("3.5.1", r"3\.6 or newer; this is Triton 3\.5\.1"), ("2.10.0", r"3\.6 or newer")],
)
def test_auto_does_without_triton(monkeypatch, installed, reason):
    monkeypatch.setitem(sys.modules, "triton", installed and SimpleNamespace(__version__=installed))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert operator._backend("auto", comparison()) is strips
    assert operator.uses_dense("auto", comparison())
    with pytest.raises(ValueError, match=reason):
        operator._backend("triton", comparison())


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0+git1234", "4.0.0"])
def test_newer_versions_of_triton_will_do(monkeypatch, version):
    monkeypatch.setattr(triton, "__version__", version)
    assert config.unavailable_reason(torch.device("cpu"), torch.float32) is None


def test_auto_tries_the_kernels_once_and_takes_them(monkeypatch, on_a_gpu):
    tried = []
    find_errors = probe._errors
    monkeypatch.setattr(probe, "_errors", lambda *args: tried.append(args) or find_errors(*args))
    before = torch.get_rng_state()
    found = on_a_gpu("auto")
    assert torch.equal(torch.get_rng_state(), before)
    assert len(tried) == 1
    assert equal(found, on_a_gpu("triton"))
    on_a_gpu("auto")
    assert len(tried) == 1


@contextlib.contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "state",
    [
        torch.inference_mode,
        torch.no_grad,
        partial(torch.autocast, "cpu", torch.bfloat16),
        deterministic_algorithms,
        float64_by_default,
        partial(torch.device, "meta"),
    ],
)
def test_the_state_of_the_first_call_does_not_decide(on_a_gpu, state):
    """A warning would be an error here."""
    tensors = torch.randn(NUM_ROWS, 16), torch.arange(NUM_ROWS) % 5
    with state():
        found = spcl(*tensors)
    assert list(probe._works.values()) == [True]
    assert torch.equal(found, spcl(*tensors, impl="triton"))


def no_compiler(*_):
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def wrong_gradient(*args, compute=dispatch.gradient):
    return 1.1 * compute(*args)


def not_a_number(*args, compute=dispatch.statistics):
    return [value * torch.nan for value in compute(*args)]


@pytest.mark.parametrize(
    ("broken", "function", "reason"),
    [
        ("statistics", no_compiler, "RuntimeError: Failed to find C compiler"),
        ("gradient", wrong_gradient, "disagree with strips"),
        ("statistics", not_a_number, "disagree with strips"),
    ],
)
def test_auto_warns_once_and_goes_on_where_the_kernels_fail(monkeypatch, on_a_gpu, broken, function, reason):
    monkeypatch.setattr(dispatch, broken, function)
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        found = on_a_gpu("auto")
    assert sum("Triton kernels" in str(warning.message) for warning in caught) == 1
    assert equal(found, on_a_gpu("strips"))
    assert equal(on_a_gpu("auto"), found)  # a second warning would be an error


def test_triton_insists(monkeypatch, on_a_gpu):
    monkeypatch.setattr(dispatch, "statistics", no_compiler)
    with pytest.raises(RuntimeError, match="Failed to find C compiler"):
        on_a_gpu("triton")


def test_kernels_are_not_tried_during_a_capture(monkeypatch, on_a_gpu):
    monkeypatch.setattr(probe, "_errors", lambda *args: pytest.fail("tried"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.warns(RuntimeWarning, match="before the capture"):
        assert not probe.kernels_work(torch.device("cpu"), comparison(("cpu",)))
    assert probe._works == {}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(probe, "_errors", lambda *args: [0.0] * 4)
    assert probe.kernels_work(torch.device("cpu"), comparison(("cpu",)))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert probe.kernels_work(torch.device("cpu"), comparison(("cpu",)))


def test_kernels_are_not_tried_while_a_graph_is_traced(monkeypatch, on_a_gpu):
    rows, labels = torch.nn.functional.normalize(torch.randn(NUM_ROWS, 8)), torch.arange(NUM_ROWS) % 5
    asked = []
    monkeypatch.setattr(operator, "kernels_work", lambda *args: asked.append(args) or False)
    traced = []

    def backend(graph, inputs):
        traced.append(list(asked))
        return graph

    torch._dynamo.reset()
    torch.compile(spcl, fullgraph=True, backend=backend)(rows, labels)
    assert traced == [[]] and len(asked) == 1


def test_a_graph_traced_on_a_gpu_decides_for_few_rows_without_asking_the_device(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for question in ("unavailable_reason", "_allows_tf32"):
        monkeypatch.setattr(config, question, lambda *args: pytest.fail("asked"))
    assert not operator.uses_dense("auto", comparison())
    assert operator.uses_dense("auto", comparison(product_dtype=torch.float32))
    assert operator.uses_dense("auto", comparison(("cpu",)))


def test_without_a_working_gpu_driver_auto_goes_on():
    """The real compiler and launcher, on a machine or for tensors that they cannot serve."""
    script = """
import warnings
import torch
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity.kernels import config
config.preferred = lambda device, product_dtype: True
config.architecture = lambda device: "sm_90"
rows, labels = torch.randn(140, 16), torch.arange(140) % 5
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = spcl(rows, labels)
assert torch.equal(found, spcl(rows, labels, impl="strips"))
assert len(caught) == 1 and "without its Triton kernels" in str(caught[0].message), caught
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
