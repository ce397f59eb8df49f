"""The public surface: names, documentation, and what an import brings along."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import spcl_loss
from spcl_loss import METHODS

CALLABLE = {
    "DifficultyCurriculumSampler",
    "PrototypeMemory",
    "SupervisedPrototypicalContrastiveLoss",
    "prototype_difficulty",
    "prototype_difficulty_blocks",
    "supervised_prototypical_contrastive_loss",
}
PUBLIC = CALLABLE | {"METHODS"}
IMPORT = """
import random, sys, numpy, torch
states = lambda: (torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
                  torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
before, loaded = states(), set(sys.modules)
import spcl_loss
assert states() == before
assert not {"spcl_loss.testing", "torch.multiprocessing.spawn"} & (set(sys.modules) - loaded)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - loaded} - set(sys.stdlib_module_names)))
"""


def test_public_names():
    assert set(spcl_loss.__all__) - {"__version__"} == PUBLIC
    assert isinstance(spcl_loss.__version__, str)


def test_type_checkers_may_read_the_annotations():
    assert Path(spcl_loss.__file__).with_name("py.typed").is_file()


def test_importing_loads_and_changes_nothing_else():
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("spcl_loss\n", "")


@pytest.mark.parametrize("name", sorted(CALLABLE))
def test_every_public_symbol_and_method_is_documented(name):
    symbol = getattr(spcl_loss, name)
    methods = [v for k, v in vars(symbol).items() if inspect.isfunction(v) and not k.startswith("_")]
    for part in [symbol, *(methods if inspect.isclass(symbol) else [])]:
        assert part.__doc__, f"{part.__qualname__} has no docstring"


@pytest.mark.parametrize("name", sorted(CALLABLE))
def test_every_public_symbol_has_an_example_that_runs(name):
    symbol = getattr(spcl_loss, name)
    module = sys.modules[symbol.__module__]
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(symbol, name, globs=vars(module).copy()):
        runner.run(example)
    assert runner.summarize(verbose=False) == (0, runner.tries)
    assert runner.tries > 0


def test_nobody_changes_the_methods():
    with pytest.raises(TypeError):
        METHODS["spcl"]["positives"] = "outside"
    with pytest.raises(TypeError):
        METHODS["own"] = {}
