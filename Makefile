# The commands of this repository. Packages are installed into .venv only, and each target first makes what it needs.
# PYTHON, PACKAGES, NAME, RUNS, EXPERIMENT, ARGS and JOBS can be set on the command line: make report NAME=demo

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
EXPERIMENT ?= demo
JOBS ?= 2
VENV := .venv/bin/python
# -qq prints errors only.
PIP := $(VENV) -m pip -qq --disable-pip-version-check --no-input
READY := .venv/.ready

.PHONY: help setup demo report confirm plan status test test-slow test-crash docs picture bench check-gpu profile lint types check format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Install everything into .venv (needs Python 3.11 or newer)
	@echo "Ready: .venv/bin/python"

$(READY): requirements.lock pyproject.toml
	@command -v "$(PYTHON)" > /dev/null || { echo "There is no $(PYTHON). Name a Python: make setup PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and \
		"lora-sweep needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another Python: make setup PYTHON=…" % v)'
	@test -x $(VENV) || { echo "Installing into .venv, once: this takes minutes"; "$(PYTHON)" -m venv .venv; }
	@$(PIP) install --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## Sweep eight configurations of a small real model, and print the table
	@$(VENV) -m lora_sweep.train experiment=demo

report: $(READY) ## Print the newest sweep's table again (NAME=… another sweep, RUNS=… another folder, ARGS=--png charts)
	@$(VENV) -m sweep.report $(NAME) $(if $(RUNS),--runs "$(RUNS)") $(ARGS)

confirm: $(READY) ## Train the newest sweep's tied rows with more seeds, then score the winner on the test split (NAME=… RUNS=…)
	@$(VENV) -m sweep.confirm $(NAME) $(if $(RUNS),--runs "$(RUNS)") $(ARGS)

plan: $(READY) ## Show the trials of EXPERIMENT=demo, their parameters, memory and time; train nothing
	@$(VENV) -m sweep.plan -m experiment=$(EXPERIMENT) $(ARGS)

status: $(READY) ## Show how far the newest sweep is (NAME=… another sweep, RUNS=… another folder)
	@$(VENV) -m sweep.status $(NAME) $(if $(RUNS),--runs "$(RUNS)")

# Two test processes with one thread each: tiny models gain nothing from more threads, and too many threads slow each other.
test: $(READY) ## Run the tests (ARGS="-k report" runs some of them)
	@OMP_NUM_THREADS=1 $(VENV) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# A file stays in one process: its fixtures are trainings.
test-slow: $(READY) ## Run the slow tests: the real default model and long tests (7 minutes on two cores)
	@OMP_NUM_THREADS=1 $(VENV) -m pytest -m slow -n $(JOBS) --dist loadfile $(ARGS)

test-crash: $(READY) ## Kill processes and fail disk calls at 900 further places; .ci/run leaves them out
	@OMP_NUM_THREADS=1 $(VENV) -m pytest -m crash -n $(JOBS) --dist worksteal $(ARGS)

docs: $(READY) ## Write docs/configuration.md from the schema and the files in conf/
	@$(VENV) -m lora_sweep.config.reference > docs/configuration.md.new
	@mv docs/configuration.md.new docs/configuration.md

picture: $(READY) ## Take the README's picture of the demo's report page (after make demo)
	@$(VENV) docs/take_picture.py runs/sweeps/demo/report.html docs/images/report.png

bench: $(READY) ## Measure the orchestration, then training and texts against a plain loop over TRL (50 minutes)
	@$(VENV) benchmarks/orchestration.py
	@$(VENV) benchmarks/fast.py $(ARGS)

# Installs nothing: PYTHON names the Python that has torch, PACKAGES a folder with further pure-Python packages.
check-gpu: ## Check packs, texts, memory and speed on this machine's GPU, in 8 minutes (PYTHON=python3 PACKAGES=folder)
	@PYTHONPATH="$(PACKAGES)" "$(PYTHON)" benchmarks/check_gpu.py $(ARGS)

bench-kernels: $(READY) ## Measure each multi-LoRA kernel alone against the library's own (3 minutes; ARGS="--json FILE")
	@$(VENV) benchmarks/kernels.py $(ARGS)

profile: $(READY) ## Show where a training step's time goes (ARGS="quant=8bit lora.targets=attn")
	@$(VENV) benchmarks/profile_step.py $(or $(ARGS),quant=4bit lora.targets=all_linear)

lint: $(READY) ## Check style and format
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .

types: $(READY) ## Check types
	@$(VENV) -m mypy

check: lint types test ## Run lint, types and test

format: $(READY) ## Correct style and format, as far as ruff can
	@$(VENV) -m ruff check --fix .
	@$(VENV) -m ruff format .

# Run `make lock` with the oldest Python that pyproject.toml allows: newer releases of some packages need a newer one.
# torch keeps its version: without a pin, pip can take a CUDA build of several GB. Packages that only such a build needs
# are left out, because torch itself pins them.
define TO_LOCK
import json, sys
versions = {i["metadata"]["name"]: i["metadata"]["version"].split("+")[0] for i in json.load(sys.stdin)["install"]}
print("# Every package of .venv, pinned. Made by `make lock` from pyproject.toml's ranges.")
for name in sorted(versions, key=str.lower):
    if name != "lora-sweep" and not name.startswith(("nvidia-", "cuda-", "triton")):
        print(f"{name}=={versions[name]}")
endef
export TO_LOCK

lock: $(READY) ## Write to requirements.lock the newest versions that pyproject.toml allows
	@$(PIP) install --dry-run --ignore-installed --report - torch==2.13.0 --editable '.[dev]' \
		| $(VENV) -c "$$TO_LOCK" > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## Remove caches and build files; .venv and runs stay
	@rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
