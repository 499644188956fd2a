# Every command of a developer's day. `make help` lists them.
#
# Set-up is remembered by stamp files in .venv: the packages are installed again only when
# pyproject.toml has changed, the C core is compiled again only when a C file has. Importing dlock
# never compiles anything; it refuses a core that does not fit and names `make`.

PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST_ARGS ?=
SEEDS ?= 100

# The steps follow one another, so that their output can be read; each step uses all cores.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# scripts/requirements.py puts a cmake there where the machine has none, or too old a one.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The thread sanitizer of older compilers does not start where addresses are spread very widely.
STEADY_ADDRESSES = $(shell setarch -R true 2>/dev/null && echo setarch -R)

GUEST := $(PYTHON) scripts/guest
export CMD

NATIVE := $(wildcard native/*.c native/*.h) native/generate_cffi.py CMakeLists.txt

.DEFAULT_GOAL := build
.PHONY: build help demo failover docs test test-c test-sanitizers test-py test-wheel test-rdma test-rdma-here node-clients guest lint sim sim-broken bench soak wheel clean

build: $(VENV)/.built ## compile the C core and put it beside the Python part (the default)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.built ## the main job: a primary, 8 processes, every kind of lock, the verdict
	$(PY) examples/demo.py

failover: $(VENV)/.built ## kill -9 of a primary that serves every kind of lock; what comes back
	$(PY) examples/failover.py

test: lint test-c test-sanitizers test-py ## every check but the wheel's

test-c: $(VENV)/.ready ## the C tests, without Python
	$(call c_tests,build/c,,)

test-sanitizers: $(VENV)/.ready ## the C tests under address, undefined-behaviour, thread sanitizers
	$(call c_tests,build/c-address,address$(comma)undefined,)
	$(call c_tests,build/c-thread,thread,$(STEADY_ADDRESSES))

test-py: $(VENV)/.built ## the Python tests
	$(PY) -m pytest -m "not packaging" $(PYTEST_ARGS)

test-wheel: $(VENV)/.built ## a wheel, in an empty environment, without the source tree
	$(PY) -m pytest -m packaging tests/test_packaging.py $(PYTEST_ARGS)

test-rdma: guest-prepared $(VENV)/.built ## the tests of RDMA, in a guest with soft-RoCE
	$(build_c_tests)
	$(GUEST) run --limit 1500 --devices dummy --devices veth "$(MAKE) rdma-tests"

test-rdma-here: $(VENV)/.built ## the same, on a machine that has an RDMA device
	$(build_c_tests)
	$(MAKE) rdma-tests

node-clients: build/npm/.ready ## gRPC for Node, with which tests are clients of a door

guest: guest-prepared ## a command in that guest: make guest CMD="ibv_devinfo; ls"
	@$(GUEST) run --devices dummy --devices veth "$$CMD"

lint: $(VENV)/.built ## ruff and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m mypy

sim: $(VENV)/.built ## whole clusters from their seeds, under virtual time (SEEDS=100)
	$(PY) -m sim --seeds 0:$(SEEDS) -j $(JOBS)

sim-broken: $(VENV)/.built ## deliberate faults in a copy of the tree, and who finds them (FAULTS="NAME ...")
	$(PY) -m sim.broken $(FAULTS)

bench: $(VENV)/.bench ## the benchmarks, with peers where they are installed
	$(PY) -m benchmarks

soak: $(VENV)/.built ## a long run: does anything grow? SECONDS=3600; results in build/soak
	$(PY) -m dlock.drill.soak --seconds $(or $(SECONDS),3600) --output build/soak

docs: $(VENV)/.docs ## the site from docs/ and the docstrings, in build/site
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/site
	@echo "build/site/index.html"

wheel: $(VENV)/.ready ## dist/dlock-*.whl
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## everything that was made, the virtual environment too
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the two above run, where there is a device: in the guest nothing is built.
.PHONY: rdma-tests guest-prepared
rdma-tests: export DLOCK_TEST_RDMA = 1
rdma-tests:
	cd build/c && ctest --output-on-failure -R verbs
	$(PY) -m pytest -m rdma $(call with_tests_of,rdma) $(PYTEST_ARGS)
	DLOCK_TRANSPORT=verbs $(PY) -m pytest -m data_plane $(call with_tests_of,data_plane) $(PYTEST_ARGS)

# Only these files: to look through all of them takes minutes in the guest.
with_tests_of = $(shell grep -ls 'mark[.]$(1)' tests/test_*.py)

# Before the core is built, since it brings the headers of verbs.
guest-prepared:
	$(GUEST) prepare

comma := ,
define build_c_tests
cmake -S . -B build/c -DDLOCK_PYTHON=OFF -DDLOCK_TESTS=ON -DDLOCK_SANITIZE= >/dev/null
cmake --build build/c -j $(JOBS)
endef
# build directory, sanitizers, how to start ctest
define c_tests
cmake -S . -B $(1) -DDLOCK_PYTHON=OFF -DDLOCK_TESTS=ON -DDLOCK_SANITIZE=$(2) >/dev/null
cmake --build $(1) -j $(JOBS)
cd $(1) && $(3) ctest --output-on-failure -j $(JOBS)
endef

# ---- set-up ---------------------------------------------------------------------------------------

$(VENV)/.ready: pyproject.toml scripts/requirements.py
	@$(PYTHON) scripts/requirements.py check
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) scripts/requirements.py build run cli picture doors test test-hpc test-doors | $(PIP) install -r /dev/stdin
	@touch $@

$(VENV)/.built: $(VENV)/.ready $(NATIVE)
	$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.bench: $(VENV)/.built
	$(PY) scripts/requirements.py bench | $(PIP) install -r /dev/stdin
	@touch $@

# In build/npm, and nowhere else.
build/npm/.ready:
	mkdir -p $(@D)
	npm install --prefix $(@D) --no-save --no-audit --no-fund --fetch-retries=1 --loglevel=error \
		@grpc/grpc-js@1 @grpc/proto-loader@0
	@touch $@

$(VENV)/.docs: $(VENV)/.built
	$(PY) scripts/requirements.py docs | $(PIP) install -r /dev/stdin
	@touch $@
