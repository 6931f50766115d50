"""A plugin of pytest: every module of some libraries is accelerated as soon as it is built, and each test has its seed.

    FLOWKERN_LIBRARIES=nflows python -m pytest -p accelerated …

Without the variable it only seeds, so that two runs differ by nothing else.

The summary's last line is the number of layers that were replaced.
"""

import functools
import importlib
import itertools
import os
import pkgutil
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

import flowkern
from flowkern import adapters

_replaced: Counter = Counter()


def pytest_runtest_setup(item):
    """The same random numbers in every run."""
    torch.manual_seed(0)


def pytest_configure(config):
    """Wrap the constructors of all modules of the library, and count what is replaced."""
    libraries = os.environ.get("FLOWKERN_LIBRARIES", "").split()
    if not libraries:
        return
    replace = adapters._replace

    def counted(module, methods):
        _replaced[type(module).__name__] += 1
        replace(module, methods)

    adapters._replace = counted
    for cls in itertools.chain.from_iterable(map(_modules, libraries)):
        cls.__init__ = _accelerating(cls.__init__)


def pytest_sessionfinish(session):
    """A worker of pytest-xdist hands its counts on."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["replaced"] = dict(_replaced)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """They are added up."""
    _replaced.update(getattr(node, "workeroutput", {}).get("replaced", {}))


def pytest_terminal_summary(terminalreporter):
    """How many layers were replaced, by class."""
    if not _replaced:
        return
    kinds = ", ".join(f"{count} {name}" for name, count in _replaced.most_common())
    terminalreporter.write_line(f"replaced: {sum(_replaced.values())}: {kinds}")


def _modules(library):
    """The classes of the library that are modules and have a constructor of their own."""
    package = importlib.import_module(library)
    found = {}
    for info in pkgutil.walk_packages(package.__path__, f"{library}."):
        if info.name.endswith("_test"):
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # it needs what is not installed
            continue
        found |= {id(value): value for value in vars(module).values() if _is_own(value, library)}
    return list(found.values())


def _is_own(value, library):
    is_module = isinstance(value, type) and issubclass(value, nn.Module)
    return is_module and value.__module__.partition(".")[0] == library and "__init__" in vars(value)


def _accelerating(init):
    @functools.wraps(init)
    def wrapped(self, *arguments, **options):
        init(self, *arguments, **options)
        if type(self).__init__ is wrapped:  # the constructor of the object's class, and not of one above it
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                flowkern.accelerate(self)

    return wrapped
