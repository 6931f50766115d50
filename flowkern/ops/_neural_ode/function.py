"""The autograd.Function of the neural ODE solve, the same for all its backends.

A backend is a module with
    forward(y, *arguments) -> (ends, sums, kept)
    backward(grad_ends, grad_sums, ends, kept, y, adjoint, *arguments) -> gradients of y and the tensors
with the arguments that reference.py explains. Forward mode, torch.func and gradients that are to be
differentiated again run the formulas.
"""

import torch

from flowkern import _torch
from flowkern.ops._batched import batched, one_by_one
from flowkern.ops._plain import runs_formulas
from flowkern.ops._neural_ode import native, pieces, reference


def backends(name):
    """The module that holds the kernels of backend `name`."""
    if name == "triton":
        from flowkern.ops._neural_ode import triton

        return triton
    return reference if name == "reference" else native


class NeuralOde(torch.autograd.Function):
    @staticmethod
    def forward(y, backend, adjoint, *arguments):
        return backends(backend).forward(y, *arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, ctx.backend, ctx.adjoint, ctx.spec, *tensors = inputs
        ends, _, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)  # zeros for `kept` would be a state per step
        ctx.save_for_backward(y, ends, kept, *tensors)

    @staticmethod
    def backward(ctx, grad_ends, grad_sums, _):
        y, ends, kept, *tensors = ctx.saved_tensors
        if grad_ends is None:
            grad_ends = torch.zeros_like(ends)
        if grad_sums is None:
            grad_sums = y.new_zeros(len(ends), 3, len(y))
        recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if recorded and ctx.adjoint:
            raise RuntimeError("gradient: 'adjoint' has no second derivatives; 'discrete' has them")
        if recorded:
            vjp, inputs = _differentiable_vjp, (ctx.spec, y, *tensors)
        else:
            vjp, inputs = backends(ctx.backend).backward, (ends, kept, y, ctx.adjoint, ctx.spec, *tensors)
        if batched(grad_ends, grad_sums):
            grads = one_by_one(vjp, grad_ends, grad_sums, *inputs)
        else:
            grads = vjp(grad_ends, grad_sums, *inputs)
        return grads[0], None, None, None, *grads[1:]


def _differentiable_vjp(grad_ends, grad_sums, spec, *inputs):
    """The gradients of the inputs, as functions of them, where autograd can see how."""
    # Some inputs are functions of others; views tell their gradients apart.
    views = [t if t is None else t.view_as(t) for t in inputs]
    outputs = reference.forward(views[0], spec, *views[1:])[:2]
    pairs = [(o, g) for o, g in zip(outputs, (grad_ends, grad_sums)) if o.requires_grad]  # sums may be zeros
    outputs, cotangents = zip(*pairs)
    wanted = [i for i, t in enumerate(views) if t is not None and t.requires_grad]
    some = torch.autograd.grad(outputs, [views[i] for i in wanted], cotangents, create_graph=True, allow_unused=True)
    grads = [None] * len(inputs)
    for i, grad in zip(wanted, some):
        grads[i] = grad
    return grads


def needs_gradient(*tensors):
    """Whether a backward may come; any of the tensors may be None."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def apply(y, backend, adjoint, *arguments):
    """(ends, sums) for y (N, D) on `backend`; adjoint: the gradient is to be the continuous adjoint."""
    compiling = torch.compiler.is_compiling()
    transformed = not compiling and _torch.transforming()
    if runs_formulas() or transformed:
        return reference.forward(y, *arguments)[:2]

    def solve(y, *arguments):
        if needs_gradient(y, *arguments[1:]):  # else a compiler could not trace it
            return NeuralOde.apply(y, backend, adjoint, *arguments)[:2]
        return backends(backend).forward(y, *arguments)[:2]

    return pieces.solve(solve, y, *arguments) if backend == "cpu" and not compiling else solve(y, *arguments)
