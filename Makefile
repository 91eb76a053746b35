# All targets work inside the checkout, in .venv (or .venv-NAME).
PYTHON ?= python3
VENV   ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN    := $(VENV)/bin

export PIP_CACHE_DIR := $(CURDIR)/$(VENV)/cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test quick lint type cover torture model test-browser test-provider test-lowest bench bench-scale docs format clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenstore requires Python 3.11 or newer; choose one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade 'pip>=25.1'
	@echo "make: installing tokenstore and its test dependencies into $(VENV), about 100 MB"
	$(BIN)/python -m pip install --editable '.[cli,google,httpx,jwt,login,postgresql]' --group dev $(CONSTRAINTS)
	@touch $@

demo: setup
	$(BIN)/tokenstore demo

# All checks. A test that requires a missing program or privilege is skipped with the reason;
# TOKENSTORE_TEST_REQUIRE=all makes that a failure.
test: lint type cover

# The inner loop: without tests that take more than a second.
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

# Slow tests: race conditions, killed processes, thousands of generated examples. SEED=… repeats a
# run.
torture: setup
	$(BIN)/python -m pytest tests/torture --verbose
	$(BIN)/python -m pytest tests -m hypothesis --hypothesis-profile torture $(SEED:%=--hypothesis-seed=%)

# The refresh protocol as a model: every order of its steps, with every failure between them.
# TRACES=1 prints how each injected fault shows.
model: setup
	$(BIN)/python -m tests.model.refresh $(TRACES:%=--traces)

# A sign-in in a real browser: Debian's chromium and chromium-driver.
test-browser: setup
	$(BIN)/python -m pytest tests/browser --ignore tests/browser/test_provider.py

# The same at a different provider, which runs on Node.js.
test-provider: setup $(VENV)/oidc-provider/ready
	$(BIN)/python -m pytest tests/browser/test_provider.py

$(VENV)/oidc-provider/ready: Makefile | setup
	@{ command -v node && command -v npm; } >/dev/null \
	|| { echo "make: these tests require node and npm; install Node.js 22 or newer, then try again" >&2; exit 1; }
	npm install --silent --no-audit --no-fund --prefix $(VENV)/oidc-provider oidc-provider@9.13.3
	@touch $@

# All dependencies pinned to the lowest versions that pyproject.toml declares.
test-lowest:
	$(MAKE) cover VENV=.venv-lowest CONSTRAINTS='--constraint .venv-lowest/lowest.txt'

.venv-lowest/ready: .venv-lowest/lowest.txt
.venv-lowest/lowest.txt: pyproject.toml
	@mkdir -p .venv-lowest
	$(PYTHON) -c 'import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*(re.sub(r"\[.*]", "", d).replace(">=", "==") for d in (*p["project"]["dependencies"], *sum(p["project"]["optional-dependencies"].values(), []))), sep="\n")' > $@

# The cost of a large store in PostgreSQL: bytes, WAL, statements. Counted, so that any machine will do.
bench-scale: setup
	$(BIN)/python -m benchmarks.postgresql

# All numbers of docs/performance.md, compared with other libraries. Takes some minutes.
bench: $(VENV)/bench-ready
	$(BIN)/python -m benchmarks --into benchmarks/results

$(VENV)/bench-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

# The documentation, in site/. Warnings are errors.
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
