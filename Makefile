# Everything runs in .venv, which the first target that needs it builds; `make help` lists the targets.
# A stamp file per set of packages keeps later calls from installing again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -c constraints.txt

# Tiny models gain nothing from threads; one process a core does. Extra arguments: make test PYTEST_ARGS="-k credit"
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test pytest lint format bench docs clean

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '%-8s %s\n' "$$name" "$$text"; done

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is older than Python 3.11; name another with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-core: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.stamp-core

demo: $(VENV)/.stamp-core  ## Train, read and report on the bundled model and data
	$(BIN)/tokenq demo $(ARGS)

test: lint pytest  ## Lint, type check, run the tests

pytest: $(VENV)/.stamp-dev  ## The tests alone
	$(PYTEST) $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev  ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-dev  ## Training step, speed and memory beside TRL (see docs)
	$(BIN)/python -m benchmarks.train_step $(ARGS)

docs: $(VENV)/.stamp-dev  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Remove what builds and tests left; keeps .venv and your runs
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
