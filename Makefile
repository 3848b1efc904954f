# Each target does its own set-up, once: the stamp says that .venv matches the requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH ?= cold_start depth peft_parity crash gsm8k stream contributors refresh rebase squash merge

.PHONY: install quickstart test check lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/lamina quickstart

lint: install
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint
	$(BIN)/python -m pytest -m 'not slow'

test: lint
	$(BIN)/python -m pytest

bench: install
	for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name --keep || exit 1; done

clean:
	rm -rf $(VENV) build src/*.egg-info
