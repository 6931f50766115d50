"""The autograd.Function of a coupling op, the same for all its backends.

A backend is a module with
    forward(x, params, *arguments) -> (y, logabsdet)
    backward(grad_y, grad_logabsdet, x, params, *arguments) -> (grad_x, grad_params)
where x is (N, D), params (N, T, P), and `arguments` are the op's index and bounds (tensors or None)
and then plain numbers. Only x and params are differentiable. Second derivatives and forward mode go
through the op's reference implementation, which is plain PyTorch.
"""

import torch

from flowkern import _torch
from flowkern.ops._plain import runs_formulas


def coupling_function(backends, reference, tensors):
    """Build `apply(x, params, backend, *arguments) -> (y, logabsdet)` for one op.

    Args:
        backends: `backends(name)` is the module of the named backend.
        reference: the differentiable forward in plain PyTorch.
        tensors: how many of the arguments, the first ones, are tensors or None.
    """

    class Vjp(torch.autograd.Function):
        """The kernel's backward as a differentiable function, for second derivatives."""

        @staticmethod
        def forward(grad_y, grad_logabsdet, x, params, backend, *arguments):
            return backends(backend).backward(grad_y, grad_logabsdet, x, params, *arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            _save(ctx, inputs[:4], inputs[5:], tensors)

        @staticmethod
        def backward(ctx, *cotangents):
            saved, arguments = _saved(ctx, 4)

            def vjp(grad_y, grad_logabsdet, x, params):
                _, pull = torch.func.vjp(lambda x, p: reference(x, p, *arguments), x, params)
                return pull((grad_y, grad_logabsdet))

            _, pull = torch.func.vjp(vjp, *saved)
            return *pull(cotangents), None, *(None,) * len(arguments)

        @staticmethod
        def vmap(info, in_dims, *inputs):
            flat = _flatten_vmapped(info, in_dims, inputs, (2, 1, 2, 3))
            return _unflatten_vmapped(info, Vjp.apply(*flat))

    class Coupling(torch.autograd.Function):
        @staticmethod
        def forward(x, params, backend, *arguments):
            return backends(backend).forward(x, params, *arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.backend = inputs[2]
            _save(ctx, inputs[:2], inputs[3:], tensors)

        @staticmethod
        def backward(ctx, grad_y, grad_logabsdet):
            (x, params), arguments = _saved(ctx, 2)
            # Compiled code differentiates once only, and traces the plain kernel more easily.
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                grads = Vjp.apply(grad_y, grad_logabsdet, x, params, ctx.backend, *arguments)
            else:
                vjp = backends(ctx.backend).backward
                grads = vjp(grad_y, grad_logabsdet, x, params, *arguments)
            return *grads, None, *(None,) * len(arguments)

        @staticmethod
        def vmap(info, in_dims, *inputs):
            flat = _flatten_vmapped(info, in_dims, inputs, (2, 3))
            return _unflatten_vmapped(info, Coupling.apply(*flat))

    class EagerCoupling(torch.autograd.Function):
        """Coupling for plain eager mode: without setup_context, a call costs 30 µs less."""

        @staticmethod
        def forward(ctx, *inputs):
            Coupling.setup_context(ctx, inputs, None)
            return Coupling.forward(*inputs)

        backward = staticmethod(Coupling.backward)

    def apply(x, params, backend, *arguments):
        if runs_formulas():
            return reference(x, params, *arguments)
        compiling = torch.compiler.is_compiling()
        if not compiling and _torch.transforming():
            function = Coupling.apply
        elif not (torch.is_grad_enabled() and (x.requires_grad or params.requires_grad)):
            function = Coupling.forward
        else:
            function = Coupling.apply if compiling else EagerCoupling.apply
        return function(x, params, backend, *arguments)

    return apply


def _save(ctx, inputs, arguments, tensors):
    """Save tensors as tensors and the rest of the arguments as they are."""
    ctx.save_for_backward(*inputs, *arguments[:tensors])
    ctx.plain = arguments[tensors:]


def _saved(ctx, count):
    """The `count` saved inputs, and the arguments put together again."""
    saved = ctx.saved_tensors
    return saved[:count], (*saved[count:], *ctx.plain)


def _flatten_vmapped(info, in_dims, inputs, ndims):
    """Fold the mapped dimension of the leading inputs into their batch dimension."""
    batched = list(inputs)
    for i, ndim in enumerate(ndims):
        tensor = inputs[i]
        if in_dims[i] is None:
            tensor = tensor.expand(info.batch_size, *tensor.shape)
        else:
            tensor = tensor.movedim(in_dims[i], 0)
        batched[i] = tensor.reshape(-1, *tensor.shape[2:])
    if any(d is not None for d in in_dims[len(ndims) :]):
        raise ValueError("index, mask, bound: vmap over them is not supported, only over x and params")
    return batched


def _unflatten_vmapped(info, outputs):
    outputs = tuple(o.reshape(info.batch_size, -1, *o.shape[1:]) for o in outputs)
    return outputs, (0,) * len(outputs)
