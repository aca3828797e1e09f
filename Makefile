# make demo   train a policy on cells that serve requests; compare it under load with rules
# make testbed  eight devices on this machine: a table of three policies, and how far the simulation is from it
# make check  style, types and the fast tests, in under two minutes: for the loop of work
# make test   the test suite, in a virtual environment of its own; programs of pages that train are left to make integrations
# make integrations  every RL library, lm-eval and Sionna, with the oldest Gymnasium, in another; some 3 GB
# make docs   the documentation site, in site/
# make bench  speed and memory beside their targets, in twenty minutes; FLAGS=--quick for one
# make lint   style and types

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
INTEGRATIONS := .venv-integrations
DEMO := runs/demo

# One thread: at these sizes a second one costs more than it brings.
export OMP_NUM_THREADS := 1

.PHONY: demo testbed check test integrations docs bench lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/python -m train --env-id WDMoE-Serve-Selection-v0 --devices paper --load 0.95 --hidden-states --extra-experts 1 \
		--start straight-through-10 --quality-weight 2 --settings windows=8,learning_rate=5e-4 --serving requests=8 --timesteps 512 \
		--out $(DEMO)/policy
	echo '{"devices": "paper"}' > $(DEMO)/paper.json
	$(BIN)/python -m eval --serve --config $(DEMO)/paper.json --load 0.95 --episodes 12 --policies wdmoe:0.8 wdmoe:0.9 \
		$(DEMO)/policy/policy.safetensors --out $(DEMO)/eval

testbed: $(READY)
	$(BIN)/python -m wdmoe_env.testbed fidelity --devices 8 --bandwidth-hz 2.5e6 --episodes 4 \
		--policies vanilla wdmoe:0.8 top1 --out runs/testbed

check: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-fail-under=85 \
		--deselect tests/integrations/test_pages.py::test_the_program_runs_and_learns

$(INTEGRATIONS)/ready: pyproject.toml constraints-integrations.txt
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/pip install --quiet --constraint constraints-integrations.txt torch
	$(INTEGRATIONS)/bin/pip install --quiet --constraint constraints-integrations.txt --editable ".[integrations,accelerate,render,test,train]"
	touch $@

# The environment's own tests run here too, since this is the oldest Gymnasium that is declared.
integrations: $(INTEGRATIONS)/ready
	$(INTEGRATIONS)/bin/python -m pytest -n 2 tests/integrations tests/test_env.py tests/test_vector_env.py \
		tests/test_actions.py tests/test_observations.py tests/test_sb3.py tests/test_workers.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks $(FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(INTEGRATIONS) runs site build dist *.egg-info
