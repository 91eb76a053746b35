# One verb a target. Everything is set up in the checkout: .venv (or .venv-NAME), nothing outside it.
PYTHON ?= python3
VENV   ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN    := $(VENV)/bin

export PIP_CACHE_DIR := $(CURDIR)/$(VENV)/cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test quick lint type cover torture model test-browser test-provider test-lowest bench bench-scale docs format clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenstore needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade 'pip>=25.1'
	@echo "make: installing tokenstore and what its tests need into $(VENV), about 100 MB"
	$(BIN)/python -m pip install --editable '.[cli,google,httpx,login,postgresql]' --group dev $(CONSTRAINTS)
	@touch $@

demo: setup
	$(BIN)/tokenstore demo

# Complete. What needs a program or a privilege that is not there is skipped and says so;
# TOKENSTORE_TEST_REQUIRE=all makes that a failure.
test: lint type cover

# The inner loop: no test that takes more than a second.
quick: lint type
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist worksteal --quiet

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

type: setup
	$(BIN)/mypy

cover: setup
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest --cov --cov-report=term --numprocesses 2 --dist worksteal

# What takes minutes: many rounds of the race, processes that are killed at work, made-up data by the
# thousand. SEED=… repeats one.
torture: setup
	$(BIN)/python -m pytest tests/torture --verbose
	$(BIN)/python -m pytest tests -m hypothesis --hypothesis-profile torture $(SEED:%=--hypothesis-seed=%)

# The refresh protocol as a model: every order of its steps, with everything that may fail between them.
# TRACES=1 prints how each fault in it shows.
model: setup
	$(BIN)/python -m tests.model.refresh $(TRACES:%=--traces)

# A real browser, Debian's chromium and chromium-driver, goes through a sign-in.
test-browser: setup
	$(BIN)/python -m pytest tests/browser --ignore tests/browser/test_provider.py

# The same at another provider, which runs on Node.js.
test-provider: setup $(VENV)/oidc-provider/ready
	$(BIN)/python -m pytest tests/browser/test_provider.py

$(VENV)/oidc-provider/ready: Makefile | setup
	@{ command -v node && command -v npm; } >/dev/null \
	|| { echo "make: these tests need node and npm; install Node.js 22 or newer, then try again" >&2; exit 1; }
	npm install --silent --no-audit --no-fund --prefix $(VENV)/oidc-provider oidc-provider@9.13.3
	@touch $@

# The lowest versions that pyproject.toml declares, each pinned to its lower bound.
test-lowest:
	$(MAKE) cover VENV=.venv-lowest CONSTRAINTS='--constraint .venv-lowest/lowest.txt'

.venv-lowest/ready: .venv-lowest/lowest.txt
.venv-lowest/lowest.txt: pyproject.toml
	@mkdir -p .venv-lowest
	$(PYTHON) -c 'import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*(re.sub(r"\[.*]", "", d).replace(">=", "==") for d in (*p["project"]["dependencies"], *sum(p["project"]["optional-dependencies"].values(), []))), sep="\n")' > $@

# What a large store in PostgreSQL takes: bytes, log, statements. Counted, so that it may run anywhere.
bench-scale: setup
	$(BIN)/python -m benchmarks.scale

# Every number of docs/performance.md, measured anew beside other libraries, in some minutes.
bench: $(VENV)/bench-ready
	$(BIN)/python -m benchmarks --into benchmarks/results

$(VENV)/bench-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

# The site, into site/. Warnings are errors.
docs: $(VENV)/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

$(VENV)/docs-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .venv-* dist build site .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
