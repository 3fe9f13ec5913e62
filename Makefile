# `make help` lists the targets. Each commit passes `make test`; `make test-ci` runs the remaining tests.
# Requires only python3 and make: the first target creates the virtual environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help test test-ci test-all test-matrix check lint types imports format demo serve bench soak migrations messages package screenshots
.PHONY: clean docs docs-serve

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py $(VENV) test dev demo
	@touch $@

test: $(INSTALLED)  ## lint, types and the quick tests, half on SQLite, half on PostgreSQL; T=tests/unit: only these, on SQLite
ifdef T
	$(BIN)/python -m pytest -q $(T)
else
	$(BIN)/python tools/gate.py test
endif

test-ci: $(INSTALLED)  ## the remaining tests: MariaDB, newest Python and Django, crash points, real workers, runtimes
	$(BIN)/python tools/gate.py ci

test-all: $(INSTALLED)  ## both of these, the oldest versions, and a soak of ten minutes on each database
	$(BIN)/python tools/gate.py all

test-matrix:  ## the quick tests of one cell of the CI matrix: DJANGO=5.2|6.1|main|oldest DATABASE=sqlite|postgresql|mariadb
	$(PYTHON) tools/environment.py .venv-matrix test $(filter mariadb,$(DATABASE)) $(if $(filter oldest,$(DJANGO)),--lowest,$(if $(DJANGO),--django $(DJANGO)))
	TEST_DATABASE=$(or $(DATABASE),sqlite) .venv-matrix/bin/python -m pytest -q -m "not alone and not slow"

check: lint types imports  ## lint, types and import contracts

lint: $(INSTALLED)  ## ruff (rules and format) and codespell
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell

types: $(INSTALLED)  ## mypy --strict and basedpyright
	$(BIN)/mypy && $(BIN)/basedpyright --pythonpath $(BIN)/python

imports: $(INSTALLED)  ## import-linter: layers, and no circles
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)  ## fix lint errors and format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

demo: $(INSTALLED)  ## a day at the example hotel in under a minute, on a real Q2 cluster
	$(BIN)/python example/hotel/demo.py

serve: $(INSTALLED)  ## the example hotel with the admin and a Q2 cluster, until Ctrl-C
	$(BIN)/python example/hotel/serve.py

bench: $(INSTALLED)  ## all benchmarks, on PostgreSQL: throughput, latency, scale, growth, bulk, pruning, baseline, limits, midnight, console, bulk actions, deployment, concurrency, instructions, peers
	$(BIN)/python bench/run.py
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/bulk.py
	$(BIN)/python bench/pruning.py
	$(BIN)/python bench/baseline.py
	$(BIN)/python bench/limits.py
	$(BIN)/python bench/midnight.py
	$(BIN)/python bench/bulk_actions.py
	$(BIN)/python bench/console.py
	$(BIN)/python bench/deployment.py
	$(BIN)/python bench/concurrency.py
	$(BIN)/python bench/instructions.py
	$(BIN)/python bench/peers.py --images bench/results/peers

soak: $(INSTALLED)  ## random programs with injected faults, checked by a model: MINUTES=2 SEED=... DATABASE=sqlite|postgresql|mariadb
	$(BIN)/python -m tests.support.soak.run --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED)) --database $(or $(DATABASE),sqlite)

docs: $(INSTALLED)  ## the documentation as HTML in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html

docs-serve: docs  ## the documentation on http://127.0.0.1:8001, until Ctrl-C
	$(BIN)/python -m http.server 8001 --bind 127.0.0.1 --directory docs/_build/html

migrations: $(INSTALLED)  ## rewrite the initial migration of each app from its models
	$(BIN)/python tools/migrations.py

messages: $(INSTALLED)  ## update and compile the translations of what the admin shows
	$(BIN)/python tools/messages.py

screenshots: $(INSTALLED)  ## the pictures of the admin in docs/images/console; needs Debian's chromium
	$(BIN)/python tools/screenshots.py

package: $(INSTALLED)  ## build the distributions into dist/ and check their contents; TAG=v0.1.0: and the version
	$(BIN)/python tools/package.py $(if $(TAG),--tag $(TAG))

clean:  ## delete the virtual environments and caches
	rm -rf $(VENV) $(VENV)-* .mypy_cache .pytest_cache .ruff_cache
