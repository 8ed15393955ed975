# Every target makes the environment that it needs; `make help` lists them.

PYTHON ?= python3
PYTHON_PARITY ?= python3.11

VENV := .venv
VENV_PARITY := .venv-parity
VENV_TPU := .venv-tpu
BASE := $(VENV)/.base
DEV := $(VENV)/.dev
PARITY := $(VENV_PARITY)/.parity
TPU := $(VENV_TPU)/.tpu

# Two files of tests at a time, in the order of tests/conftest.py.
BY_FILE := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test parity pods lint format bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(BASE)  ## install the package and run the demonstration
	$(VENV)/bin/python scripts/demo.py $(CHECKPOINT)

test: $(DEV)  ## run the tests, warnings as errors
	$(VENV)/bin/python -m pytest --ignore=tests/parity_torch --ignore=tests/drop_in $(BY_FILE)

parity: $(PARITY)  ## compare with PyTorch in an environment of its own (Python 3.11)
	$(VENV_PARITY)/bin/python -m pytest tests/parity_torch tests/drop_in $(BY_FILE)

pods: $(TPU)  ## compile for TPUs that need not be there: steps, their loops, cycles and memory
	JAX_PLATFORMS=cpu $(VENV_TPU)/bin/python -m pytest tests/test_compile_for.py

lint: $(DEV)  ## check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

format: $(DEV)  ## mend style and formatting
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(PARITY)  ## measure speed and memory on this machine
	$(VENV_PARITY)/bin/python scripts/benchmark.py

clean:  ## remove environments, caches and build products
	rm -rf $(VENV) $(VENV_PARITY) $(VENV_TPU) .cache .pytest_cache .ruff_cache .hypothesis build dist out *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE): setup.py pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(DEV): $(BASE)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(PARITY): setup.py pyproject.toml
	test -x $(VENV_PARITY)/bin/python || $(PYTHON_PARITY) -m venv $(VENV_PARITY)
	$(VENV_PARITY)/bin/python -m pip install --quiet --editable '.[parity]'
	touch $@

$(TPU): setup.py pyproject.toml
	test -x $(VENV_TPU)/bin/python || $(PYTHON) -m venv $(VENV_TPU)
	$(VENV_TPU)/bin/python -m pip install --quiet --editable '.[tpu]' beartype hypothesis pytest
	touch $@
