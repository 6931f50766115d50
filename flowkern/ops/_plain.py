"""Values that are kept for later calls, made as if by a plain call, and the plain tensors behind torch.func's."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from flowkern import _torch


@contextlib.contextmanager
def plainly() -> Iterator[Any]:
    """A context whose tensors can be kept: no torch.func transform, inference mode or FakeTensorMode is on.

    Compiled code is left as it is: a compiler keeps nothing of what it traces.
    """
    if torch.compiler.is_dynamo_compiling():
        yield
        return
    with _torch.without_transforms():
        yield


def runs_formulas() -> bool:
    """Whether a call runs the reference's operations as they are, without a Function around them.

    PyTorch drops the outer tangent, without a word, when forward mode is nested over a Function, torch.compile
    refuses a Function with jvp, and torch.jit.trace cannot save one.
    """
    return _torch.forward_mode() or (not torch.compiler.is_compiling() and _torch.tracing())


def is_abstract(tensor: torch.Tensor) -> bool:
    """Whether it has no values, as on meta and in `torch.export`."""
    return tensor.is_meta or _torch.is_fake(tensor)


def common(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor behind those of torch.func; ValueError if torch.func.vmap maps over different ones."""
    *wrappers, tensor = _torch.wrappers(tensor)
    mapped = [dim for dim in map(_torch.mapped_dim, reversed(wrappers)) if dim >= 0]
    if not mapped or is_abstract(tensor):
        return tensor
    with plainly():
        for level, dim in enumerate(mapped):
            tensor = tensor.movedim(dim + level, level)
        tensor = tensor.flatten(0, len(mapped) - 1)
        if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
            raise ValueError(
                f"{name}: expected the same in all modules that vmap maps over, got different ones "
                "(in_dims=None for a buffer that is not mapped)"
            )
        return tensor[0]


def unmapped(name: str, value: Any) -> float | torch.Tensor | tuple[float, float, float, float]:
    """`common` of a tensor that a Function takes for one of all calls, inside a transform of torch.func."""
    if torch.compiler.is_compiling() or not _torch.transforming():
        return value
    return common(name, value) if isinstance(value, torch.Tensor) else value
