# Two commands on a fresh machine with Python 3.10 or newer, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell git ls-files -co --exclude-standard apcaudit vol_plugins symbols pyproject.toml README.md 2>/dev/null)

.PHONY: demo test versions lint bench clean

# The seed's case as a crash dump, stock vol on it, and the same rows as JSON lines; then a machine with nothing wrong.
demo: $(VENV)/.demo
	@mkdir -p demo
	$(BIN)/apcaudit synth seed --format dump -o demo/seed.dmp
	$(BIN)/vol -q --offline -f demo/seed.dmp windows.apcaudit
	@$(BIN)/vol -q --offline -r jsonl -f demo/seed.dmp windows.apcaudit --wide > demo/seed.jsonl
	@echo; echo "The same as JSON lines in demo/seed.jsonl, and from those as cards (apcaudit show):"; echo
	@$(BIN)/apcaudit show demo/seed.jsonl
	$(BIN)/apcaudit synth desktop --format dump -o demo/desktop.dmp
	@$(BIN)/vol -q --offline -r jsonl -f demo/desktop.dmp windows.apcaudit --wide --all > demo/desktop.jsonl
	@echo; echo "An ordinary machine, all of its threads:"; echo
	@$(BIN)/apcaudit show demo/desktop.jsonl --min-severity medium

# A file stays with one process: what it builds for its tests is built once. tests/conftest.py gives the order of files.
test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# The same rows under other versions of volatility3, each in an environment of its own.
versions: $(VENV)/.test
	$(BIN)/python -m tests.versions

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	PYTHONPATH=vol_plugins $(BIN)/lint-imports

# Ours and the peers side by side: tables on stdout. BENCH="--quick" for a small run.
bench: $(VENV)/.demo
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) demo build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

$(VENV)/.test: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	@touch $@
