"""The autograd.Function of the neural ODE solve, the same for all its backends.

A backend is a module with
    forward(y, *arguments) -> (path, sums)
    backward(grad_path, grad_sums, path, y, adjoint, *arguments) -> gradients of y and the tensors
with the arguments that reference.py explains. Forward mode, torch.func and gradients that are to be
differentiated again run the formulas.
"""

import torch
from torch.autograd import forward_ad

from flowkern.ops.neural_ode import native, reference


def backends(name):
    """The module that holds the kernels of backend `name`."""
    if name == "triton":
        from flowkern.ops.neural_ode import triton

        return triton
    return reference if name == "reference" else native


class NeuralOde(torch.autograd.Function):
    @staticmethod
    def forward(y, backend, first_back, *arguments):
        return backends(backend).forward(y, *arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, ctx.backend, first_back, ctx.spec, *tensors = inputs
        ctx.save_for_backward(y, output[0], first_back, *tensors)

    @staticmethod
    def backward(ctx, grad_path, grad_sums):
        y, path, first_back, *tensors = ctx.saved_tensors
        adjoint = first_back is not None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if adjoint:
                raise RuntimeError("gradient: 'adjoint' has no second derivatives; 'discrete' has them")
            grads = _differentiable_vjp((grad_path, grad_sums), ctx.spec, y, *tensors)
            return grads[0], None, None, None, *grads[1:]
        if adjoint:
            tensors[1] = first_back
        vjp = backends(ctx.backend).backward
        grads = list(vjp(grad_path, grad_sums, path, y, adjoint, ctx.spec, *tensors))
        of_back = None
        if adjoint:
            of_back, grads[2] = grads[2], None
        return grads[0], None, of_back, None, *grads[1:]


def _differentiable_vjp(cotangents, spec, *inputs):
    """The gradients of the inputs, as functions of them, where autograd can see how."""
    # Some inputs are functions of others; views tell their gradients apart.
    views = [t if t is None else t.view_as(t) for t in inputs]
    outputs = reference.forward(views[0], spec, *views[1:])
    wanted = [i for i, t in enumerate(views) if t is not None and t.requires_grad]
    some = torch.autograd.grad(
        outputs, [views[i] for i in wanted], cotangents, create_graph=True, allow_unused=True
    )
    grads = [None] * len(inputs)
    for i, grad in zip(wanted, some):
        grads[i] = grad
    return grads


def needs_gradient(*tensors):
    """Whether a backward may come; any of the tensors may be None."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def apply(y, backend, first_back, *arguments):
    """(path, sums) for y (N, D) on `backend`; first_back asks for the continuous adjoint."""
    compiling = torch.compiler.is_compiling()
    transformed = not compiling and torch._C._are_functorch_transforms_active()
    if forward_ad._current_level >= 0 or transformed:
        return reference.forward(y, *arguments)
    if not needs_gradient(y, first_back, *arguments[1:]):  # where a compiler cannot trace a Function
        return backends(backend).forward(y, *arguments)
    return NeuralOde.apply(y, backend, first_back, *arguments)
