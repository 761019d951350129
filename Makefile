# Everything runs in .venv, which the first target that needs it sets up. Needs Python >= 3.11 and make.
#   make PYTHON=python3.12 demo          another interpreter
#   make TORCH='torch --index-url https://download.pytorch.org/whl/cpu' demo    another build of torch
PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
# with compiled files kept: starting a process of the tests takes a third of the time, and they start many
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 3 --dist worksteal
STAMP := $(VENV)/.installed
SERVERS := $(VENV)/.servers

.DEFAULT_GOAL := help
.PHONY: help venv demo test quick lint types pytest format bench fuzz docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## set up .venv (done by every other target when needed)

# torch first and by itself, so that the build asked for is not replaced by what the dependencies would choose
$(STAMP): pyproject.toml setup.py dynaclr_wds/read/copy.c dynaclr_wds/row_checks.c dynaclr_wds/plan/anchors.c etl/cut/pixels.c
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python %d.%d is too old: this needs 3.11 or later. Try: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $(STAMP)

# servers and a browser that tests start and pip can't install; without one, the tests that need it are skipped and say how to get it
$(SERVERS): $(STAMP) tests/servers/programs.py
	@$(BIN)/python -m tests.servers.programs && touch $(SERVERS) || true

demo: $(STAMP)  ## simulate, build shards, train twice, embed, evaluate, all on one page: under 6 minutes on two cores
	$(BIN)/python -m benchmarks.demo

test: lint types pytest  ## all that .ci/run runs: format, lint, types, tests

quick: lint types $(SERVERS)  ## the same without the tests that are marked slow
	$(PYTEST) -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

pytest: $(STAMP) $(SERVERS)
	$(PYTEST)

format: $(STAMP)  ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## samples/s of the loader beside plain WebDataset and memcpy
	$(BIN)/python benchmarks/loader.py

fuzz: $(STAMP)  ## open 10,000 forged sets and build from 2,000 forged sources; minutes
	$(BIN)/python -m tests.hostile.fuzz
	$(BIN)/python -m tests.hostile.sources

docs: $(STAMP)  ## make a site of the documents in build/site; a link that leads nowhere stops it
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs build/site
	@echo build/site/index.html

clean:  ## remove what the targets made, .venv included
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis lightning_logs
