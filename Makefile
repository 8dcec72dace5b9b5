SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := constraints.txt
# Numba would colour the message of every candidate that it tries and drops: a sixth of the time to compile.
export NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING := 1

.PHONY: train test lint ui bench clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.core: pyproject.toml constraints.txt
	@echo "joulewise: installing the environment into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "joulewise: installing the test tools into $(VENV)"
	@$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

train: $(VENV)/.core  ## environment, then the main job on the embedded sample; ARGS="experiment=quick" passes overrides
	@$(BIN)/python -m pipelines.train $(ARGS)

test: $(VENV)/.dev  ## lint, import contracts, types, then the whole suite
	@$(MAKE) --no-print-directory lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.dev  ## ruff, import contracts, mypy on the public contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy --no-error-summary

ui: $(VENV)/.core  ## review runs and models in the MLflow UI on http://127.0.0.1:5000
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $${PORT:-5000}

bench: $(VENV)/.core  ## benchmark of the simulator; prints a table and writes JSON under outputs/
	@$(BIN)/python -m benchmarks.simulator

clean:  ## remove the environment, outputs, the tracking database and caches
	rm -rf $(VENV) outputs mlflow.db mlflow.db.* mlartifacts mlruns keys .dvc/cache .dvc/tmp
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
