"""Backwards of batched gradients, one by one: kernels and adaptive solves cannot be traced by `vmap`.

`torch.autograd.grad(…, is_grads_batched=True)` and `jacobian(vectorize=True)` call a backward with tensors of
PyTorch's older vmap, `torch.func.vmap` around `torch.autograd.grad` with those of the newer one.
"""

from collections.abc import Callable
from typing import Any

import torch

from flowkern import _torch


def batched(*tensors: torch.Tensor | None) -> bool:
    """Whether any of the tensors, None among them, stands for a batch."""
    return not torch.compiler.is_compiling() and _torch.any_mapped(tensors)


def one_by_one(function: Callable, *inputs: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """function(*inputs), a tuple of tensors or None; of batches, the results for each element as batches."""
    if any(isinstance(x, torch.Tensor) and _torch.is_legacy_mapped(x) for x in inputs):
        return _by_older_vmap(function, inputs, _torch.legacy_level())
    return _OneByOne.apply(function, *inputs) if batched(*inputs) else tuple(function(*inputs))


def _by_older_vmap(function: Callable[..., Any], inputs: Any, level: int) -> tuple[torch.Tensor | None, ...]:
    dims = [0 if isinstance(x, torch.Tensor) and _torch.is_legacy_mapped(x) else None for x in inputs]
    plain = [x if dim is None else _torch.legacy_unmapped(x, level) for x, dim in zip(inputs, dims)]
    size = next(len(x) for x, dim in zip(plain, dims) if dim == 0)
    outputs = _stacked(function, size, dims, plain)
    return tuple(None if output is None else _torch.legacy_mapped(output, level) for output in outputs)


def _stacked(function: Callable[..., Any], size: int, dims: Any, inputs: Any) -> tuple[torch.Tensor | None, ...]:
    """What function returns for each element of the batch, stacked."""
    calls = []
    for n in range(size):
        # The dimensions of what is no tensor are None, or a tuple of such.
        each = (x.select(dim, n) if isinstance(dim, int) else x for x, dim in zip(inputs, dims))
        calls.append(one_by_one(function, *each))
    return tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*calls))


class _OneByOne(torch.autograd.Function):
    @staticmethod
    def forward(function, *inputs):
        return tuple(function(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError("batched gradients: cannot be differentiated within torch.func.grad")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Callable, *inputs: torch.Tensor | None
    ) -> tuple[tuple[torch.Tensor | None, ...], tuple[int | None, ...]]:
        outputs = _stacked(function, info.batch_size, in_dims[1:], inputs)
        return outputs, tuple(None if output is None else 0 for output in outputs)
