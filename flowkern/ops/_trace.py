"""FLOWKERN_TRACE=folder: the calls of ops that a process makes, without the numbers in their tensors.

Each process writes `trace-<its id>.jsonl`, one line for each different call, and how often it was made when the process
ends. `python -m bench --trace folder` times these calls again (docs/benchmarks.md describes the format). Of tensors
there is shape, strides, dtype and device; the numbers of those alone that describe a call: integers, and the tensors
that a rule names in `settings`. Calls inside compiled code, forward mode and transforms of torch.func are not written.
"""

import atexit
import dataclasses
import functools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from flowkern import _torch

_Method = TypeVar("_Method", bound=Callable)


class Trace:
    """The different calls of this process, and the file that they are written to."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).resolve()
        self._start()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file.touch()
        except OSError as error:
            raise RuntimeError(
                f"FLOWKERN_TRACE: expected a folder that can be written, got {folder!r}: {error}"
            ) from None
        os.register_at_fork(after_in_child=self._start)
        atexit.register(self.write)

    def _start(self) -> None:
        """With a file and a lock of this process's own, no call so far."""
        self.file = self.folder / f"trace-{os.getpid()}.jsonl"
        self.calls: dict[str, int] = {}
        self.lock = threading.Lock()

    def add(self, line: str) -> None:
        """Count a call; one that is new is written at once, so that a process that is killed leaves it too."""
        with self.lock:
            self.calls[line] = self.calls.get(line, 0) + 1
            if self.calls[line] == 1:
                with self.file.open("w" if len(self.calls) == 1 else "a") as file:
                    file.write(_counted(line, 1))

    def write(self) -> None:
        """Write how often each call was made."""
        if self.calls:
            self.file.write_text("".join(_counted(line, count) for line, count in self.calls.items()))
        else:
            self.file.unlink(missing_ok=True)


def _counted(line: str, count: int) -> str:
    return f'{{"calls": {count}, {line[1:]}\n'


_TRACE = Trace(os.environ["FLOWKERN_TRACE"]) if os.environ.get("FLOWKERN_TRACE") else None


def traced(run: _Method) -> _Method:
    """A method `run(rule, backend, plain, *tensors)` of a rule: itself, or where FLOWKERN_TRACE is set one that writes
    its calls."""
    if _TRACE is None:
        return run
    trace = _TRACE

    @functools.wraps(run)
    def call(rule: Any, backend: str, plain: Any, *tensors: Any) -> Any:
        if not torch.compiler.is_compiling() and not _torch.observed():
            trace.add(json.dumps(_described(rule, run.__name__, backend, plain, tensors)))
        return run(rule, backend, plain, *tensors)

    return cast(_Method, call)


def _described(rule: Any, method: str, backend: str, plain: Any, tensors: Any) -> dict[str, Any]:
    """A call as plain data."""
    gradient = torch.is_grad_enabled()
    return {
        "op": rule.name,
        "method": method,
        "backend": backend,
        "options": _plain(plain),
        "tensors": [_tensor(t, i in rule.settings, gradient) for i, t in enumerate(tensors)],
    }


def _tensor(tensor: Any, is_setting: bool, gradient: bool) -> dict[str, Any] | None:
    if tensor is None:
        return None
    found = {
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": tensor.device.type,
        "gradient": gradient and tensor.requires_grad,
    }
    if is_setting or not tensor.is_floating_point() and not tensor.is_complex():
        found["values"] = tensor.tolist()
    return found


def _plain(value: Any) -> Any:
    """Numbers, texts and lists as they are; objects by their class's name and the arguments that make one like them."""
    arguments = _arguments(value)
    if arguments is not None:
        return {f"{type(value).__module__}.{type(value).__qualname__}": [_plain(argument) for argument in arguments]}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _arguments(value: Any) -> Any:
    if hasattr(value, "made_of"):
        return value.made_of()
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return value if hasattr(value, "_fields") else None
