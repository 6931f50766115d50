"""The neural ODE solve as one call, and its derivatives.

A backend is a module with
    forward(y, *arguments) -> (ends, sums, kept)
    backward(grad_ends, grad_sums, ends, kept, y, adjoint, *arguments) -> gradients of y and the tensors
with the arguments that reference.py explains.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from flowkern.ops._function import Rule, Tensors
from flowkern.ops._neural_ode import native, pieces, reference


class _NeuralOde(Rule):
    kept = (0, 2)
    settings = (1, 2)  # where the intervals start, and their sizes
    materialize = False  # zeros for the states would be one for each step

    def forward(self, kernels: ModuleType, plain: Any, y: torch.Tensor, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return kernels.forward(y, plain[1], *tensors)

    def backward(
        self,
        kernels: ModuleType,
        plain: Any,
        needs: Sequence[bool],
        cotangents: Tensors,
        outputs: Tensors,
        tensors: Tensors,
    ) -> Tensors:
        adjoint, spec = plain
        (grad_ends, grad_sums), (y, *rest) = cotangents, tensors
        grad_ends = torch.zeros_like(outputs[0]) if grad_ends is None else grad_ends
        grad_sums = y.new_zeros(len(outputs[0]), 3, len(y)) if grad_sums is None else grad_sums
        return kernels.backward(grad_ends, grad_sums, *outputs, y, adjoint, spec, *rest)

    def differentiate(self, backend: str, plain: Any, *arguments: Any) -> Tensors:
        if plain[0]:
            raise RuntimeError("gradient: 'adjoint' has no second derivatives; 'discrete' has them")
        return super().differentiate(backend, plain, *arguments)


def _triton() -> ModuleType:
    from flowkern.ops._neural_ode import triton

    return triton


rule = _NeuralOde(native, reference, _triton)


def apply(y: torch.Tensor, backend: str, adjoint: bool, *arguments: Any) -> tuple[torch.Tensor, ...]:
    """(ends, sums) for y (N, D) on `backend`; adjoint: the gradient is to be the continuous adjoint."""

    def solve(y: torch.Tensor, spec: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return rule.apply(backend, (adjoint, spec), y, *tensors)[:2]

    in_pieces = backend == "cpu" and not torch.compiler.is_compiling()
    return pieces.solve(solve, y, *arguments) if in_pieces else solve(y, *arguments)
