# Needs Python 3.10 or later, make, and g++ 11 or later for the compiled kernels.
#   make demo          train, accelerate, compare, time; the page is report/index.html
#   make demo-quick    the same in under a minute, without torch.compile
#   make test          all tests
#   make test-oldest   the tests with the oldest supported torch, built for CUDA (an environment of 5 GB)
#   make test-newest   the tests with the newest torch and Triton, whatever constraints-dev.txt pins
#   make test-torchdiffeq FOLDER=…  torchdiffeq's own tests, from a checkout of it, with our solvers
#   make test-libraries  the libraries' own tests, with every model accelerated; ARGS="nflows FrEIA=FOLDER" chooses
#   make lint          ruff and mypy, as .ci/run and the hooks of pre-commit run them
#   make sanitize      all kernels under sanitizers, and faults planted in them
#   make bench         the benchmarks
#   make gpu-bundle    all that a machine with a GPU needs for a run of ten minutes, in build/gpu-bundle
#   make gpu-dry-run   that run without a GPU, tiny sizes
#   make wheels        wheels that install without a compiler, each checked (needs g++-aarch64-linux-gnu too)
#   make docs          the documentation, build/site/index.html
#   make info          versions, devices, backends
# ARGS="…" is passed on, PYTHON=… chooses the interpreter that .venv is made with.

PYTHON ?= python3
VENV ?= .venv
ENV_PYTHON = $(VENV)/bin/python
INSTALL = $(ENV_PYTHON) -m pip install --disable-pip-version-check -c constraints-dev.txt
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.cu*' -o -name '*.h')

.PHONY: demo demo-quick lint test test-oldest test-newest test-torchdiffeq test-libraries sanitize bench gpu-bundle \
    gpu-dry-run docs wheels info clean

demo: $(VENV)/.demo
	$(ENV_PYTHON) -m demo $(ARGS)

demo-quick:
	$(MAKE) demo ARGS=--quick

# The tests compile the CUDA kernels, with an nvcc from PyPI where the machine has none.
NVCC ?= $(shell command -v nvcc)
ifeq ($(NVCC),)
NVCC = $(shell ls $(VENV)/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
test wheels gpu-bundle: $(VENV)/.nvcc
endif

# One thread for each test process: two processes share the cores.
test: $(VENV)/.test
	NVCC=$(NVCC) OMP_NUM_THREADS=1 $(ENV_PYTHON) -m pytest tests -n auto --dist worksteal $(ARGS)

# The sources are copied: the libraries that are built there must not take the place of ours.
OLDEST ?= .venv-oldest
OLDEST_TREE = build/oldest
OLDEST_PYTHON = $(abspath $(OLDEST))/bin/python
OLDEST_INSTALL = $(OLDEST_PYTHON) -m pip install --disable-pip-version-check -c $(abspath $(OLDEST))/constraints.txt
OLDEST_NVCC = $(or $(shell command -v nvcc),$$(ls $(abspath $(OLDEST))/lib/python3*/site-packages/nvidia/cu13/bin/nvcc))

# What does not depend on torch, the CUDA kernels' machine code and emulation, is left to `make test`. So are the tests of
# the pages of docs/, which are not copied.
IGNORE_PAGES = --ignore-glob='*/docs/test_[dpw]*.py'
test-oldest: $(OLDEST_TREE)/.built $(VENV)/.test
	rm -rf $(addprefix $(OLDEST_TREE)/, bench demo release tests)
	cp -R bench demo release tests $(OLDEST_TREE)
	cp --parents docs/emulation.md $(OLDEST_TREE)
	find flowkern -name '*.py' -o -name '*.json' | xargs cp --parents -t $(OLDEST_TREE)
	cd $(OLDEST_TREE) && OTHER_PYTHON=$(abspath $(ENV_PYTHON)) OTHER_TREE=$(CURDIR) NVCC=$(OLDEST_NVCC) OMP_NUM_THREADS=1 \
	    $(OLDEST_PYTHON) -m pytest tests tests/oldest/checks.py -n auto --dist worksteal \
	    $(IGNORE_PAGES) --ignore=tests/gpu/emulation --ignore-glob='*/test_emulated.py' --deselect=tests/gpu/compiled/test_compiles.py::test_cuda_kernels $(ARGS)

# It asks for newer releases each time. Registers and memory of GPU kernels are limited for the pinned Triton alone.
NEWEST ?= .venv-newest
NEWEST_TREE = build/newest
NEWEST_PYTHON = $(abspath $(NEWEST))/bin/python
NEWEST_INSTALL = $(NEWEST_PYTHON) -m pip install --disable-pip-version-check --quiet -c $(abspath $(NEWEST))/constraints.txt

test-newest: $(NEWEST_TREE)/.built
	rm -rf $(NEWEST_TREE)/tests $(NEWEST_TREE)/bench $(NEWEST_TREE)/demo
	cp -R bench demo tests $(NEWEST_TREE)
	find flowkern -name '*.py' -o -name '*.json' | xargs cp --parents -t $(NEWEST_TREE)
	cd $(NEWEST_TREE) && OMP_NUM_THREADS=1 $(NEWEST_PYTHON) -m pytest tests -n auto --dist worksteal \
	    $(IGNORE_PAGES) --ignore=tests/gpu $(ARGS)

test-torchdiffeq: $(VENV)/.test
	$(ENV_PYTHON) -m tests.ode.torchdiffeq_suite $(FOLDER)

test-libraries: $(VENV)/.test $(VENV)/.libraries
	$(ENV_PYTHON) -m tests.suites $(ARGS)

lint: $(VENV)/.lint
	$(ENV_PYTHON) -m ruff check .
	$(ENV_PYTHON) -m ruff format --diff .
	$(ENV_PYTHON) -m mypy

sanitize: $(VENV)/.test
	$(ENV_PYTHON) -m tests.gpu.sanitizers

# ARGS="--clean python3.10:2.11.0 …" installs this machine's wheel into empty environments too.
wheels: $(VENV)/.wheels
	NVCC=$(NVCC) $(ENV_PYTHON) -m release.wheels $(ARGS)

bench: $(VENV)/.bench
	$(ENV_PYTHON) -m pytest bench $(ARGS)

gpu-bundle: $(VENV)/.test $(VENV)/.bench
	NVCC=$(NVCC) $(ENV_PYTHON) -m tests.gpu.gate.bundle

gpu-dry-run: $(VENV)/.test $(VENV)/.bench
	OMP_NUM_THREADS=1 $(ENV_PYTHON) -m tests.gpu.gate --dry-run

# Warnings are errors: a link, a formula or an excerpt of the sources that is not there.
docs: $(VENV)/.docs
	$(ENV_PYTHON) -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -b html docs build/site
	@echo "build/site/index.html"

info: $(VENV)/.built
	$(ENV_PYTHON) -m flowkern info

clean:
	rm -rf build dist *.egg-info flowkern/*.so report $(VENV)/.torch $(VENV)/.built

# An existing environment is kept, whatever made it.
$(ENV_PYTHON):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "flowkern needs Python 3.10 or later: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "venv failed; on Debian: apt install python3-venv"; exit 1; }

# torch first: the kernels are built against the installed one. (It warns where numpy is missing.)
$(VENV)/.torch: constraints-dev.txt | $(ENV_PYTHON)
	$(INSTALL) torch numpy
	$(INSTALL) --quiet setuptools
	@touch $@

# Without a compiler nothing is built, and the next make tries again.
$(VENV)/.built: $(SOURCES) $(VENV)/.torch
	$(INSTALL) --quiet --no-build-isolation --no-deps --editable .
	@[ ! -e flowkern/libflowkern_cpu.so ] || touch $@

# The package is installed already, so this adds what its extra group asks for.
EXTRAS = $(VENV)/.demo $(VENV)/.lint $(VENV)/.test $(VENV)/.libraries $(VENV)/.bench $(VENV)/.wheels $(VENV)/.docs
$(EXTRAS): $(VENV)/.%: pyproject.toml constraints-dev.txt | $(VENV)/.built
	$(INSTALL) --quiet "flowkern[$*]"
	@touch $@

$(OLDEST)/.torch: constraints-oldest.txt constraints-dev.txt
	[ -e $(OLDEST_PYTHON) ] || $(PYTHON) -m venv $(OLDEST)
	{ cat constraints-oldest.txt; grep -vE '^(torch|triton|numpy|setuptools)==' constraints-dev.txt; } \
	    >$(OLDEST)/constraints.txt
	$(OLDEST_INSTALL) --quiet torch numpy setuptools nvidia-cuda-nvcc nvidia-cuda-runtime
	@touch $@

$(OLDEST_TREE)/.built: $(SOURCES) $(OLDEST)/.torch
	rm -rf $(OLDEST_TREE) && mkdir -p $(OLDEST_TREE)
	tar c --exclude='*.so' --exclude=__pycache__ csrc flowkern .github setup.py pyproject.toml MANIFEST.in *.md *.cff LICENSE | \
	    tar x -C $(OLDEST_TREE)
	cd $(OLDEST_TREE) && FLOWKERN_CUDA=1 NVCC=$(OLDEST_NVCC) \
	    $(OLDEST_INSTALL) --quiet --no-build-isolation --editable '.[test]'
	@touch $@

.PHONY: $(NEWEST)/.torch
$(NEWEST)/.torch: constraints-dev.txt
	[ -e $(NEWEST_PYTHON) ] || $(PYTHON) -m venv $(NEWEST)
	grep -vE '^(torch|triton|numpy|setuptools|nvidia-.*)==' constraints-dev.txt >$(NEWEST)/constraints.txt
	$(NEWEST_INSTALL) --upgrade torch triton numpy setuptools

$(NEWEST_TREE)/.built: $(SOURCES) $(NEWEST)/.torch
	rm -rf $(NEWEST_TREE) && mkdir -p $(NEWEST_TREE)
	tar c --exclude='*.so' --exclude=__pycache__ csrc flowkern setup.py pyproject.toml MANIFEST.in *.md *.cff LICENSE | \
	    tar x -C $(NEWEST_TREE)
	cd $(NEWEST_TREE) && FLOWKERN_CUDA=0 $(NEWEST_INSTALL) --no-build-isolation --editable '.[test]'
	@touch $@

$(VENV)/.nvcc: constraints-dev.txt | $(ENV_PYTHON)
	$(INSTALL) --quiet nvidia-cuda-nvcc nvidia-cuda-runtime
	@touch $@
