# make demo   train a policy on the model that ships; compare it with one that ships and the analytical optimizer
# make test   the test suite, in a virtual environment of its own
# make bench  speed and memory beside their targets, in about ten minutes; FLAGS=--quick for one
# make lint   style and types

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEMO := runs/demo

# One thread: at these sizes a second one costs more than it brings.
export OMP_NUM_THREADS := 1

.PHONY: demo test bench lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/python -m train --algorithm straight-through --hidden-states --extra-experts 1 --reward latency_quality \
		--quality-weight 10 --timesteps 57600 --out $(DEMO)/policy
	$(BIN)/python -m eval --policies vanilla vanilla-optimal top1 random greedy wdmoe wdmoe-selection wdmoe-bandwidth \
		wdmoe-history marginal-price fractional straight-through-10 $(DEMO)/policy/policy.safetensors \
		--episodes 256 --out $(DEMO)/eval

test: $(READY)
	$(BIN)/python -m pytest -n 2 --cov --cov-fail-under=85

bench: $(READY)
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks $(FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info
