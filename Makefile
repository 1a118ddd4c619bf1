# One target per task. ARGS goes to the program: make test ARGS="-k store", make demo ARGS=--fresh
# COVERAGE=--cov prints what the fast tests cover: make test-fast COVERAGE=--cov
# ALL=1 adds the tests marked `exhaustive` (CONTRIBUTING.md): make test ALL=1
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-fast check docs format promtool lm-eval clients lock clean
BIN := .venv/bin
ARGS ?=
COVERAGE ?=
ALL ?=
NOT_ALL := $(if $(ALL),, and not exhaustive)
FAST := not engine and not slow and not gpu
SLOW := slow and not engine and not gpu
PARALLEL := -n logical --maxprocesses 4 --dist
# Servers of tiny models at a time; two would not share a GPU.
SERVERS := $(if $(shell command -v nvidia-smi),1,2)
# The fast tests write thousands of small files: in memory, where there is room, and removed at once where a test passes.
RAM_DISK := $(shell [ "$$(df -Pk /dev/shm 2> /dev/null | awk 'NR == 2 { print $$4 }')" -gt 2000000 ] 2> /dev/null && echo /dev/shm)
FAST_PYTEST := $(if $(RAM_DISK),PYTEST_DEBUG_TEMPROOT=$(RAM_DISK)) $(BIN)/pytest -m "$(FAST)" $(PARALLEL) worksteal \
	$(if $(RAM_DISK),-o tmp_path_retention_policy=failed)
# Without byte code on disk, each process of the tests compiles the same thousand modules again.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(PATH):$(CURDIR)/.tools/prometheus

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## Create .venv and install the pinned packages (does nothing if up to date)
	@scripts/setup.sh

demo: setup ## Start a server, train and swap in three adapters, measure, write a report
	$(BIN)/lorikeet demo $(ARGS)

serve: setup ## Serve the base and every published adapter
	$(BIN)/lorikeet serve config/serve.yaml $(ARGS)

test: setup ## Run the tests (ALL=1: also those marked exhaustive); without a GPU, those that need one are skipped
	$(FAST_PYTEST) $(COVERAGE) $(ARGS) || [ $$? -eq 5 ] # no test of this kind is selected
	$(BIN)/pytest -m "$(SLOW)$(NOT_ALL)" $(PARALLEL) loadfile --durations 20 $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/pytest -m "tiny_engine$(NOT_ALL)" -n logical --maxprocesses $(SERVERS) --dist loadfile --durations 20 $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/pytest -m "(engine or gpu) and not tiny_engine$(NOT_ALL)" --durations 20 $(ARGS) || [ $$? -eq 5 ]

test-fast: setup ## Run the tests that start no engine and are not slow
	$(FAST_PYTEST) --hypothesis-profile=fast $(COVERAGE) $(ARGS)

check: setup ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup ## Build the documentation site into build/docs; a broken link or anchor fails
	$(BIN)/zensical build --clean --strict $(ARGS)

format: setup ## Format the code and sort its imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

promtool: ## Unpack Debian's promtool, without which the tests of the alert rules are skipped
	@scripts/promtool.sh

lm-eval: setup ## Install lm-evaluation-harness apart, without which its tests are skipped
	@[ -x .tools/lm-eval/bin/lm_eval ] || { $(BIN)/python -m venv --clear .tools/lm-eval && \
		.tools/lm-eval/bin/pip install --quiet --no-deps -r requirements/lm-eval.lock; }

clients: setup ## Install LiteLLM and openai's command line apart, without which their tests are skipped
	@[ -x .tools/clients/bin/openai ] || { $(BIN)/python -m venv --clear .tools/clients && \
		.tools/clients/bin/pip install --quiet --no-deps -r requirements/clients.lock; }

lock: setup ## Resolve pyproject.toml again into requirements/*.lock
	$(BIN)/python requirements/lock.py cpu
	$(BIN)/python requirements/lock.py gpu

clean: ## Remove .venv and caches; var/ (bases, adapters, reports) stays
	rm -rf .venv .cache .tools .coverage build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
