"""The autograd.Function of the probability path, the same for all its backends.

A backend is a module with
    forward(x0, x1, t, noise, seed, path, sigma) -> (x_t, u_t, t)
    backward(grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma) -> (grad_x0, grad_x1, grad_t)
where x0, x1 and noise are (N, D) and t (N,), all of one dtype and contiguous. t or noise may be None:
they are drawn then, and forward returns the t drawn, which backward takes for t. of_t says whether
grad_t is wanted. Second derivatives and forward mode go through the reference, which is plain PyTorch.
"""

import torch

from flowkern import _torch
from flowkern.ops._batched import batched, one_by_one
from flowkern.ops._plain import runs_formulas
from flowkern.ops._probability_path import native, reference


def backends(name):
    """The module that holds the kernels of backend `name`."""
    if name == "triton":
        from flowkern.ops._probability_path import triton

        return triton
    return reference if name == "reference" else native


class ProbabilityPath(torch.autograd.Function):
    @staticmethod
    def forward(x0, x1, t, noise, seed, backend, path, sigma):
        given = (None if v is None else v.contiguous() for v in (x0, x1, t, noise))
        return backends(backend).forward(*given, seed, path, sigma)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x0, x1, t, noise, seed, *ctx.plain = inputs
        ctx.save_for_backward(x0, x1, output[2] if t is None else t, noise, seed)
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, grad_x, grad_u, _):
        backend, *plain = ctx.plain
        # Compiled code differentiates once only, and traces the plain kernel more easily.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            backend = "reference"
        given = (None if v is None else v.contiguous() for v in ctx.saved_tensors)

        def vjp(grad_x, grad_u, *inputs):
            return backends(backend).backward(grad_x.contiguous(), grad_u.contiguous(), *inputs)

        inputs = grad_x, grad_u, ctx.needs_input_grad[2], *given, *plain
        grads = one_by_one(vjp, *inputs) if batched(grad_x, grad_u) else vjp(*inputs)
        return *grads, None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x0, x1, t, noise, seed, *plain):
        # Numbers belong to places in a batch: in one that is folded they would be others.
        if in_dims[4] is not None or t is None or noise is None and draws_noise(*plain[1:]):
            return _one_by_one(info, in_dims, (x0, x1, t, noise, seed, *plain))
        folded = (_fold(info, v, dim) for v, dim in zip((x0, x1, t, noise), in_dims))
        x_t, u_t, drawn = ProbabilityPath.apply(*folded, seed, *plain)
        shape = info.batch_size, len(x_t) // info.batch_size
        return (x_t.unflatten(0, shape), u_t.unflatten(0, shape), drawn), (0, 0, None)


def apply(x0, x1, t, *arguments):
    """(x_t, u_t, the t drawn) for x0, x1 (N, D); arguments are noise, seed, backend, path, sigma."""
    if runs_formulas():
        noise, seed, _, *plain = arguments
        return reference.forward(x0, x1, t, noise, seed, *plain)
    transformed = not torch.compiler.is_compiling() and _torch.transforming()
    differentiable = any(v is not None and v.requires_grad for v in (x0, x1, t))
    if transformed or torch.is_grad_enabled() and differentiable:
        return ProbabilityPath.apply(x0, x1, t, *arguments)
    return ProbabilityPath.forward(x0, x1, t, *arguments)


def draws_noise(path, sigma):
    """Whether a path of that code has noise: where σ is 0 the target path alone, which starts at it."""
    return sigma != 0 or path == 1


def _one_by_one(info, in_dims, inputs):
    """A call for each seed."""
    calls = []
    for n in range(info.batch_size):
        each = (v if dim is None else v.select(dim, n) for v, dim in zip(inputs, in_dims))
        calls.append(ProbabilityPath.apply(*each))
    return tuple(map(torch.stack, zip(*calls))), (0, 0, 0)


def _fold(info, tensor, dim):
    """The mapped dimension as part of the batch dimension."""
    if tensor is None:
        return None
    tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)
