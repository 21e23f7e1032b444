# onecount. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
RUN := $(VENV)/bin/python
UV := .cache/uv

# The Python to make the virtual environment with: make setup PYTHON=python3.12. By default the newest of 3.13, 3.12 and
# 3.11 that works here. To change it later, make clean first.
export PYTHON

.PHONY: help setup machine test-machine demo test faults soak lint docs bench bench-gateway fuzz-gateway lock clean

help: ## List the targets
	@echo "onecount: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## Install what is missing: Python packages, Java, Redis, Kafka's jars

machine:
	@deploy/setup.sh

test-machine: setup
	@deploy/setup.sh --tests

# Made anew when the locked packages or the project's own metadata change.
$(VENV)/installed: requirements.lock pyproject.toml | machine
	@echo "setup: installing the locked Python packages into $(VENV)"
	@test -x $(RUN) || { python=$$(deploy/setup.sh --print-python); "$$python" -m venv $(VENV); }
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Run the whole thing here, with its own Kafka and Redis: make demo [INPUT=events.jsonl]
	@$(VENV)/bin/onecount demo $(if $(INPUT),--input $(INPUT))

test: test-machine ## Run all tests: make test [ARGS="-k redis"]
	@$(RUN) -m pytest $(ARGS)

faults: setup ## Run the whole fault suite, each case SEEDS times (1): make faults [SEEDS=3] [SEED=17] [ARGS="-k redis"]
	@SEEDS=$${SEEDS:-1} $(RUN) -m pytest tests -m "faults or smoke" $(ARGS)

soak: setup ## Count for MINUTES (30) at half load while faults come at random: make soak [SEED=17]
	@$(RUN) -m pytest tests/faults/test_soak.py -m soak -s $(ARGS)

lint: setup ## Check style, formatting, which room imports which, and YAML
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(VENV)/bin/lint-imports
	@$(RUN) -m yamllint --strict .

docs: setup ## Build the docs site: build/docs/html/index.html; a link to nothing ends it
	@$(RUN) -m sphinx -M html . build/docs -c docs --fail-on-warning --keep-going --nitpicky --quiet --fresh-env

bench: setup ## Measure speed on workload W1
	@$(RUN) -m tests.bench.w1

bench-gateway: setup ## Measure the gateway's speed beside an empty handler's; needs wrk
	@$(RUN) -m tests.bench.gateway $(ARGS)

fuzz-gateway: setup ## Send the gateway whatever comes, for MINUTES (5): make fuzz-gateway [MINUTES=1] [SEED=17]
	@MINUTES=$${MINUTES:-5} $(RUN) -m pytest tests/gateway/test_openapi.py -m "" $(ARGS)

# requirements.lock has everything, requirements-runtime.lock the part of it that the image needs.
COMPILE := pip compile --quiet --universal --generate-hashes --no-emit-index-url --custom-compile-command "make lock"

lock: setup ## Choose the newest versions for Python 3.11 to 3.13 anew, with hashes: requirements*.lock
	@test -x $(UV)/bin/uv || { $(RUN) -m venv $(UV) && $(UV)/bin/pip install --quiet --disable-pip-version-check uv; }
	@$(UV)/bin/uv $(COMPILE) --upgrade --all-extras pyproject.toml --output-file requirements.lock
	@$(UV)/bin/uv $(COMPILE) --no-annotate --extra registry --constraint requirements.lock pyproject.toml \
	  --output-file requirements-runtime.lock

clean: ## Remove everything that was made here, the virtual environment and the jars too
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find app tests -name __pycache__ -type d -prune -exec rm -rf {} +
