# Every target sets up what it needs on first use: a virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo serve stop test bench chaos gpu-check lint format clean

help:            ## show the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Darkroom needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)   ## render one picture end to end and save it as out/demo.png
	$(BIN)/python -m launcher demo

serve: $(READY)  ## serve on http://127.0.0.1:8091 until Ctrl-C
	$(BIN)/python -m launcher serve

stop: $(READY)   ## stop what serve or demo started
	$(BIN)/python -m launcher stop

# Two runs: what needs no service waits more than it computes, so three at a time finish sooner. The tests of the running
# service load the machine, and share one Ray instance: one after the other.
test: $(READY)   ## run the tests
	$(BIN)/python -m pytest tests/unit tests/contract --numprocesses 3
	$(BIN)/python -m pytest tests/e2e

bench: $(READY)  ## measure what Darkroom costs; QUICK=1 for some minutes instead of an hour
	$(BIN)/python -m bench all $(if $(QUICK),--quick --out out/bench/results.json)

chaos: $(READY)  ## kill and stop every kind of process under load for half an hour, and audit every job
	$(BIN)/python -m tests.chaos $(ARGS)

gpu-check: $(READY)  ## check and measure the engine on the device at hand, writes bench/gpu-results.json
	$(BIN)/python -m bench.gpu $(ARGS)

lint: $(READY)   ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove what the targets made, .darkroom too: the jobs and pictures of serve
	rm -rf $(VENV) .darkroom out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
