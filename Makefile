# Headrace: everything that a developer runs. `make` alone lists it.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PYTEST  := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

.PHONY: help install run test test-fast test-full check lint gates format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## install into .venv, pinned; nothing when that is up to date
	@:

run: install ## serve: http://127.0.0.1:11435, with a small demo model unless you configured others
	@exec $(BIN)/headrace up

test: install tools lint ## all checks and tests, but for the long ones
	@$(PYTEST) -m "not full"

test-fast: install ## the tests that take less than a minute together
	@$(PYTEST) -n 2 --dist loadfile -m "not slow and not full"

test-full: install tools lint ## everything, chaos and soak included
	@$(PYTEST)

check: lint gates ## format, lint, types, floors, and the gates on sizes, documents and requirements

lint: install
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null

gates: install
	@$(PYTEST) tests/gates

format: install ## bring the code into form
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: install tools ## measure the gateway against others on this machine
	@exec $(BIN)/python -m bench

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist bench/build
	find src tests bench scripts -name __pycache__ -prune -exec rm -rf {} +

.PHONY: tools
tools: # what the tests need of the system
	@scripts/require-apt gcc curl valgrind postgresql redis-server nginx

$(STAMP): pyproject.toml constraints.txt scripts/install
	@scripts/install $(VENV)
