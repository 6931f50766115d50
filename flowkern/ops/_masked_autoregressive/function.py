"""The masked autoregressive transform as one call, and its derivatives.

A backend is a module with
    forward(x, spec, order, ends, ranks, *tensors) -> (y, logabsdet)
    backward(grad_y, grad_logabsdet, x, y, needs, spec, order, ends, ranks, *tensors)
        -> (grad_x, *grads)
with the arguments that reference.py explains; needs says for each of tensors whether its gradient
is wanted (else None may come back).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from flowkern.ops._function import MappedRule, Tensors
from flowkern.ops._masked_autoregressive import native, reference
from flowkern.ops._trace import traced

ROW_WISE = (False, True, True, False, False)  # weight, bias, gate, gain, offset of a layer
_RANKS = tuple(2 * by_row for by_row in ROW_WISE)


class _Masked(MappedRule):
    kept = (0,)

    def forward(self, kernels: ModuleType, spec: Any, x: torch.Tensor, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return kernels.forward(x, spec, *tensors)

    def backward(
        self,
        kernels: ModuleType,
        spec: Any,
        needs: Sequence[bool],
        cotangents: Tensors,
        outputs: Tensors,
        tensors: Tensors,
    ) -> Tensors:
        x, *rest = tensors
        grad_x, *grads = kernels.backward(*cotangents, x, *outputs, needs[4:], spec, *rest)
        return grad_x, None, None, None, *grads

    @traced
    def with_terms(self, backend: str, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        """The outputs, without derivatives, of a call whose last tensors are the contexts' terms; plain is
        (spec, the terms' activations, their slopes)."""
        spec, *kinds = plain
        count = len(tensors) - 3 * len(kinds[0])
        terms = reference.Terms(list(tensors[count:]), *kinds)
        return self.kernels(backend).forward(tensors[0], spec, *tensors[1:count], terms=terms)

    def ranks(self, spec: Any, tensors: Tensors) -> Sequence[int] | None:
        return 2, 0, 0, 0, *_RANKS * ((len(tensors) - 4) // 5)


def _triton() -> ModuleType:
    from flowkern.ops._masked_autoregressive import triton

    return triton


rule = _Masked(native, reference, _triton)
