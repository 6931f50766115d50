"""Which backend runs an op: an explicit choice that cannot run raises, the automatic one falls back.

The choice is made once per call from three plain values (the thread's choice, the environment's,
the tensors' device), so that `torch.compile` can follow it and guards on it.
"""

import contextlib
import functools
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator

import torch

from flowkern import _library

NAMES = ("reference", "cpu", "triton", "cuda")


_CUDA_FIRST, _TRITON_FIRST = ("cuda", "triton", "reference"), ("triton", "cuda", "reference")
# By whether a tensor is in half precision, which Triton reads as it is; for the CUDA kernels it is converted to
# float32 first. It follows predictions from the compiled code, not measurements.
_ON_GPUS = {True: _TRITON_FIRST, False: _CUDA_FIRST}


class NoKernelError(RuntimeError):
    """The chosen backend runs here, but has no kernel for this op."""


class _Choice(threading.local):
    def __init__(self):
        self.name = None  # an attribute of the class would break torch.compile's guards


_choice = _Choice()
_environment = os.environ.get("FLOWKERN_BACKEND") or None
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every op inside the block on backend `name`, one of `flowkern.backends.NAMES`.

    Raises:
        ValueError: `name` is not a backend.
        RuntimeError: the backend cannot run here; the message says why.

    Example:
        >>> import torch, flowkern
        >>> with flowkern.backend("reference"):
        ...     y, logabsdet = flowkern.ops.affine_coupling(torch.ones(3), torch.zeros(3, 2))
        >>> y
        tensor([1., 1., 1.])
    """
    _require(name, "name")
    previous, _choice.name = _choice.name, name
    try:
        yield
    finally:
        _choice.name = previous


def resolve(device_type, kernels=("cpu", "triton", "cuda"), half=False):
    """The backend that runs an op on tensors of `device_type` ("cpu", "cuda", …).

    `kernels` names the backends for which the op has a kernel; `half` says that one of its tensors is
    in half precision.
    """
    explicit = _choice.name or _environment
    if explicit is not None:
        _require(explicit, "FLOWKERN_BACKEND")
        _require_device(explicit, device_type)
        if explicit != "reference" and explicit not in kernels:
            raise NoKernelError(f"backend {explicit!r} was chosen, but has no kernel for this op")
        if explicit != "reference" and _traces():
            raise RuntimeError(
                f"backend {explicit!r} was chosen, but torch.jit.trace and ONNX take plain operations alone"
            )
        return explicit
    if _traces():
        return "reference"
    for name in _automatic(device_type, half):
        if name != "reference" and name not in kernels:
            continue
        if unavailable(name) is None:
            if name == "reference" and not torch.compiler.is_compiling():
                _warn_slow(device_type)
            return name
    raise AssertionError("the reference runs everywhere")


def _automatic(device_type, half=False):
    """Fastest first."""
    if device_type == "cpu":
        return "cpu", "reference"
    if device_type != "cuda":
        return ("reference",)
    return _ON_GPUS[half]


def _traces():
    """Whether torch.jit.trace or an export to ONNX records the call, which save plain operations alone."""
    if torch.jit.is_tracing():
        return True
    exports = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    return exports and "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def unavailable(name):
    """Why backend `name` cannot run here, or None if it can."""
    if name == "reference":
        return None
    if name == "triton":
        return _triton_unavailable()
    return _library.unavailable(name)


def _require(name, argument):
    if name not in NAMES:
        raise ValueError(f"{argument}: expected one of {', '.join(NAMES)}, got {name!r}")
    reason = unavailable(name)
    if reason is not None:
        raise RuntimeError(f"{argument}: backend {name!r} cannot run here: {reason}")


def _require_device(name, device_type):
    interpreted = name == "triton" and device_type == "cpu" and triton_interpreted()
    wanted = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}.get(name, device_type)
    if wanted != device_type and not interpreted:
        raise RuntimeError(f"backend {name!r} was chosen, which runs on {wanted} tensors, but x is on {device_type!r}")


def triton_interpreted():
    """Whether Triton kernels run through Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton_unavailable():
    if not _TRITON_INSTALLED:
        return "the package triton is not installed (pip install triton)"
    if not _library.gpu_is_visible() and not triton_interpreted():
        return "no GPU is visible to torch (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return None


@functools.cache
def _warn_slow(device_type):
    """Say once why the fused kernels do not run."""
    reasons = {n: unavailable(n) for n in _automatic(device_type) if n != "reference"}
    detail = "; ".join(f"{n}: {r}" for n, r in reasons.items()) or f"no kernels for {device_type!r}"
    warnings.warn(f"flowkern falls back to its slow reference implementation ({detail})", stacklevel=3)
