PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test chaos fuzz bench bench-full test-previous lint format lock openapi settings containers release-check clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Make .venv ready for everything (idempotent)
	@$(PYTHON) scripts/bootstrap.py dev

demo: ## Set up, then compress a real model end to end and show the result
	@$(PYTHON) scripts/bootstrap.py demo
	@$(BIN)/jactus demo

serve: ## Set up, then run the whole service on this machine until Ctrl-C
	@$(PYTHON) scripts/bootstrap.py demo
	@$(BIN)/jactus serve

test: setup ## Set up, then run the tests, two files at a time
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

chaos: setup ## Kill everything at every stage, then 200 jobs under random kills (about half an hour)
	@OMP_NUM_THREADS=1 JACTUS_CHAOS=full HF_HUB_OFFLINE=1 $(BIN)/pytest tests/chaos $(ARGS)

fuzz: setup ## Send more than 10,000 generated requests, on SQLite and on PostgreSQL
	@JACTUS_FUZZ=full HF_HUB_OFFLINE=1 $(BIN)/pytest tests/fuzz $(ARGS)

bench: setup ## Compare with LoRA and SVD-LLM in minutes: one model per modality, from the hub
	@$(BIN)/python -m benchmarks.short $(ARGS)

bench-full: setup ## Measure everything in docs/benchmarks.md; resumes where it stopped (days on two cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality --processes 2 $(ARGS)
	@$(BIN)/python -m benchmarks.costs $(ARGS)
	@$(BIN)/python -m benchmarks.inference $(ARGS)
	@$(BIN)/python -m benchmarks.page

test-previous: setup ## Run the method's tests on the previous minor series of transformers
	@$(BIN)/uv pip install --quiet --no-deps --target .jactus/transformers-previous 'transformers>=5.22,<5.23'
	@HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR)/.jactus/transformers-previous $(BIN)/pytest tests/jactus_core $(ARGS)

lint: setup ## Format check, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: setup ## Resolve constraints.txt anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --all-extras --universal --no-header --no-annotate --upgrade \
		--constraint scripts/lock-constraints.txt --output-file constraints.txt pyproject.toml

openapi: setup ## Write docs/openapi.json
	@$(BIN)/python -m scripts.write_openapi

containers: setup ## Build the images and run the main job through them (buildah, podman)
	@$(BIN)/python -m scripts.containers

release-check: setup ## Build what is published, install it with each extra, use it, list the licences
	@$(BIN)/python -m scripts.release_check

settings: setup ## Write the table of settings into docs/operations.md
	@$(BIN)/python -m scripts.write_settings

clean: ## Remove the environment, caches and local data
	rm -rf .venv .jactus .mypy_cache .ruff_cache .pytest_cache
