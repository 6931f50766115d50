"""The probability path as one call, and its derivatives.

A backend is a module with
    forward(x0, x1, t, noise, seed, path, sigma) -> (x_t, u_t, t)
    backward(grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma) -> (grad_x0, grad_x1, grad_t)
where x0, x1 and noise are (N, D) and t (N,), all of one dtype and contiguous. t or noise may be None:
they are drawn then, and forward returns the t drawn, which backward takes for t. of_t says whether
grad_t is wanted.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from flowkern.ops._function import MappedRule, Rule, Tensors
from flowkern.ops._probability_path import native, reference
from flowkern.ops._probability_path.kinds import TARGET


class _ProbabilityPath(MappedRule):
    kept = (2,)
    differentiate = Rule.differentiate  # plain PyTorch, which is mapped as it is

    def forward(self, kernels: ModuleType, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return kernels.forward(*_contiguous(*tensors), *plain)

    def backward(
        self,
        kernels: ModuleType,
        plain: Any,
        needs: Sequence[bool],
        cotangents: Tensors,
        outputs: Tensors,
        tensors: Tensors,
    ) -> Tensors:
        x0, x1, t, *rest = _contiguous(*tensors)
        t = outputs[0] if t is None else t
        return *kernels.backward(*_contiguous(*cotangents), needs[2], x0, x1, t, *rest, *plain), None, None

    def ranks(self, plain: Any, tensors: Tensors) -> Sequence[int] | None:
        # Numbers belong to places in a batch: in one that is joined they would be others.
        _, _, t, noise, _ = tensors
        return None if t is None or noise is None and draws_noise(*plain) else (2, 2, 1, 2, 0)


def _triton() -> ModuleType:
    from flowkern.ops._probability_path import triton

    return triton


rule = _ProbabilityPath(native, reference, _triton)
apply = rule.apply


def draws_noise(path: int, sigma: float) -> bool:
    """Whether a path of that code has noise: where σ is 0 the target path alone, which starts at it."""
    return sigma != 0 or path == TARGET


def _contiguous(*tensors: Any) -> list[Any]:
    return [t if t is None else t.contiguous() for t in tensors]
