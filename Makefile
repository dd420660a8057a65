# Everything one does with Parley. Needs Python 3.11 or later and make; uv, which is faster than pip, is installed into the environment.

PYTHON ?= python3
T ?=
B ?=
VENV := .venv
BIN := $(VENV)/bin
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
# uv installs in seconds what takes pip a minute; where it cannot be had, pip does it.
INSTALL = $(shell test -x $(UV) && echo $(UV) pip install --quiet --python $(BIN)/python || echo $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input)
LOCKED = $(INSTALL) --no-deps --require-hashes -r
MADE := $(VENV)/.made
export UPDATE

.PHONY: help up test check bench docs demo-llm clean

help:
	@echo "make up         run everything on this machine: http://127.0.0.1:3000 (PORT=3001 make up)"
	@echo "make test       prove it; T=services/usage narrows, UPDATE=1 rewrites golden files"
	@echo "make check      format, lint, types, borders, rules, generated pages; under a minute"
	@echo "make bench      measure it beside its peers, into bench/results/; B=--quick for the essentials"
	@echo "make docs       write the generated pages: data flow, settings, errors, OpenAPI"
	@echo "make demo-llm   run everything with a small real model instead of the simulator"
	@echo "make clean      remove the environment and caches; your data in .parley/ stays"

up: $(MADE)/parley
	@exec $(BIN)/parley up

test: $(MADE)/dev
	@$(BIN)/pytest $(T)

check: $(MADE)/dev
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest -q tests/architecture
	@$(BIN)/parley docs --check

bench: $(MADE)/dev
	@$(BIN)/python -m bench.run $(B)

docs: $(MADE)/parley
	@$(BIN)/parley docs

demo-llm: $(MADE)/demo
	@exec $(BIN)/python -m parley.demo_llm

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find libs services parley tests bench -name __pycache__ -prune -exec rm -rf {} +

# --- the environment: a stamp for each part, so that what has not changed is not done again ---------------------------

$(MADE)/venv: requirements-uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Parley needs Python 3.11 or later: make PYTHON=python3.12 …")'
	@echo "making $(VENV)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r requirements-uv.lock || echo "without uv: this takes longer"
	@mkdir -p $(MADE) && touch $@

$(MADE)/packages: requirements.lock $(MADE)/venv
	@echo "installing requirements.lock"
	@$(LOCKED) requirements.lock
	@touch $@

$(MADE)/parley: pyproject.toml $(MADE)/packages
	@echo "installing Parley itself"
	@$(INSTALL) --no-deps -e .
	@touch $@

$(MADE)/dev: requirements-dev.lock $(MADE)/parley
	@echo "installing requirements-dev.lock"
	@$(LOCKED) requirements-dev.lock
	@touch $@

$(MADE)/demo: requirements-demo.lock $(MADE)/parley
	@echo "installing a small model, 200 MB"
	@$(LOCKED) requirements-demo.lock
	@touch $@
