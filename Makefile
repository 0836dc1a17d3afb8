# Every target sets up what it needs, in .venv, the first time and when the dependencies change.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: help demo test check docs bench

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.ready-demo ## score the heads of a trained model: a table, and an interactive page
	@$(BIN)/python examples/induction_score.py

test: .venv/.ready-dev ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: .venv/.ready-dev ## lint, formatting, types, import directions
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports --no-logo

docs: .venv/.ready-docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/.ready-demo ## measure against TransformerLens and plain PyTorch
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script"; done

# One environment, filled as far as a target needs. A stamp is written only after pip has finished,
# so an interrupted install is taken up again.
.venv/.ready-demo: EXTRAS :=
.venv/.ready-dev: EXTRAS := [dev]
.venv/.ready-docs: EXTRAS := [docs]

.venv/.ready-%: pyproject.toml constraints.txt | .venv/.ready
	@echo "installing interp$(EXTRAS) into .venv: a few minutes the first time"
	@$(PIP) install -c constraints.txt -e '.$(EXTRAS)'
	@touch $@

.venv/.ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "interp needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setting up .venv"
	@$(PYTHON) -m venv .venv
	@touch $@
