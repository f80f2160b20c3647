# What a person runs. Nothing is installed outside .venv, and each target makes what it needs.
# PYTHON, NAME, RUNS, EXPERIMENT, ARGS and JOBS can be given on the command line: make report NAME=demo

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
EXPERIMENT ?= demo
JOBS ?= 2
VENV := .venv/bin/python
# -qq: errors alone
PIP := $(VENV) -m pip -qq --disable-pip-version-check --no-input
READY := .venv/.ready

.PHONY: help setup demo report confirm plan status test test-slow docs picture bench check-gpu profile lint types check format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Install everything into .venv (needs Python 3.11 or newer)
	@echo "Ready: .venv/bin/python"

$(READY): requirements.lock pyproject.toml
	@command -v "$(PYTHON)" > /dev/null || { echo "There is no $(PYTHON): name one, make setup PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and \
		"lora-sweep needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another, make setup PYTHON=…" % v)'
	@test -x $(VENV) || { echo "Installing into .venv, once: this takes minutes"; "$(PYTHON)" -m venv .venv; }
	@$(PIP) install --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## Sweep eight configurations of a small real model, print the table
	@$(VENV) -m lora_sweep.train experiment=demo

report: $(READY) ## Print the newest sweep's table again; NAME=… another's, RUNS=… of another folder
	@$(VENV) -m sweep.report $(NAME) $(if $(RUNS),--runs "$(RUNS)") $(ARGS)

confirm: $(READY) ## Train the newest sweep's tied rows with more seeds, and read the test split once; NAME=…, RUNS=…
	@$(VENV) -m sweep.confirm $(NAME) $(if $(RUNS),--runs "$(RUNS)") $(ARGS)

plan: $(READY) ## Show a sweep's trials, their parameters and memory, and train nothing; EXPERIMENT=demo
	@$(VENV) -m sweep.plan -m experiment=$(EXPERIMENT) $(ARGS)

status: $(READY) ## Show how far the newest sweep is; NAME=… another, RUNS=… of another folder
	@$(VENV) -m sweep.status $(NAME) $(if $(RUNS),--runs "$(RUNS)")

# Two processes on one core each: tiny models gain nothing from more threads, and twice the threads fight.
test: $(READY) ## Run the tests (ARGS="-k report" some of them)
	@OMP_NUM_THREADS=1 $(VENV) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-slow: $(READY) ## Train the real default model, with every core
	@$(VENV) -m pytest -m slow $(ARGS)

docs: $(READY) ## Make docs/configuration.md again, from the schema and the files in conf/
	@$(VENV) -m lora_sweep.config.reference > docs/configuration.md.new
	@mv docs/configuration.md.new docs/configuration.md

picture: $(READY) ## Take the README's picture of the demo's report page (after make demo)
	@$(VENV) docs/take_picture.py runs/sweeps/demo/report.html docs/images/report.png

bench: $(READY) ## Measure the orchestration, then training and texts against a plain loop over TRL (50 minutes)
	@$(VENV) benchmarks/orchestration.py
	@$(VENV) benchmarks/fast.py $(ARGS)

# Installs nothing: PYTHON is the one that has torch, PACKAGES a folder with further pure-Python packages.
check-gpu: ## Check packs, texts, memory and speed on this machine's GPU, in 8 minutes; PYTHON=python3 PACKAGES=folder
	@PYTHONPATH="$(PACKAGES)" "$(PYTHON)" benchmarks/check_gpu.py $(ARGS)

profile: $(READY) ## Show where a training step's time goes (ARGS="quant=8bit lora.targets=attn")
	@$(VENV) benchmarks/profile_step.py $(or $(ARGS),quant=4bit lora.targets=all_linear)

lint: $(READY) ## Check style and format
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .

types: $(READY) ## Check types
	@$(VENV) -m mypy

check: lint types test ## lint, types and test

format: $(READY) ## Repair style and format where a tool can
	@$(VENV) -m ruff check --fix .
	@$(VENV) -m ruff format .

# Run it with the oldest Python that pyproject.toml allows: newer releases of some packages need a newer one. Torch
# stays: an unpinned one can be a CUDA build of several GB. What only such a build needs is left out: torch pins it.
define TO_LOCK
import json, sys
found = {i["metadata"]["name"]: i["metadata"]["version"].split("+")[0] for i in json.load(sys.stdin)["install"]}
print("# Every package of .venv, pinned. Made by `make lock` from pyproject.toml's ranges.")
for name in sorted(found, key=str.lower):
    if name != "lora-sweep" and not name.startswith(("nvidia-", "cuda-", "triton")):
        print(f"{name}=={found[name]}")
endef
export TO_LOCK

lock: $(READY) ## Pin the newest versions that pyproject.toml allows in requirements.lock
	@$(PIP) install --dry-run --ignore-installed --report - torch==2.13.0 --editable '.[dev]' \
		| $(VENV) -c "$$TO_LOCK" > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## Remove caches and build files; .venv and runs stay
	@rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
