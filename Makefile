# Needs Python 3.10 or later, make, and g++ 11 or later for the compiled kernels.
#   make demo          train, accelerate, compare, time; the page is report/index.html
#   make demo-quick    the same in under a minute, without torch.compile
#   make test          all tests
#   make sanitize      all kernels under sanitizers, and faults planted in them
#   make bench         the benchmarks
#   make info          versions, devices, backends
# ARGS="…" is passed on, PYTHON=… chooses the interpreter that .venv is made with.

PYTHON ?= python3
VENV ?= .venv
ENV_PYTHON = $(VENV)/bin/python
INSTALL = $(ENV_PYTHON) -m pip install --disable-pip-version-check -c constraints-dev.txt
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.cu*' -o -name '*.h')

.PHONY: demo demo-quick test sanitize bench info clean

demo: $(VENV)/.demo
	$(ENV_PYTHON) -m flowkern.demo $(ARGS)

demo-quick:
	$(MAKE) demo ARGS=--quick

# The tests compile the CUDA kernels, with an nvcc from PyPI where the machine has none.
NVCC ?= $(shell command -v nvcc)
ifeq ($(NVCC),)
NVCC = $(shell ls $(VENV)/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
test: $(VENV)/.nvcc
endif

# One thread for each test process: two processes share the cores.
test: $(VENV)/.test
	NVCC=$(NVCC) OMP_NUM_THREADS=1 $(ENV_PYTHON) -m pytest tests -n auto --dist worksteal $(ARGS)

sanitize: $(VENV)/.test
	$(ENV_PYTHON) -m tests.sanitizers

bench: $(VENV)/.bench
	$(ENV_PYTHON) -m pytest bench $(ARGS)

info: $(VENV)/.built
	$(ENV_PYTHON) -m flowkern info

clean:
	rm -rf build *.egg-info flowkern/*.so report $(VENV)/.torch $(VENV)/.built

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
EXTRAS = $(VENV)/.demo $(VENV)/.test $(VENV)/.bench
$(EXTRAS): $(VENV)/.%: pyproject.toml constraints-dev.txt | $(VENV)/.built
	$(INSTALL) --quiet "flowkern[$*]"
	@touch $@

$(VENV)/.nvcc: constraints-dev.txt | $(ENV_PYTHON)
	$(INSTALL) --quiet nvidia-cuda-nvcc nvidia-cuda-runtime
	@touch $@
