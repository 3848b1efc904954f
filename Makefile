# Each target does its own set-up, once: the stamp says that .venv matches the requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH ?= quickstart cold_start iterate depth peft_parity crash gsm8k \
	stream contributors refresh rebase squash merge \
	train methods quantised large memory plan \
	export_parity imports serve serve_load serve_zipf share hub ray sharded images

# a process a core; more threads in each would wait for one another. Bytecode is kept: tests start
# many short processes, and pytest rewrites its plugins' assertions anew wherever it is not
EACH := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto

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
	$(EACH) --dist loadfile -m 'not slow'

# slow tests differ in length, so what a process has left another takes; clusters come last, alone
test: check
	$(EACH) --dist worksteal -m 'slow and not alone'
	$(BIN)/python -m pytest -m alone

bench: install
	for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name --keep || exit 1; done

clean:
	rm -rf $(VENV) build src/*.egg-info
