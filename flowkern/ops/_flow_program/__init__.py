"""A whole flow in one call: its transforms one after the other, with their log-determinants."""

import math
from collections.abc import Sequence

import torch

from flowkern import backends
from flowkern.ops._arguments import check_tensor
from flowkern.ops._flow_program.function import apply, in_one_dtype
from flowkern.ops._flow_program.native import KERNELS
from flowkern.ops._flow_program.steps import (
    LAYER_TENSORS,
    LU,
    Conditioned,
    ConditionerLayer,
    Linear,
    Permutation,
    Program,
    Scale,
)

__all__ = [
    "LAYER_TENSORS",
    "LU",
    "Conditioned",
    "ConditionerLayer",
    "Linear",
    "Permutation",
    "Program",
    "Scale",
    "flow_program",
]


def flow_program(
    x: torch.Tensor,
    program: Program,
    tensors: Sequence[torch.Tensor],
    context: torch.Tensor | None = None,
    inverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = f_K(… f_1(x)) and Σ_k log|det ∂f_k|, or the inverse, for a flow given as a `Program`.

    Args:
        x: (…, D), float32/float64, or float16/bfloat16 (computed in float32).
        program: the flow's steps.
        tensors: what the steps take, one after the other.
        context: (…, C), or (C,) for all samples; None if the program has none.
        inverse: whether to run the steps backwards, each inverted.

    Returns:
        y (…, D) of x's dtype, and (…,) in float32 (float64 if any input is): the log-determinant, or,
        for a program with a base distribution and forward, the log-density of x.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        RuntimeError: the chosen backend cannot run here.

    Source: Papamakarios et al., Normalizing Flows for Probabilistic Modeling and Inference (2021), eqs. 2 and 6.
    """
    check_tensor("x", x)
    if x.dim() < 1 or x.shape[-1] != program.features:
        raise ValueError(f"x: expected shape (…, {program.features}), got {tuple(x.shape)}")
    tensors = tuple(tensors)
    if len(tensors) != program.tensors:
        raise ValueError(f"tensors: expected {program.tensors}, got {len(tensors)}")
    for i, tensor in enumerate(tensors):
        check_tensor(f"tensors[{i}]", tensor, x)
    if (context is None) != (program.context == 0):
        got = context if context is None else tuple(context.shape)
        raise ValueError(f"context: expected {program.context or 'no'} features, got {got}")
    batch = x.shape[:-1]
    if context is not None:
        check_tensor("context", context, x)
        if context.dim() < 1 or context.shape[-1] != program.context:
            raise ValueError(f"context: expected shape (…, {program.context}), got {tuple(context.shape)}")
        batch = _broadcast(batch, context.shape[:-1])
        context = _rows(context, batch)
    rows, context, *tensors = in_one_dtype(_rows(x, batch), context, *tensors)
    y, l = evaluate(rows, program, tensors, context, inverse)
    return y.to(x.dtype).reshape(*batch, x.shape[-1]), l.reshape(batch)


def evaluate(
    x: torch.Tensor, program: Program, tensors: Sequence[torch.Tensor], context: torch.Tensor | None, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op for x (N, D), context (N, C) and tensors of one dtype, float32 or float64, for callers whose
    arguments are known to fit: it checks no more than the kernel does."""
    return apply(x, backends.resolve(x.device.type, KERNELS), program, inverse, context, tensors)


def _broadcast(batch: torch.Size, other: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(batch, other)
    except RuntimeError:
        raise ValueError(
            f"context: its batch shape {tuple(other)} does not broadcast with that of x, {tuple(batch)}"
        ) from None


def _rows(tensor: torch.Tensor, batch: torch.Size) -> torch.Tensor:
    if tensor.shape[:-1] != batch:
        tensor = tensor.expand(*batch, tensor.shape[-1])
    return tensor if len(batch) == 1 else tensor.reshape(math.prod(batch), tensor.shape[-1])
