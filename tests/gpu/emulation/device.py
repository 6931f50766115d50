"""The raw ops of the dispatcher, by the CUDA kernels in the emulation, on CPU tensors."""

import contextlib
from unittest import mock

import torch

import flowkern  # noqa: F401  (registers the ops that are replaced here)
from tests import cases
from tests.gpu.emulation import library

_MODULES = cases.modules("emulated")
# dispatcher op: the function that runs it; what else is replaced
OPS = {name: op for module in _MODULES.values() for name, op in module.OPS.items()}
_REPLACED = [others for module in _MODULES.values() for others in getattr(module, "REPLACED", ())]


@contextlib.contextmanager
def emulated(loaded=library._library):
    """Inside, what calls itself backend "cpu" is the emulated CUDA one, or that of another library."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(library.loaded(loaded))
        for name, op in OPS.items():
            stack.enter_context(mock.patch.object(torch.ops.flowkern, name, op))
        for others in _REPLACED:
            stack.enter_context(mock.patch.object(*others))
        yield
