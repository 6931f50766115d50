"""A flow's program as one call, and its derivatives: one node for all its parameters.

What a kernel does not do goes through the reference: compilers, forward mode, torch.func.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from flowkern.ops._arguments import version
from flowkern.ops._flow_program import native, reference
from flowkern.ops._function import Rule
from flowkern.ops._masked_autoregressive.reference import compute_dtype

WORK = 2e10  # multiplications in a piece: on two cores with AVX-512 a quarter of a second, with gradients one
_ELEMENT = 200  # multiplications that take as long as the transform of one feature


class _FlowProgram(Rule):
    kept = (0, 2, 3)  # y, the features between the steps, and the values of few samples
    materialize = False

    def forward(
        self,
        kernels: ModuleType,
        plain: tuple[Any, bool],
        x: torch.Tensor,
        context: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        if kernels is reference:
            return reference.forward(x, context, *plain, *tensors)
        return native.forward(x, context, *plain, tensors, False)

    def forward_to_differentiate(
        self,
        kernels: ModuleType,
        plain: tuple[Any, bool],
        x: torch.Tensor,
        context: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return native.forward(x, context, *plain, tensors, True)

    def backward(self, kernels, plain, needs, cotangents, outputs, tensors):
        x, context, *rest = tensors
        cotangents = (g if g is None else g.contiguous() for g in cotangents)
        return native.backward(*cotangents, x, *outputs, context, needs, *plain, *rest)

    def save(self, ctx, tensors, outputs):
        # Saved one by one, the parameters would cost as much as the kernel. They are inputs, so that no
        # reference goes in a circle.
        ctx.tensors = tensors[2:]
        ctx.versions = _versions(ctx.tensors)
        ctx.save_for_backward(*tensors[:2], outputs[0], *outputs[2:])

    def saved(self, ctx: Any) -> tuple[tuple[torch.Tensor | None, ...], tuple[torch.Tensor, ...]]:
        x, context, *outputs = ctx.saved_tensors
        return (x, context, *_unchanged(ctx.tensors, ctx.versions)), outputs


def _unchanged(tensors: tuple[torch.Tensor, ...], versions: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """The tensors, unless one was modified in place since the forward: torch's own error."""
    now = _versions(tensors)
    if now != versions:
        i = next(i for i, before in enumerate(versions) if now[i] != before)
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"tensors[{i}] of shape {tuple(tensors[i].shape)} is at version {now[i]}; expected version {versions[i]}"
        )
    return tensors


def _versions(tensors: tuple[torch.Tensor, ...]) -> list[int]:
    """How often each was written to; of tensors made in inference mode that is not counted."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [version(tensor) for tensor in tensors]


def in_one_dtype(*tensors):
    """The tensors in float64 if one of them is, else in float32."""
    dtype = compute_dtype(tensors[0], tensors[1:])
    return [t if t is None else t.to(dtype) for t in tensors]


rule = _FlowProgram(native, reference)


def apply(
    x: torch.Tensor,
    backend: str,
    program: Any,
    inverse: bool,
    context: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
) -> Any:
    """(y, l) for x (N, D), context and tensors of one dtype on `backend`; differentiable in all of them.

    A kernel runs to its end, whatever happens outside: many rows are taken in pieces, between which Python looks at
    signals such as Ctrl-C.
    """
    if backend == "reference" or torch.compiler.is_compiling():
        return reference.forward(x, context, program, inverse, *tensors)

    def run(x, context):
        return rule.apply(backend, (program, inverse), x, context, *tensors)[:2]

    rows = int(WORK / max(program.weights + _ELEMENT * program.features * len(program.steps), 1)) + 1
    if len(x) <= rows:
        return run(x, context)
    pieces = [slice(begin, begin + rows) for begin in range(0, len(x), rows)]
    ends, sums = zip(*(run(x[some], None if context is None else context[some]) for some in pieces))
    return torch.cat(ends), torch.cat(sums)
