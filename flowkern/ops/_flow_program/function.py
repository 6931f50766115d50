"""The autograd.Function of a flow's program: one node for all its parameters.

What a kernel does not do goes through the reference: second derivatives, forward mode, torch.func.
"""

import torch

from flowkern import _torch
from flowkern.ops._arguments import version
from flowkern.ops._batched import batched, one_by_one
from flowkern.ops._flow_program import native, reference
from flowkern.ops._masked_autoregressive.reference import compute_dtype


class FlowProgram(torch.autograd.Function):
    @staticmethod
    def forward(ctx, program, inverse, x, context, *tensors):
        y, l, states = native.forward(x, context, program, inverse, tensors, True)
        ctx.program, ctx.inverse = program, inverse
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, states, context)
        # Saved one by one, the parameters would cost as much as the kernel. They are inputs, so that no
        # reference goes in a circle.
        ctx.tensors, ctx.versions = tensors, _versions(tensors)
        return y, l

    @staticmethod
    def backward(ctx, grad_y, grad_l):
        needs = ctx.needs_input_grad[2:]
        x, y, states, context = ctx.saved_tensors
        tensors = _unchanged(ctx.tensors, ctx.versions)
        recorded = torch.is_grad_enabled() or _torch.transforming()
        if recorded and not batched(grad_y, grad_l):
            return None, None, *_by_reference(ctx, needs, grad_y, grad_l, x, context, *tensors)

        def run(*cotangents):
            contiguous = (g if g is None else g.contiguous() for g in cotangents)
            return native.backward(*contiguous, x, y, states, context, needs, ctx.program, ctx.inverse, *tensors)

        grads = one_by_one(run, grad_y, grad_l) if batched(grad_y, grad_l) else run(grad_y, grad_l)
        return None, None, *grads


def _unchanged(tensors, versions):
    """The tensors, unless one was modified in place since the forward: torch's own error."""
    now = _versions(tensors)
    if now != versions:
        i = next(i for i, before in enumerate(versions) if now[i] != before)
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"tensors[{i}] of shape {tuple(tensors[i].shape)} is at version {now[i]}; expected version {versions[i]}"
        )
    return tensors


def _versions(tensors):
    """How often each was written to; of tensors made in inference mode that is not counted."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [version(tensor) for tensor in tensors]


def _by_reference(ctx, needs, grad_y, grad_l, x, context, *tensors):
    """Differentiable gradients. Views stand in for the inputs: one may occur twice, or hang on another."""
    with torch.enable_grad():
        inputs = [t if t is None else t.view_as(t) for t in (x, context, *tensors)]
        outputs = reference.forward(*inputs[:2], ctx.program, ctx.inverse, *inputs[2:])
        pairs = [(o, g) for o, g in zip(outputs, (grad_y, grad_l)) if g is not None]
        wanted = [i for i, need in enumerate(needs) if need and inputs[i] is not None]
        some = torch.autograd.grad(
            [o for o, _ in pairs], [inputs[i] for i in wanted], [g for _, g in pairs],
            create_graph=True, allow_unused=True,
        )  # fmt: skip
    grads = [None] * len(inputs)
    for i, grad in zip(wanted, some):
        grads[i] = grad
    return grads


def in_one_dtype(*tensors):
    """The tensors in float64 if one of them is, else in float32."""
    dtype = compute_dtype(tensors[0], tensors[1:])
    return [t if t is None else t.to(dtype) for t in tensors]


def apply(x, backend, program, inverse, context, tensors):
    """(y, l) for x (N, D), context and tensors of one dtype on `backend`; differentiable in all of them."""
    plain = backend == "reference" or torch.compiler.is_compiling()
    if plain or _torch.forward_mode() or _torch.transforming():
        return reference.forward(x, context, program, inverse, *tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, context, *tensors)):
        return FlowProgram.apply(program, inverse, x, context, *tensors)
    return native.forward(x, context, program, inverse, tensors, False)[:2]
