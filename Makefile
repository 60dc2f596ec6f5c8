# make demo   replay against no memory: the reason this library exists, in under two minutes
# make test   the whole suite but the slow acceptance bands, which are make test-slow
# make lint   style, types, import contracts
# make bench  speed against Flower's simulation and a plain loop, and the published Split-MNIST table
# make bench-speed  whole simulations side by side: fedlearn, its peers, plain PyTorch
#
# INSTALLER=uv installs with uv instead of pip; PYTHON=python3.12 takes another interpreter;
# MNIST=DIR says where MNIST's files are.

MNIST ?= data
VENV ?= .venv
PYTHON ?= python3
INSTALLER ?= pip
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-by-make

.PHONY: demo test test-slow lint format bench bench-speed clean install

demo: install
	$(BIN)/fedlearn run -m continual=naive,replay

test: install
	$(BIN)/pytest -n auto

test-slow: install
	$(BIN)/pytest -n auto -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/per_step.py --method naive
	$(BIN)/python benchmarks/split_mnist.py --root $(MNIST)

bench-speed: install
	$(BIN)/python benchmarks/speed

install: $(INSTALLED)

# Bytecode for all packages at once: a first start is then twice as fast. Some of them ship files for
# other versions of Python, which cannot compile and need not.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(INSTALLER),uv)
	uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
else
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
endif
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	touch $@

clean:
	rm -rf $(VENV) benchmarks/speed/.venvs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
