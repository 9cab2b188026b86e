# Everything a checkout needs: `make run` serves the default model, `make test` tests all that this machine can.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := forge_cpu forge_llama forge_kv_paged forge_grammar forge_cuda
LOCAL := -e . $(foreach plugin,$(PLUGINS),-e plugins/$(plugin))
# The distributions require each other, so that one command has to install them all. Torch is named first: a
# plain range would bring its CUDA build.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
SOURCES := pyproject.toml constraints.txt $(foreach plugin,$(PLUGINS),plugins/$(plugin)/pyproject.toml)
CHECKED := src plugins tests benchmarks conftest.py

CUDA_TESTS := plugins/forge_cuda/tests

.PHONY: install run test test-cuda test-cuda-interpreted test-cuda-compiled test-all lint format bench clean

install: $(VENV)/.installed

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(LOCAL)
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test]' --editable 'plugins/forge_cuda[test]'
	touch $@

run: install
	$(BIN)/forge run

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest $(CUDA_TESTS)/interpreted -m quick
	$(BIN)/python -m pytest $(CUDA_TESTS)/compiled -m quick

# All that can be proven about the GPU kernels without a GPU. Interpreting and compiling them can't share a process: they
# run side by side, for some 13 minutes on two cores.
test-cuda: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(CUDA_TESTS)
	$(MAKE) --jobs=2 --output-sync=target test-cuda-interpreted test-cuda-compiled

test-cuda-interpreted: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(CUDA_TESTS)/interpreted

test-cuda-compiled: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(CUDA_TESTS)/compiled

# `make test` has a minute of mixed load; here it goes on for half an hour.
test-all: test
	FORGE=$(BIN)/forge scripts/test_server.sh
	FORGE_SOAK_SECONDS=1800 $(BIN)/python -m pytest -s tests/soak

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

bench: install
	FORGE=$(BIN)/forge scripts/benchmark.sh

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
