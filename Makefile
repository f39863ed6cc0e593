# Each target makes .venv and installs what is missing; nothing else is needed than
# Python 3.11 to 3.13 as `python3` (another one: `make test PYTHON=python3.12`).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Much of the tests' time is tracing, which takes one core. `make test WORKERS=0` runs
# them one after the other. What a worker gets as a whole, and the order, is said in
# tests/conftest.py: xdist's own begins with the files of the most tests.
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --no-loadscope-reorder
# 3: TensorFlow's start-up notes would drown the summary of the tests.
export TF_CPP_MIN_LOG_LEVEL ?= 3
# pip would compile 20,000 modules for half a minute, most of which nobody imports. Python
# compiles the others once, also where the environment tells it to keep nothing.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile

.PHONY: help train test test-all fuzz lint format docs release-check clean
.NOTPARALLEL:

help:
	@echo "make train     train on the generated data set (12 minutes on 2 cores)"
	@echo "               more options: make train ARGS='--epochs 3 --data DIR'"
	@echo "make test      the test suite: TensorFlow, then the parity on JAX, then the portable part on PyTorch"
	@echo "make test-all  the same with the slow tests"
	@echo "make fuzz N=10000  inputs made by chance, N for each entrance"
	@echo "make lint      check style; make format repairs what can be repaired"
	@echo "make docs      the site, in site/; a warning is an error"
	@echo "make release-check  build the release, install it elsewhere and use it"

# One stamp per set of requirements; a changed setup.py installs again.
$(VENV)/.installed-run: setup.py pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: setup.py pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@ $(VENV)/.installed-run

$(VENV)/.installed-release: setup.py pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable ".[release]"
	@touch $@

train: $(VENV)/.installed-run
	PATH="$(CURDIR)/$(BIN):$$PATH" python scripts/train.py --backbone resnet50 --strategy mirrored $(ARGS)

test: SELECTION := not slow
test: ALSO := and not slow
# JAX compiles each operation of a test, which takes longer than all of PyTorch's: here
# it has the parity with the official code, and where it goes ways of its own.
test: ON_JAX := -k "official or training or detections_are"
test-all: SELECTION := slow or not slow
test-all: ALSO :=
# Most of that time is XLA optimising what runs once (103 s against 58 s of CPU time in
# tests/detectors/test_vfnet.py).
test test-all: $(VENV)/.installed-dev
	KERAS_BACKEND=tensorflow $(PYTEST) $(SIDE_BY_SIDE) -m "$(SELECTION)" $(ARGS)
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) $(SIDE_BY_SIDE) -m "backend $(ALSO)" $(ON_JAX) $(ARGS)
	KERAS_BACKEND=torch $(PYTEST) $(SIDE_BY_SIDE) -m "backend $(ALSO)" $(ARGS)

# Each entrance for what others write gets N inputs; `make test` has some hundred each.
N ?= 10000
fuzz: $(VENV)/.installed-dev
	VFNET_FUZZ=$(N) $(PYTEST) $(SIDE_BY_SIDE) -m fuzz $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The page shows what the package says of itself, so all that it imports must be there.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d build/doctrees docs site
	@! grep -rlE '(src|href)="(https?:)?//[^"]*\.(css|js|mjs|woff2?)' site --include='*.html' \
		|| { echo "these pages load assets from elsewhere" >&2; exit 1; }
	@echo "site/index.html"

# What has passed is left in dist/, ready for upload.
release-check: $(VENV)/.installed-release
	$(BIN)/python .ci/release_check.py

clean:
	rm -rf site build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
