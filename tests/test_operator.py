"""The operator as PyTorch sees it: registration, compilation, transforms, and no value read by the host."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_loss import METHODS, SupervisedPrototypicalContrastiveLoss, _checks, _numerics
from spcl_loss import supervised_prototypical_contrastive_loss as spcl
from spcl_loss._similarity import Comparison, dense, operator, strips
from spcl_loss._similarity.comparison import Upstream
from support.values import ValuesRead

IMPLS = ["dense", "strips"]
OPTIONS = [METHODS["spcl"] | {"easy_threshold": 0.3}, METHODS["spdcl"], METHODS["bcl"], METHODS["eacl"]]


def batch(N, C=4, D=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    return embeddings, torch.randint(C, (N,), generator=generator)


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize("with_sum", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of PyTorch 2.15's opcheck
def test_opcheck(scale, with_sum, weighted):
    embeddings, labels = batch(11, dtype=torch.float64)
    rows = torch.nn.functional.normalize(embeddings.detach()).requires_grad_()
    log_weights = -torch.rand(11, dtype=torch.float64) if weighted else None
    arguments = (rows, labels, log_weights, scale, 8, 9, with_sum, torch.float64, "strips")
    torch.library.opcheck(operator._statistics_op, arguments)
    negative, positive, _ = operator._statistics_op(*arguments)
    grads = torch.rand(3, 8, dtype=torch.float64)
    statistics = negative.detach(), positive.detach(), grads
    torch.library.opcheck(operator._gradient_op, (rows.detach(), *arguments[1:8], *statistics, "strips"))


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize("tile_bytes", ["512", "100000"])
def test_each_half_stands_alone(monkeypatch, tile_bytes, scale):
    """As ranks use them: statistics of some anchors, gradients of fewer rows than there are anchors."""
    monkeypatch.setenv("SPCL_TILE_BYTES", tile_bytes)
    embeddings, labels = batch(29, dtype=torch.float64)
    labels[[3, 17]] = -1
    rows = torch.nn.functional.normalize(embeddings).detach().requires_grad_()
    comparison = Comparison(labels, None, scale, 23, 29, True, torch.float64)
    exact = dense.statistics(rows, comparison)
    grads = torch.rand(3, 23, dtype=torch.float64) * (labels[:23] >= 0)
    (expected,) = torch.autograd.grad((torch.stack(exact) * grads).sum(), rows)
    rows = rows.detach()
    for few in (0, 1, 10):
        of_few = comparison._replace(num_anchors=few, num_grads=few)
        found = operator.similarity_statistics(rows, of_few, "strips")
        valid = labels[:few] >= 0
        for ours, of_all in zip(found, exact, strict=True):
            torch.testing.assert_close(ours[valid], of_all.detach()[:few][valid])
        upstream = Upstream(exact[0].detach(), exact[1].detach(), grads)
        gradient = operator.similarity_gradient(rows, of_few, upstream, "strips")
        torch.testing.assert_close(gradient, expected[:few])


@pytest.mark.parametrize("with_sum", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("num_anchors", "num_grads"), [(20, 20), (20, 26), (20, 29), (26, 26), (26, 29)])
def test_the_gradient_of_dense_is_that_of_its_definition(num_anchors, num_grads, weighted, with_sum):
    """Anchors, blocks that want a gradient, and rows that are no candidates and hold NaN."""
    rows, labels = batch(29, dtype=torch.float64)
    rows.data[[3, 22]], labels[[3, 22]] = torch.nan, -1
    log_weights = -torch.rand(29, dtype=torch.float64) if weighted else None
    comparison = Comparison(labels, log_weights, 7.0, num_anchors, num_grads, with_sum, torch.float64)
    grads = torch.rand(3, num_anchors, dtype=torch.float64) * (labels[:num_anchors] >= 0)

    def differentiated(statistics):
        wanted = torch.stack(statistics if with_sum else statistics[:2])
        loss = (wanted * grads[: len(wanted)]).sum()
        return loss.detach(), torch.autograd.grad(loss, rows)[0][:num_grads]

    found, num_positives = dense.statistics_of(rows.split([20, 6, 3]), comparison)
    expected = dense.statistics(_numerics.unit_rows(rows, labels >= 0), comparison)
    torch.testing.assert_close(differentiated(found), differentiated(expected), rtol=1e-12, atol=1e-12)
    sizes = torch.bincount(labels[labels >= 0])
    assert num_positives.tolist() == [sizes[label] - 1 if label >= 0 else 0 for label in labels[:num_anchors]]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_module_compiles_whole_and_once(impl, options):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def criterion():
        return SupervisedPrototypicalContrastiveLoss(4, 8, queue_size=16, support_size=4, impl=impl, **options)

    eager, traced = criterion(), criterion()
    compiled = torch.compile(traced, fullgraph=True, backend=count, dynamic=True)
    for step, N in enumerate([9, 9, 20, 5, 14]):  # more rows than a queue holds, and fewer
        embeddings, labels = batch(N, seed=step)
        eager.temperature = traced.temperature = 0.09 * 0.9**step  # no power of two is crossed
        results = []
        for module in (eager, compiled):
            loss = module(embeddings, labels)
            results.append((loss, *torch.autograd.grad(loss, embeddings)))
        torch.testing.assert_close(*results)
    torch.testing.assert_close(traced.state_dict(), eager.state_dict(), rtol=0, atol=0)
    assert len(graphs) == (2 if torch.__version__.startswith("2.6.") else 1)  # 2.6 takes the first temperature as fixed


def test_evaluation_compiles_once_more():
    torch._dynamo.reset()
    graphs = []
    criterion = SupervisedPrototypicalContrastiveLoss(4, 8, queue_size=16, support_size=4)
    compiled = torch.compile(criterion, dynamic=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for expected in (1, 2, 2):
        for N in (9, 5, 20):
            compiled(*batch(N)).backward()
        assert len(graphs) == expected
        criterion.eval()
        with torch.no_grad():
            for N in (20, 9, 5):
                torch.testing.assert_close(compiled(*batch(N)), criterion(*batch(N)))
        criterion.train()
        assert len(graphs) == 2


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_autocast_changes_no_number_of_a_compiled_loss(impl, options, half):
    embeddings, labels = batch(40)
    prototypes = batch(4, seed=1)[0]

    def gradients(function, enabled):
        with torch.autocast("cpu", dtype=half, enabled=enabled):
            loss = function(embeddings, labels, prototypes, **options, impl=impl)
            return loss, *torch.autograd.grad(loss, (embeddings, prototypes))

    torch._dynamo.reset()
    compiled = torch.compile(spcl, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, True), gradients(spcl, False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_no_value_is_read(impl, options, monkeypatch):
    # On a CPU the range of labels is looked at, to raise at once; a GPU gets assertions of its own.
    monkeypatch.setattr("spcl_loss._checks._readable", lambda _: False)
    criterion = SupervisedPrototypicalContrastiveLoss(4, 8, queue_size=16, support_size=4, impl=impl, **options)
    for step in range(3):
        embeddings, labels = batch(40, seed=step)
        labels[0] = -100
        with ValuesRead():
            criterion(embeddings, labels).backward()


def test_the_watch_notices_a_value_read():
    with pytest.raises(AssertionError, match="reads values"), ValuesRead():
        bool(torch.tensor(1) > 0)


def test_values_are_not_looked_at_where_there_are_none():
    """On the meta device and within torch.func, in which a look is an error."""
    labels = torch.tensor([[7, -1], [0, 1]])

    def checked(row):
        return _checks.checked_labels(row, 2, row.device, 3, -100)

    assert torch.func.vmap(checked)(labels).equal(labels)
    assert checked(labels[0].to("meta")).is_meta
    _checks.check_any_class(torch.tensor([False], device="meta"))


class _Computing(TorchDispatchMode):
    """Counts the operators that compute something. A registered operator counts as one."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += not function.is_view and not any(name in function.__name__ for name in ("empty", "detach"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("N", "most"), [(32, 102), (300, 101), (4096, 101)])
def test_few_operators_a_step(N, most, monkeypatch):
    """Their number decides how long a step of few rows takes: some 5 microseconds each."""
    monkeypatch.setattr("spcl_loss._checks._check_range", lambda *_: None)
    criterion = SupervisedPrototypicalContrastiveLoss(4, 8)
    embeddings, labels = batch(N)
    criterion(embeddings, labels)
    with _Computing() as computing:
        torch.autograd.grad(criterion(embeddings, labels), embeddings)
    assert 50 < computing.number <= most


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to wait for")
@pytest.mark.parametrize("impl", IMPLS)
def test_no_host_synchronisation(impl):
    criterion = SupervisedPrototypicalContrastiveLoss(4, 8, queue_size=16, support_size=4, impl=impl).cuda()
    embeddings, labels = (tensor.cuda() for tensor in batch(40))
    embeddings = embeddings.detach().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(embeddings, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_second_derivatives():
    embeddings, labels = batch(6, D=3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda z: spcl(z, labels, temperature=0.5, impl="dense"), embeddings)
    (gradient,) = torch.autograd.grad(spcl(embeddings, labels, impl="strips"), embeddings, create_graph=True)
    with pytest.raises(NotImplementedError, match='impl="dense"'):
        gradient.sum().backward()


@pytest.mark.parametrize("impl", ["dense", "auto"])
def test_torch_func_transforms(impl):
    stack, labels = torch.randn(3, 9, 8), torch.arange(9) % 3

    def loss(embeddings):
        return spcl(embeddings, labels, impl=impl)

    losses = torch.stack([loss(embeddings) for embeddings in stack])
    torch.testing.assert_close(torch.func.vmap(loss)(stack), losses)
    gradients = torch.stack([torch.autograd.functional.jacobian(loss, embeddings) for embeddings in stack])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(stack), gradients)


def test_torch_func_transforms_of_strips_say_what_to_do():
    with pytest.raises(NotImplementedError, match='impl="dense"'):
        torch.func.grad(lambda z: spcl(z, torch.arange(9) % 3, impl="strips"))(torch.randn(9, 8))


def products_on_a_gpu(monkeypatch, dtype, capability=(9, 0), hip=None, fp16_accumulation=False, version="2.11.0"):
    """Overloads and operand dtypes of one `widening_product` and one `accumulate` on a simulated GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_fp16_accumulation=fp16_accumulation))
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    products = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in function.name():
                products.append((function.name().removeprefix("aten::"), args[1].dtype))
            kwargs = kwargs or {}
            # PyTorch 2.8 to 2.12 cannot trace addmm.dtype_out.
            return kwargs["out"] if "out" in kwargs else function(*args, **kwargs)

    with FakeTensorMode(), Watch():
        operand = torch.empty(4, 8, dtype=dtype, device="cuda")
        target = torch.empty(4, 4, device="cuda")
        assert _numerics.widening_product(operand, operand.T).dtype == torch.float32
        _numerics.accumulate(target, operand, operand.T)
    return products


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_half_precision_are_widened_where_a_gpu_cannot(monkeypatch, dtype):
    if hasattr(torch.ops.aten.mm, "dtype"):  # since PyTorch 2.8
        # The sum is taken into the target, without a float32 product beside it.
        assert products_on_a_gpu(monkeypatch, dtype) == [("mm.dtype", dtype), ("addmm.dtype_out", dtype)]
        assert products_on_a_gpu(monkeypatch, dtype, version="2.9.1") == [("mm.dtype", dtype)] * 2
    for unable in ({"capability": (7, 5)}, {"hip": "6.4"}, {"fp16_accumulation": True}):
        assert products_on_a_gpu(monkeypatch, dtype, **unable) == [("mm", torch.float32)] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_in_half_precision_round_the_operands_only(dtype):
    """What a GPU computes for half inputs, with its products emulated: statistics and gradients stay float32."""
    rows = torch.nn.functional.normalize(torch.randn(300, 64)).to(dtype).float()
    labels = torch.arange(300) % 7
    comparison = Comparison(labels, None, 10.0, 280, 300, True, torch.float32)
    halves = comparison._replace(product_dtype=dtype)
    exact = strips.statistics(rows, comparison)
    ours = strips.statistics(rows, halves)
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-4)
    grads = torch.randn(3, 280) * 1e-6  # as small as a mean over many rows makes them
    upstream = Upstream(exact[0], exact[1], grads)
    expected = strips.gradient(rows, comparison, upstream)
    error = strips.gradient(rows, halves, upstream) - expected
    assert error.norm() < 2 * torch.finfo(dtype).eps * expected.norm()
