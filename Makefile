# Everything one does with Parley. Needs Python 3.11 or later and make; uses uv where it is on PATH, since it is faster.

PYTHON ?= python3
T ?=
B ?=
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --no-compile)
LOCKED := $(INSTALL) --no-deps --require-hashes -r
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

$(MADE)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Parley needs Python 3.11 or later: make PYTHON=python3.12 …")'
	@echo "making $(VENV)"
	@$(if $(UV),test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV),$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV))
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
