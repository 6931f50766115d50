"""The autograd.Function of the neural ODE solve, the same for all its backends.

A backend is a module with
    forward(y, *arguments) -> (path, sums)
    backward(grad_path, grad_sums, path, y, adjoint, *arguments) -> gradients of y and the tensors
with the arguments that reference.py explains. Forward mode and torch.func run the formulas; a second
backward raises.
"""

import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

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
    @once_differentiable
    def backward(ctx, grad_path, grad_sums):
        y, path, first_back, *tensors = ctx.saved_tensors
        adjoint = first_back is not None
        if adjoint:
            tensors[1] = first_back
        vjp = backends(ctx.backend).backward
        grads = list(vjp(grad_path, grad_sums, path, y, adjoint, ctx.spec, *tensors))
        of_back = None
        if adjoint:
            of_back, grads[2] = grads[2], None
        return grads[0], None, of_back, None, *grads[1:]


def apply(y, backend, first_back, *arguments):
    """(path, sums) for y (N, D) on `backend`; first_back asks for the continuous adjoint."""
    compiling = torch.compiler.is_compiling()
    transformed = not compiling and torch._C._are_functorch_transforms_active()
    if forward_ad._current_level >= 0 or transformed:
        return reference.forward(y, *arguments)
    return NeuralOde.apply(y, backend, first_back, *arguments)
