# `make test` is what each commit passes, `make test-ci` is the rest. `make demo` runs the main job for real.
# Nothing is needed but python3 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help test test-ci test-all test-matrix check migrations package demo serve bench soak lint types format clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py $(VENV) test dev demo
	@touch $@

test: $(INSTALLED)  ## lint, types, and the quick tests on SQLite and PostgreSQL; T=tests/unit/test_x.py: only that, on SQLite
ifdef T
	$(BIN)/python -m pytest -q $(T)
else
	$(BIN)/python tools/gate.py test
endif

test-ci: $(INSTALLED)  ## the rest: MariaDB, the newest Python and Django, crash points, real workers, runtimes
	$(BIN)/python tools/gate.py ci

test-all: $(INSTALLED)  ## the full matrix, and a soak of ten minutes on each database; says how to start what is missing
	$(BIN)/python tools/gate.py all

test-matrix:  ## the quick tests of one cell of the CI matrix: DJANGO=5.2|6.1|main DATABASE=sqlite|postgresql|mariadb
	$(PYTHON) tools/environment.py .venv-matrix test $(filter mariadb,$(DATABASE)) $(if $(DJANGO),--django $(DJANGO))
	TEST_DATABASE=$(or $(DATABASE),sqlite) .venv-matrix/bin/python -m pytest -q -m "not alone and not slow"

check: lint types  ## lint and types alone

demo: $(INSTALLED)  ## a hotel's day in under a minute, on a real cluster
	$(BIN)/python example/hotel/demo.py

serve: $(INSTALLED)  ## the hotel with the admin and a cluster, until Ctrl-C
	$(BIN)/python example/hotel/serve.py

bench: $(INSTALLED)  ## throughput, latency, the cost of save(), routing among a million, many at once, on PostgreSQL
	$(BIN)/python bench/run.py
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/bulk.py
	$(BIN)/python bench/pruning.py

migrations: $(INSTALLED)  ## write the one initial migration of each app anew from its models
	$(BIN)/python tools/migrations.py

package: $(INSTALLED)  ## build the distributions into dist/ and check what they contain; TAG=v0.1.0: and its version
	$(BIN)/python tools/package.py $(if $(TAG),--tag $(TAG))

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell

format: $(INSTALLED)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy && $(BIN)/basedpyright --pythonpath $(BIN)/python

soak: $(INSTALLED)  ## random programs under fire against a model: MINUTES=2 SEED=... DATABASE=sqlite|postgresql|mariadb
	$(BIN)/python -m tests.support.soak.run --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED)) --database $(or $(DATABASE),sqlite)

clean:
	rm -rf $(VENV) $(VENV)-* .mypy_cache .pytest_cache .ruff_cache
