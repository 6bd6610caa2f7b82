# The menu. Every target works on a machine with Python 3.11 and nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
WORKSPACE := $(or $(PROSEG_HOME),proseg-runs)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test slow long check format ui constraints

help:
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/ready  ## make the environment in .venv

.venv/ready: pyproject.toml constraints.txt
	@echo "Installing into .venv, once; this takes two minutes or more ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup  ## search, retrain and export on the embedded data
	@find $(WORKSPACE)/sources/npc -name '*.h5' 2>/dev/null | grep -q . || \
	$(BIN)/proseg-tune data standin npc --subjects 10,3,3
	@study=demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/proseg-tune launch demo --study $$study && \
	$(BIN)/proseg-tune best $$study --export proseg-export/$$study && \
	$(BIN)/proseg-tune report $$study && \
	printf '\nCompare the runs:  make ui\nUse the model:     proseg.load("proseg-export/%s"), see its README.md\n' $$study

test: setup  ## the quick tests
	$(BIN)/python -m pytest -n auto --dist loadfile

slow: setup  ## the tests that start Ray, several processes or an installation
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

long: setup  ## the benchmarks that search, in small
	$(BIN)/python -m pytest -m long

check: setup  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: setup  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: setup  ## MLflow's pages over the workspace, on this machine only
	$(BIN)/proseg-tune ui

constraints: setup  ## pin what is installed now
	@{ echo "# The versions this release was tested with (pip install -c constraints.txt). Made by \`make constraints\`."; \
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(pip|setuptools|proseg-tune)==' | grep -v '@' | \
	sed 's/+cpu//'; } > constraints.txt
