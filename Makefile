# Two commands: `make demo` trains SPCL beside cross-entropy on MELD; `make test` runs the tests.
# Both set up their own .venv first, once; PYTHON=python3.12 chooses the interpreter it is made from,
# PIP_ARGS goes to every pip install. `make demo` continues an interrupted run and shows a finished one;
# `make demo DEMO_ARGS=--overwrite` starts anew. Tests run in TEST_WORKERS processes of one thread each.

PYTHON ?= python3
PIP_ARGS ?=
DEMO_ARGS ?= --resume
TEST_WORKERS ?= 2
FUZZ_ARGS ?= --cases 10000
MUTATION_ARGS ?= --sample 300
VENV := .venv
BIN := $(VENV)/bin
export NO_MKDOCS_2_WARNING := 1
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

# Each worker takes whole files, so that a file's fixtures are made once. The folders come first: they take longest.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-fast fuzz faults soak mutation check bench docs check-site clean
.NOTPARALLEL:

help:
	@echo "make demo       train on MELD (on a practice corpus where MELD cannot be had) and score it"
	@echo "make test       run all tests"
	@echo "make test-fast  run the library's own tests; installs torch, numpy, pytest and hypothesis only"
	@echo "make fuzz       compare every backend of the loss with float64 loops on 10,000 random calls"
	@echo "make faults     damage files, kill trainings, fill the disk, lose ranks: what is tried and survived"
	@echo "make soak       100,000 steps of loss, memory and sampler: growth of memory, drift, time"
	@echo "make mutation   change the library one place at a time, and count what its tests notice"
	@echo "make check      ruff, mypy --strict, documentation build"
	@echo "make bench      time the loss, the memory step and the sampler against their yardsticks (half an hour)"
	@echo "make docs       build the documentation into site/"
	@echo "make check-site open every page in Chromium, wide and narrow, light and dark; needs Chromium or Chrome"
	@echo "make clean      remove .venv, caches and site/ (not runs/)"

demo: $(VENV)/erc.installed
	$(BIN)/python examples/erc_meld.py --or-practice --output runs/demo $(DEMO_ARGS)

test: $(VENV)/erc.installed $(VENV)/integrations.installed $(VENV)/kernels.installed $(VENV)/test.installed
	$(PYTEST) $(TEST_ARGS)

# The files directly in tests/ need the library, pytest and hypothesis alone.
test-fast: $(VENV)/test.installed
	$(PYTEST) tests/test_*.py $(TEST_ARGS)

# A failing case is printed as the command that runs it again.
fuzz: $(VENV)/kernels.installed $(VENV)/test.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(FUZZ_ARGS)

faults: $(VENV)/erc.installed $(VENV)/test.installed
	$(BIN)/python tests/faults.py --cases 2000
	OMP_NUM_THREADS=1 $(BIN)/python tests/accidents.py --kills 200 --mount

soak: $(VENV)/test.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py --steps 100000

mutation: $(VENV)/test.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation.py $(MUTATION_ARGS)

check: $(VENV)/check.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/bench.installed
	$(BIN)/python benchmarks/memory_step.py --output runs/benchmarks
	$(BIN)/python benchmarks/loss.py --output runs/benchmarks
	$(BIN)/python benchmarks/sampler.py --output runs/benchmarks

docs: $(VENV)/check.installed
	$(BIN)/python -m mkdocs build --strict

# No package of Python's index brings a browser, so this is apart from `make check`. Without one it fails and says so.
check-site: docs $(VENV)/site.installed
	$(BIN)/python docs/tools/check_site.py site

clean:
	rm -rf $(VENV) site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src examples tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is renewed when what it depends on is newer, so a second call installs nothing.
# torch goes first and pinned: nothing installed later can then pull in another build of it.
$(VENV)/torch.installed: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "spcl-loss needs Python 3.10 or newer; '$(PYTHON)' is not. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch numpy
	@touch $@

$(VENV)/%.installed: pyproject.toml $(VENV)/torch.installed
	$(PIP_INSTALL) --quiet -e '.[$*]'
	@touch $@
