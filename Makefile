# The few commands of this project. `make` lists them.

VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := cli,sim,torch,papers,ray,test,dev

# `make setup PYTHON=...` chooses another interpreter. The first one that is new enough is taken.
PYTHON ?= $(shell for p in python3 python python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
UV := $(shell command -v uv 2>/dev/null)

# Every run writes to a new folder. `make demo DEMO=...` chooses the folder.
NOW := $(shell date +%Y%m%d-%H%M%S)
DEMO ?= runs/$@-$(NOW)

# Compiled programs are kept between processes. No window is opened.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2
export SDL_VIDEODRIVER ?= dummy

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-short demo-mismatch reproduce reproduce-quick test test-optimised test-slow examples fuzz bench sanitise arm64 lint check clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create .venv and install the package in it (again when the sources of the build change)

$(STAMP): pyproject.toml setup.py $(wildcard native/*.h native/*.cc) | $(PY)
ifneq ($(UV),)
	"$(UV)" pip install --python $(PY) -e '.[$(EXTRAS)]'
else
	$(PY) -m pip install --disable-pip-version-check -e '.[$(EXTRAS)]'
endif
	@touch $@

# Where Python comes without ensurepip, the pip beside it fills the environment.
$(PY):
ifneq ($(UV),)
	"$(UV)" venv --allow-existing --python "$(or $(PYTHON),3.11)" $(VENV)
else
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed. Name one: make setup PYTHON=..."; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	else \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install pip; \
	fi
endif

demo: ## train a pendulum controller and evaluate it, in a new folder under runs/
demo-short: ## the same with far less work
demo-short: QUICK := --quick
demo demo-short: $(STAMP)
	$(PY) -m diffcontrol fit pendulum --out $(DEMO) $(QUICK)
	$(PY) -m diffcontrol evaluate $(DEMO)

demo-mismatch: $(STAMP) ## who controls better with a wrong model, in runs/mismatch (MISMATCH=--quick)
	$(PY) -m experiments.mismatch --out runs/mismatch $(MISMATCH)

reproduce: $(STAMP) ## the papers' figures and tables, with a report (FULL=1: at the papers' sizes)
	$(PY) -m experiments.reproduce $(if $(FULL),--full)

reproduce-quick: $(STAMP) ## see that every experiment runs
	$(PY) -m experiments.reproduce --quick

test: $(STAMP) ## run the tests, without the slow ones
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

test-optimised: export XLA_FLAGS ?=
test-optimised: $(STAMP) ## run those of solvers, gradients and planners as users' programs are compiled
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal tests/test_solve.py tests/test_gradients.py \
		tests/test_planners.py

test-slow: export XLA_FLAGS ?=
test-slow: $(STAMP) ## run the slow tests only, compiled as users' programs are
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal -m slow

examples: $(STAMP) ## run every program in examples/, with far less work
	$(PY) -m pytest -n auto --maxprocesses 4 -m slow tests/test_examples.py

fuzz: $(STAMP) ## solve and differentiate 10,000 random problems
	$(PY) -m tests.fuzz --problems 10000

bench: $(STAMP) ## measure speed against the peers, which are installed under .bench (BENCH=--quick)
	@for environment in mpc more; do \
		test -x .bench/$$environment/bin/python || $(PY) -m venv .bench/$$environment || exit 1; \
	done
	@install() { \
		.bench/$$1/bin/python -c "import $$2" 2>/dev/null && return; \
		environment=$$1 name=$$2; shift 2; \
		.bench/$$environment/bin/python -m pip install --disable-pip-version-check -q "$$@" \
			>.bench/$$name.log 2>&1 || echo "$$name cannot be installed, see .bench/$$name.log"; \
	}; \
	install mpc mpc torch==2.13.0 'numpy<2' setuptools mpc; \
	install more pypose torch==2.13.0 pypose==0.9.5; \
	install more qpax qpax==0.1.4; \
	install more crocoddyl crocoddyl==3.2.1; \
	install more cvxpylayers torch==2.13.0 cvxpylayers==1.2.0
	$(PY) -m benchmarks $(BENCH)
ifeq ($(findstring --help,$(BENCH)),)
	$(PY) examples/torch_overhead.py $(filter --quick,$(BENCH))
endif

SANITISE := -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra \
	-Wno-psabi -Wno-ignored-attributes
X86 := $(filter x86_64 amd64,$(shell uname -m))

sanitise: ## run the compiled kernels under the address and undefined-behaviour sanitisers
	@mkdir -p build/sanitise
	@$(MAKE) --no-print-directory -j 2 $(patsubst %,build/sanitise/%.o,avx512 avx2 portable test_kernels)
	$(CXX) $(SANITISE) build/sanitise/*.o -o build/sanitise/test_kernels
	build/sanitise/test_kernels

build/sanitise/avx512.o: FLAGS := $(if $(X86),-mavx512f -mavx512dq -mavx512vl -mfma)
build/sanitise/avx2.o: FLAGS := $(if $(X86),-mavx2 -mfma)
build/sanitise/%.o: native/%.cc $(wildcard native/*.h)
	$(CXX) $(SANITISE) $(FLAGS) -c $< -o $@

arm64: $(STAMP) ## check that the compiled kernel builds for another processor
	@mkdir -p build/arm64
	@test -d build/zig/ziglang || $(PY) -m pip install --disable-pip-version-check -q --target build/zig ziglang
	for name in avx512 avx2 portable handlers; do \
		PYTHONPATH=build/zig $(PY) -m ziglang c++ -target aarch64-linux-gnu -std=c++17 -O2 -fPIC \
			-fvisibility=hidden -Wno-psabi -Wno-ignored-attributes \
			-I"$$($(PY) -c 'import jax.ffi; print(jax.ffi.include_dir())')" \
			-c native/$$name.cc -o build/arm64/$$name.o || exit 1; \
	done

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint test ## lint, then test

clean: ## remove caches and build outputs; keep .venv and runs
	rm -rf build dist .cache .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
