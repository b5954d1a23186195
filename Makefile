# Everything a newcomer or CI needs, with nothing but Python 3.11+, pip and make. Each target sets up what it needs in .venv
# and leaves a stamp, so that a second run starts at once.
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .peers
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
PEERS_STAMP := $(PEERS)/.stamp
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
ROOM ?=
TEST_MODEL := smollm2-135m

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench peers constraints clean

help:
	@echo "make demo             serve a real model to three apps at once, with and without promises (first run downloads about 250 MB)"
	@echo "make test             the tests (about 12 minutes on two cores; pulls $(TEST_MODEL) once, 93 MB)"
	@echo "make test-all ROOM=x  also the long ones of one room (or of all): full grids, fuzzing, browser, peers (after make peers)"
	@echo "make lint             ruff, mypy, import rules"
	@echo "make bench            the promises benchmark: five quiet pairs of fcfs and headway"
	@echo "make peers            install the engines we compare with, in $(PEERS)"
	@echo "make format | constraints | clean"

demo: $(RUN_STAMP)
	@$(BIN)/headway bench demo

test: $(DEV_STAMP) test-model
	@$(BIN)/python -m pytest

test-all: $(DEV_STAMP) test-model
	@$(BIN)/python -m pytest --all -rs $(if $(ROOM),tests/$(ROOM))

lint: $(DEV_STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(DEV_STAMP)
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(RUN_STAMP)
	@$(BIN)/python -m benchmarks.promises

peers: $(PEERS_STAMP)

# The one download of `make test`. HEADWAY_TEST_MODEL=FILE uses a file at hand, OFFLINE=1 skips the tests that need one.
.PHONY: test-model
test-model: $(DEV_STAMP)
	@if [ -n "$$HEADWAY_TEST_MODEL" ]; then echo "Tests use the model file of HEADWAY_TEST_MODEL."; \
	elif [ -n "$$OFFLINE" ]; then echo "OFFLINE is set: tests that need $(TEST_MODEL) are skipped unless it was pulled before."; \
	else echo "The tests need one real model, $(TEST_MODEL) (93 MB, pulled once into the cache; OFFLINE=1 to do without):"; \
	$(BIN)/headway pull $(TEST_MODEL); fi

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Headway needs Python 3.11, 3.12 or 3.13; this is %d.%d. Try: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import platform, sys; s, m = platform.system(), platform.machine(); sys.exit(None if (s, m) == ("Linux", "x86_64") else "Headway runs on Linux x86-64 so far; %s %s is not supported yet." % (s, m))'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed. On Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@touch $@

# The tests' environment holds everything the demo needs: whoever has it installs nothing again.
$(RUN_STAMP): $(VENV)/.stamp-venv pyproject.toml constraints.txt
	@if [ ! -f $(DEV_STAMP) ]; then echo "Setting up $(VENV): numba, llvmlite, tokenizers, uvicorn ... (under 150 MB, once)"; \
	$(BIN)/python $(PIP_INSTALL) --editable '.[serve,bench]'; else $(MAKE) --no-print-directory $(DEV_STAMP); fi
	@touch $@

$(DEV_STAMP): $(VENV)/.stamp-venv pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for development: the server's packages, pytest, hypothesis, ruff, mypy ... (about 200 MB, once)"
	@$(BIN)/python $(PIP_INSTALL) --editable '.[serve,bench,dev]'
	@touch $@ $(RUN_STAMP)

$(PEERS_STAMP): benchmarks/peers.txt
	@echo "Setting up $(PEERS): llama.cpp's bindings, transformers and torch (several hundred MB, once)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check --quiet --requirement benchmarks/peers.txt
	@touch $@

constraints: $(DEV_STAMP)
	@grep '^#' constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable --exclude headway | sort --ignore-case

clean:
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/headway.egg-info
