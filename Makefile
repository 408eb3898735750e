# make study | test | lint | bench. Each makes .venv and installs what it needs when missing.

PYTHON ?= python3
VENV ?= .venv
TASK ?= gp_l
SCALE ?= tiny
# More flags for the launcher of study or bench, e.g. ARGS="--config.seed=1".
ARGS ?=
# More flags for pytest, e.g. PYTEST_ARGS="-x tests/envs".
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# XLA takes fresh memory for its temporaries at each call; huge pages make that cheap on a CPU.
CPU_ENV := GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# libtpu, installed for its compiler, complains where it looks for TPUs and finds none.
ifeq ($(wildcard /dev/accel* /dev/vfio/* /dev/nvidia* /dev/kfd /dev/dxg),)
export JAX_PLATFORMS ?= cpu
endif

.PHONY: study test lint format bench clean
.DEFAULT_GOAL := study

study: $(VENV)/.installed
	$(CPU_ENV) $(BIN)/python -m launch.study --config=configs/$(TASK).py:$(SCALE) $(ARGS)

test: $(VENV)/.installed_test
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=12 $(PYTEST_ARGS)

lint: $(VENV)/.installed_test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed_test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(CPU_ENV) $(BIN)/python -m launch.bench --config=configs/$(TASK).py:$(SCALE) $(ARGS)

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than setup.py when the environment holds what setup.py asks for.
$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed_test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,torch]'
	@touch $@
	@touch $(VENV)/.installed
