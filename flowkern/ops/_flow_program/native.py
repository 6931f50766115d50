"""The kernels as dispatcher ops: schemas, fake kernels, calls."""

from typing import Any

import torch

from flowkern import _library as libraries
from flowkern.ops._dispatcher import Ops, define

_ALIGNED = 16  # entries; gradients of all tensors share one allocation
_PROGRAM = "Tensor? context, Tensor[] tensors, Tensor code, Tensor numbers, bool inverse"


def _fake(x, context, tensors, code, numbers, inverse, keep):
    steps, kept = (torch.library.get_ctx().new_dynamic_size() if keep else 0 for _ in range(2))
    states = x.new_empty(steps, x.shape[1], x.shape[0])
    return x.new_empty(x.shape), x.new_empty(x.shape[0]), states, x.new_empty(kept)


def _fake_gradients(
    grad_y,
    grad_l,
    x,
    y,
    states,
    kept,
    context,
    tensors,
    code,
    numbers,
    inverse,
    needs,
    of_context,
):
    needed = [t for t, need in zip(tensors, needs) if need]
    sizes = [-(-t.numel() // _ALIGNED) * _ALIGNED for t in needed]
    parts = x.new_empty(sum(sizes)).split(sizes)
    grads = [part[: t.numel()].view(t.shape) for part, t in zip(parts, needed)]
    return x.new_empty(x.shape), x.new_empty(context.shape if of_context else 0), grads


OPS: Ops = {
    "flow_program": (f"(Tensor x, {_PROGRAM}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)", _fake),
    "flow_program_gradients": (
        f"(Tensor? grad_y, Tensor? grad_l, Tensor x, Tensor y, Tensor states, Tensor kept, {_PROGRAM}, bool[] needs,"
        " bool of_context) -> (Tensor, Tensor, Tensor[])",
        _fake_gradients,
    ),
}
_library = define("flowkern", OPS)
KERNELS = libraries.compiled("flow_program")


def forward(
    x: torch.Tensor,
    context: torch.Tensor | None,
    program: Any,
    inverse: bool,
    tensors: tuple[torch.Tensor, ...],
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y (N, D), l (N,), and where `keep` the features between steps (steps − 1, D, N) and, for few samples, all
    values of the conditioners, in the kernel's order."""
    return torch.ops.flowkern.flow_program(x, context, tensors, program.code, program.numbers, inverse, keep)


def backward(
    grad_y: torch.Tensor | None,
    grad_l: Any,
    x: Any,
    y: Any,
    states: Any,
    kept: Any,
    context: Any,
    needs: tuple[bool, ...],
    program: Any,
    inverse: bool,
    *tensors: torch.Tensor,
) -> list[torch.Tensor | None]:
    """Gradients of x, context and each tensor, those that `needs` asks for."""
    grad_x, grad_context, some = torch.ops.flowkern.flow_program_gradients(
        grad_y,
        grad_l,
        x,
        y,
        states,
        kept,
        context,
        tensors,
        program.code,
        program.numbers,
        inverse,
        needs[2:],
        needs[1],
    )
    some = iter(some)
    grads = [next(some) if need else None for need in needs[2:]]
    return [grad_x, grad_context if needs[1] else None, *grads]
