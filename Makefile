# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# Processes that run tests; 0 is one process without xdist.
WORKERS ?= 2

BIN := .venv/bin
PY := $(BIN)/python
UV := VIRTUAL_ENV="$(CURDIR)/.venv" UV_HTTP_TIMEOUT=300 $(BIN)/uv
UV_VERSION := $(shell sed -n 's/^uv==\([^ ;]*\).*/\1/p' constraints.txt)
READY := .venv/.ready
# Threads of one process: tests and the later stages of the zoo (two processes) are many small tensors, for which more threads than workers only wait for each other.
# Bytecode is kept even where the environment says otherwise: without it each process that a test starts compiles all libraries again, for half a minute.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PYTEST := $(TEST_ENV) $(BIN)/pytest -n $(WORKERS) --dist loadfile --durations=10

.PHONY: help setup quickstart zoo parity bench test test-all lint format typecheck check wheel pins clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

setup: $(READY) ## make .venv with the pinned versions (once; again when they change)

# pip only brings uv: it is many times faster, and takes torch and torchvision from one place, so that they match.
$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; Python 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv --clear .venv; \
	elif $(PYTHON) -c 'import virtualenv' 2>/dev/null; then $(PYTHON) -m virtualenv --clear .venv; \
	elif command -v uv >/dev/null; then uv venv --clear --seed --python $(PYTHON) .venv; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m pip install --quiet --target .uv "uv==$(UV_VERSION)" && .uv/bin/uv venv --clear --seed --python $(PYTHON) .venv; \
	else echo "$(PYTHON) cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv) or uv" >&2; exit 1; fi

$(READY): pyproject.toml constraints.txt | $(PY)
	@test -x $(BIN)/uv || $(PY) -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@echo "installing the pinned versions (about 5 GB with CUDA; minutes on the first run)"
	@$(UV) pip install --constraints constraints.txt --build-constraints constraints.txt --editable ".[caption,cuda,dev,parquet,peft]"
	@$(PY) -c 'import torch, torchvision' || \
	  { echo "torch and torchvision do not match; remove .venv and UV_FIND_LINKS from the environment, then make setup" >&2; exit 1; }
	@touch $@

quickstart: $(READY) ## train, test and predict from nothing, in less than 15 minutes on 2 cores
	$(BIN)/sail-lightning quickstart --out runs/quickstart

zoo: $(READY) ## train the sail-tiny model that ships with the package (an hour or two)
	$(TEST_ENV) $(PY) examples/train_sail_tiny.py

parity: $(READY) ## compare with the official code's recorded values, into docs/parity.md
	$(TEST_ENV) $(PY) docs/make_parity.py

bench: $(READY) ## speed and memory against a baseline in the official style (about twenty minutes; close other programs)
	@device=$$($(PY) -c 'import torch; print("cuda --compile" if torch.cuda.is_available() else "cpu")'); \
	  set -x; $(BIN)/sail-lightning bench --device $$device --out "benchmarks/results/$${device%% *}"

test: $(READY) ## what continuous integration runs
	$(PYTEST) -m "not slow"

test-all: $(READY) ## every test, slow ones included
	$(PYTEST)

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## fix the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY) ## types (strict where pyproject.toml says so)
	$(BIN)/mypy

check: lint typecheck test ## all three

wheel: $(READY) ## source archive and wheel, in dist/
	rm -rf build dist
	$(PY) -m build --no-isolation

pins: $(READY) ## newest versions within the ranges of pyproject.toml, into constraints.txt
	{ sed -n '/^#/p' constraints.txt; $(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --upgrade --quiet --no-header --no-annotate; } > constraints.new
	mv constraints.new constraints.txt

clean: ## remove what was built (the environment and runs/ stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find sail_lightning plugins callbacks configs tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
