# Every target does its own set-up: a fresh clone needs nothing but Python, make and the target's name.

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
ARGS ?=

RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
BIN := $(VENV)/bin
INSTALL := VENV='$(VENV)' PYTHON='$(PYTHON)' TORCH='$(TORCH)' tools/install.sh
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test soak sanitize bench tables format constraints clean

help:
	@echo 'make run         serve the embedded model: a page, OpenAI and Anthropic protocols; ARGS="--port 8001" for options'
	@echo 'make test        all that a change must pass: lint, format, types, layers, documents, tests'
	@echo 'make soak        all tests with ten times the draws, and the long ones'
	@echo 'make sanitize    the tests of native/ under AddressSanitizer and UBSan'
	@echo 'make bench       run every benchmark, keep the figures in benchmarks/results, write the tables anew'
	@echo 'make tables      write the tables in the documents from benchmarks/results'
	@echo 'make format      let ruff mend what it can'
	@echo 'make constraints choose the newest versions of all packages and pin them'
	@echo 'make clean       remove the virtual environment and all caches'
	@echo
	@echo 'PYTHON=python3.12  the interpreter to make the virtual environment with (3.11 or newer)'
	@echo "TORCH=cpu          ask PyTorch's own index for the build without CUDA, gigabytes smaller on Linux"
	@echo 'Both matter when the virtual environment is made: after make clean, or in a fresh clone.'

# What an install copies or compiles; the Python files are used where they lie.
INSTALLED := pyproject.toml constraints.txt $(wildcard native/*)

# A stamp is touched when all is installed; what interrupts the install leaves the stamp out.
$(RUNTIME): $(INSTALLED)
	@$(INSTALL) '' $@

$(DEV): $(INSTALLED)
	@$(INSTALL) '[dev]' $@ $(RUNTIME)

run: $(RUNTIME)
	@$(BIN)/narrows serve $(ARGS)

test: $(DEV)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m benchmarks.tables --check
	$(PYTEST)

soak: $(DEV)
	NARROWS_SOAK=1 $(PYTEST) -m '' --timeout 14400

sanitize: $(DEV)
	VENV='$(VENV)' tools/sanitize.sh

bench: $(DEV)
	@set -e; for file in benchmarks/bench_*.py; do \
	    test -e "$$file" || { echo 'no benchmarks/bench_*.py to run'; exit 0; }; \
	    echo "running $$file"; \
	    $(BIN)/python -m "benchmarks.$$(basename "$$file" .py)"; \
	done
	$(BIN)/python -m benchmarks.tables

tables: $(DEV)
	$(BIN)/python -m benchmarks.tables

format: $(DEV)
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

constraints:
	@PYTHON='$(PYTHON)' tools/pin.sh

clean:
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
