"""Launches: how much they compute, and what the interpreter hides by running one program after the other."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

from interpreted import PATHS, WARNINGS, backward, choose, dispatch, interpret, interpreter
from spcl_loss._similarity import Comparison
from spcl_loss._similarity.comparison import Upstream
from spcl_loss._similarity.kernels import config

pytestmark = WARNINGS


class Programs:
    """Runs the programs of every launch in a shuffled order, and notes which addresses each of them touches."""

    def __init__(self, monkeypatch):
        self.generator = np.random.default_rng(0)
        self.loads, self.stores = {}, {}
        builder = interpreter.InterpreterBuilder
        set_grid_dim, set_grid_idx = builder.set_grid_dim, builder.set_grid_idx
        load, store = builder.create_masked_load, builder.create_masked_store

        def start(builder, *grid):
            self.check()
            self.grid, self.order = grid, self.generator.permutation(np.prod(grid))
            set_grid_dim(builder, *grid)

        def choose_program(builder, *index):
            self.program = self.order[np.ravel_multi_index(index, self.grid)]
            set_grid_idx(builder, *map(int, np.unravel_index(self.program, self.grid)))

        def masked_load(builder, pointers, mask, *rest, **named):
            self._note(self.loads, pointers, mask)
            return load(builder, pointers, mask, *rest, **named)

        def masked_store(builder, pointers, value, mask, *rest, **named):
            self._note(self.stores, pointers, mask)
            return store(builder, pointers, value, mask, *rest, **named)

        monkeypatch.setattr(builder, "set_grid_dim", start)
        monkeypatch.setattr(builder, "set_grid_idx", choose_program)
        monkeypatch.setattr(builder, "create_masked_load", masked_load)
        monkeypatch.setattr(builder, "create_masked_store", masked_store)

    def _note(self, touched, pointers, mask):
        touched.setdefault(self.program, set()).update(pointers.data[mask.data].ravel().tolist())

    def check(self):
        """After a launch: what one program stores no other program stores or loads."""
        owner = {}
        for program, addresses in self.stores.items():
            assert not owner.keys() & addresses, "two programs of a launch store to one address"
            owner.update(dict.fromkeys(addresses, program))
        for program, addresses in self.loads.items():
            shared = owner.keys() & addresses
            assert all(owner[address] == program for address in shared), "a program loads what another one stores"
        self.loads.clear()
        self.stores.clear()


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    interpret(monkeypatch)


def _store_at_one_address(out):
    tl.store(out, tl.program_id(0))


def _load_from_a_neighbour(out):
    program = tl.program_id(0)
    tl.store(out + program, program)
    tl.load(out + 1 - program)


@pytest.mark.parametrize("kernel", [_store_at_one_address, _load_from_a_neighbour])
def test_a_race_is_seen(monkeypatch, kernel):
    programs = Programs(monkeypatch)
    triton.jit(kernel)[(2,)](torch.zeros(2, dtype=torch.int32))
    with pytest.raises(AssertionError, match="store"):
        programs.check()


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("path", PATHS)
def test_programs_of_a_launch_are_independent(monkeypatch, path, scale, descriptors):
    choose(monkeypatch, path, descriptors)
    rows, labels = torch.nn.functional.normalize(torch.randn(45, 20)), torch.randint(-1, 3, (45,))
    comparison = Comparison(labels, torch.randn(45), scale, 39, 43, True, torch.float16)
    grads = torch.randn(3, 39) * (labels[:39] >= 0)

    def run():
        found = dispatch.statistics(rows, comparison)
        return [*found, dispatch.gradient(rows, comparison, Upstream(*found[:2], grads))]

    expected = run()
    programs = Programs(monkeypatch)
    found = run()
    assert programs.stores
    programs.check()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def launches(monkeypatch):
    """Launches are noted, as (kernel, number of programs, arguments), instead of run; tiles are those of an H100."""
    noted = []

    def launch(kernel, grid):
        def note(*args, **constants):
            arguments = dict(zip(kernel.arg_names, args, strict=False)) | constants
            noted.append((kernel.fn.__name__, grid[0], arguments))

        return note

    monkeypatch.setattr(interpreter.InterpretedFunction, "__getitem__", launch)
    monkeypatch.setattr(config, "architecture", lambda device: "sm_90")
    return noted


def step(num_rows):
    rows, labels = torch.zeros(num_rows, 16), torch.zeros(num_rows, dtype=torch.int32)
    comparison = Comparison(labels, None, 10.0, num_rows, num_rows, False, torch.bfloat16)
    negative, positive, _ = dispatch.statistics(rows, comparison)
    dispatch.gradient(rows, comparison, Upstream(negative, positive, torch.zeros(3, num_rows)))


def computed_scores(kernel, num_programs, arguments):
    height, width, num_i = arguments["BM"], arguments["BN"], arguments["num_i"]
    program = torch.arange(num_programs)
    below_diagonal = (program // num_i + 1) * width - 1 <= program % num_i * height
    skipped = below_diagonal.sum() if kernel == "statistics_of_tiles" else 0
    return int(num_programs - skipped) * height * width


def test_rows_of_any_width_fit_a_grid(monkeypatch):
    """A grid may have 2^31 - 1 programs in its first dimension, 65535 in the others."""
    grids, note = [], lambda *arguments, **constants: None
    monkeypatch.setattr(interpreter.InterpretedFunction, "__getitem__", lambda _, grid: grids.append(grid) or note)
    rows, labels = torch.empty(200, 1).expand(200, 1 << 23), torch.zeros(200, dtype=torch.int32)
    monkeypatch.setattr(backward, "operand_of", lambda rows, dtype: rows)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *size, **_: self)  # no memory for a gradient
    comparison = Comparison(labels, None, 10.0, 200, 200, True, torch.float32)
    dispatch.gradient(rows, comparison, Upstream(torch.zeros(200), torch.zeros(200), torch.zeros(3, 200)))
    assert [(grid[0] > 65535, grid[1] <= 65535) for grid in grids] == [(True, True)]


@pytest.mark.parametrize(("num_rows", "bound"), [(8192, 2.26), (16384, 2.13), (32768, 2.07), (65536, 2.04)])
def test_scores_are_computed_for_little_more_than_half_the_pairs(monkeypatch, launches, num_rows, bound):
    """Units of N^2 D multiplications: 2.0 would be half the pairs in each pass, and H times the rows once."""
    products = []
    monkeypatch.setattr(backward._numerics, "accumulate", lambda target, h, rows: products.append(h.numel()))
    step(num_rows)
    products += [computed_scores(*launch) for launch in launches if launch[0] in ("statistics_of_tiles", "h_of_tiles")]
    assert 2.0 < sum(products) / num_rows**2 <= bound


class Operators(TorchDispatchMode):
    """Notes all operators that compute, or that read a value on the host."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and "empty" not in function.__name__:
            self.noted.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("num_rows", "most"), [(256, 4), (257, 16), (4096, 16), (8191, 27)])
def test_few_operators_and_launches(launches, num_rows, most):
    """Below some 4,000 rows their number decides how long a step takes."""
    with Operators() as operators:
        step(num_rows)
    assert not {"_local_scalar_dense.default", "nonzero.default", "item.default"} & set(operators.noted)
    operators.noted = [name for name in operators.noted if name != "zeros.default"]  # the step's inputs
    assert len(operators.noted) + len(launches) <= most, (operators.noted, [name for name, *_ in launches])


def test_sorted_rows_read_nothing_on_the_host(launches):
    with Operators() as operators:
        step(config.SORTED_ROWS)
    assert not {"_local_scalar_dense.default", "nonzero.default", "item.default"} & set(operators.noted)
    assert sum(name.startswith("sort") for name in operators.noted) == 2
