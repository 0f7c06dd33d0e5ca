# Every target does its own set-up: `make demo` and `make test` work on a fresh clone with nothing but Python >= 3.10.
# PYTHON=/path/to/python picks an interpreter; INSTALL_FLAGS="--torch-backend=cpu" (a flag of uv) avoids CUDA packages.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3.10 python3 python)
INSTALL_FLAGS ?=
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Importing torch, timm and transformers from source takes 20 s, in each of a hundred processes that the tests start:
# bytecode is kept, in .venv and nowhere else, even where the shell forbids it.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode

.PHONY: help setup demo test test-slow lint format types docs docs-check bench-smoke clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(READY)  ## make .venv and install the package with its development tools

# A Python counts when it runs, is new enough and can make a virtual environment. A .venv without pip was cut short.
$(READY): pyproject.toml
	@set -euo pipefail; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  python=""; \
	  for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then \
	      python="$$candidate"; break; \
	    fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "make setup: none of $(CANDIDATES) is a Python 3.10 or newer with the venv module; install one (Debian and Ubuntu: apt install python3 python3-venv) or name it with PYTHON=/path/to/python." >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" -V)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv </dev/null || true; \
	if ! { [ -x $(BIN)/uv ] && $(BIN)/uv pip install --python $(BIN)/python $(INSTALL_FLAGS) -e ".[dev]" </dev/null; }; then \
	  echo "uv could not install the packages; trying again with pip"; \
	  $(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]" </dev/null; \
	fi; \
	$(BIN)/python -m tokensieve.ops.cpu || true; \
	touch $(READY)

demo: $(READY)  ## the main job on the bundled digits: tables, plot and pictures in demo-output/
	$(BIN)/tokensieve demo --output demo-output --force

test: $(READY)  ## all tests but the slow ones
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(READY)  ## the slow tests alone
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

lint: $(READY)  ## style: ruff check, ruff format --check, and the order of the package's rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_rooms.py

format: $(READY)  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy on src, strict as pyproject.toml says
	$(BIN)/mypy

docs: $(READY)  ## write what is generated: parts of README.md, docs/, and what editors read of the package
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/python scripts/generate_faces.py

docs-check: $(READY)  ## fail when they are stale
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/python scripts/generate_faces.py --check

bench-smoke: $(READY)  ## two minutes of benchmarks on random weights and numbers, into demo-output/bench-smoke
	$(BIN)/python -m benchmarks speed --preset smoke --output demo-output/bench-smoke --force

clean:  ## remove what the targets above made, .venv included
	rm -rf $(VENV) demo-output dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
