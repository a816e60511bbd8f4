# make demo   install into a virtual environment, train a small model for two minutes, generate text
# make test   install into a virtual environment, lint, type check, run the tests
# make test-all   make test, make newest, make thorough
# make newest   make test with NEWEST
# make thorough   the rest of the tests, and every kernel compiled for every architecture
# make docs   the documents as a site, in build/site; a broken link is an error
# PYTHON chooses the interpreter: make test PYTHON=python3.12 (its own environment, without torch)

PYTHON ?= python3
NEWEST ?= python3.12
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV ?= .venv$(if $(filter python3,$(PYTHON)),,-$(VERSION))
BIN := $(VENV)/bin
comma := ,
# An open torch requirement pulls gigabytes of CUDA; constraints.txt pins it, for Python 3.11 only.
TORCH := $(if $(filter 3.11,$(VERSION)),$(comma)torch)
SEED ?= 0

.PHONY: demo test test-all newest thorough lint types unit docs install clean

demo: $(VENV)/.demo
	$(BIN)/python -m megalodon_jax demo --seed $(SEED)

test: lint types unit

test-all: test newest thorough

newest:
	$(MAKE) test PYTHON=$(NEWEST)

thorough: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m "all_targets or thorough"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright --pythonpath $(BIN)/python $(if $(TORCH),,--project pyright-without-torch.json)

unit: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	XLA_FLAGS=--xla_force_host_platform_device_count=2 $(BIN)/python -m pytest -n 2 -m optimized

docs: $(VENV)/.test
	$(BIN)/mkdocs build --strict --quiet

install: $(VENV)/.test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,bench,docs,inspect$(TORCH)]"
	touch $@

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis
