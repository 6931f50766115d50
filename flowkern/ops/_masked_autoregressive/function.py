"""The autograd.Function of the masked autoregressive transform, the same for all its backends.

A backend is a module with
    forward(x, spec, order, ends, ranks, *tensors) -> (y, logabsdet)
    backward(grad_y, grad_logabsdet, x, y, needs, spec, order, ends, ranks, *tensors)
        -> (grad_x, *grads)
with the arguments that reference.py explains; needs says for each of tensors whether its gradient
is wanted (else None may come back). Second derivatives and forward mode go through the reference.
"""

import torch

from flowkern import _torch
from flowkern.ops._batched import batched, one_by_one
from flowkern.ops._plain import runs_formulas
from flowkern.ops._masked_autoregressive import native, reference

ROW_WISE = (False, True, True, False, False)  # weight, bias, gate, gain, offset of a layer


def backends(name):
    """The module that holds the kernels of backend `name`."""
    if name == "triton":
        from flowkern.ops._masked_autoregressive import triton

        return triton
    return reference if name == "reference" else native


class Vjp(torch.autograd.Function):
    """The kernel's backward as a differentiable function, for second derivatives."""

    @staticmethod
    def forward(grad_y, grad_logabsdet, x, y, backend, needs, *arguments):
        vjp = backends(backend).backward
        return vjp(grad_y, grad_logabsdet, x, y, needs, *arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad_y, grad_logabsdet, x, y, _, needs, *arguments = inputs
        ctx.needs = needs
        _save(ctx, (grad_y, grad_logabsdet, x), arguments)

    @staticmethod
    def backward(ctx, *cotangents):
        (grad_y, grad_logabsdet, x), arguments = _saved(ctx, 3)
        plain, tensors = arguments[:4], arguments[4:]
        given = [i for i, t in enumerate(tensors) if t is not None]
        wanted = [c for i, c in enumerate(cotangents) if i == 0 or i - 1 in given]

        def vjp(grad_y, grad_logabsdet, x, *some):
            full = _spread(some, given, len(tensors))
            every = reference.backward(grad_y, grad_logabsdet, x, None, ctx.needs, *plain, *full)
            return [g for i, g in enumerate(every) if i == 0 or i - 1 in given]

        out, pull = torch.func.vjp(vjp, grad_y, grad_logabsdet, x, *(tensors[i] for i in given))
        wanted = [torch.zeros_like(o) if c is None else c for c, o in zip(wanted, out)]
        grad_grad_y, grad_grad_l, grad_x, *some = pull(wanted)
        return (
            grad_grad_y, grad_grad_l, grad_x, None, None, None, None, None, None, None,
            *_spread(some, given, len(tensors)),
        )  # fmt: skip

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _one_by_one(Vjp.apply, info, in_dims, inputs)


class MaskedAutoregressive(torch.autograd.Function):
    @staticmethod
    def forward(x, backend, *arguments):
        return backends(backend).forward(x, *arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.backend, *arguments = inputs
        _save(ctx, (x, output[0]), arguments)

    @staticmethod
    def backward(ctx, grad_y, grad_logabsdet):
        (x, y), arguments = _saved(ctx, 2)
        needs = ctx.needs_input_grad[6:]
        # Compiled code differentiates once only, and traces the plain kernel more easily.
        recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        vjp, inputs = Vjp.apply if recorded else Vjp.forward, (x, y, ctx.backend, needs, *arguments)
        if batched(grad_y, grad_logabsdet):
            grads = one_by_one(vjp, grad_y, grad_logabsdet, *inputs)
        else:
            grads = vjp(grad_y, grad_logabsdet, *inputs)
        return grads[0], None, None, None, None, None, *grads[1:]

    @staticmethod
    def vmap(info, in_dims, x, backend, spec, order, ends, ranks, *tensors):
        # Batched samples join the rows; batched weights take one call each.
        if any(dim is not None and not ROW_WISE[i % 5] for i, dim in enumerate(in_dims[6:])):
            return _one_by_one(apply, info, in_dims, (x, backend, spec, order, ends, ranks, *tensors))
        rows = x.shape[0] if in_dims[0] is None else x.movedim(in_dims[0], 0).shape[1]
        folded = [_fold(info, x, in_dims[0], rows)]
        for i, (tensor, dim) in enumerate(zip(tensors, in_dims[6:])):
            shared = tensor is None or not ROW_WISE[i % 5] or dim is None and tensor.dim() == 1
            folded.append(tensor if shared else _fold(info, tensor, dim, rows))
        outputs = apply(folded[0], backend, spec, order, ends, ranks, *folded[1:])
        return tuple(o.unflatten(0, (info.batch_size, rows)) for o in outputs), (0, 0)


class EagerMaskedAutoregressive(torch.autograd.Function):
    """The same for plain eager mode: without setup_context, a call costs 30 µs less."""

    @staticmethod
    def forward(ctx, *inputs):
        outputs = MaskedAutoregressive.forward(*inputs)
        MaskedAutoregressive.setup_context(ctx, inputs, outputs)
        return outputs

    backward = staticmethod(MaskedAutoregressive.backward)


def is_plain(tensors):
    """Whether a call computes values alone: no gradient, forward mode or transform of torch.func."""
    compiling = torch.compiler.is_compiling()
    if runs_formulas() or not compiling and _torch.transforming():
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def apply(x, backend, spec, order, ends, ranks, *tensors):
    """(y, logabsdet) for x (N, D) on `backend`; differentiable in x and tensors."""
    arguments = spec, order, ends, ranks, *tensors
    if runs_formulas():
        return reference.forward(x, *arguments)
    compiling = torch.compiler.is_compiling()
    if not compiling and _torch.transforming():
        return MaskedAutoregressive.apply(x, backend, *arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors)):
        function = MaskedAutoregressive if compiling else EagerMaskedAutoregressive
        return function.apply(x, backend, *arguments)
    return backends(backend).forward(x, *arguments)


def _one_by_one(function, info, in_dims, inputs):
    """The outputs of function for each element of the batch, stacked."""
    calls = []
    for n in range(info.batch_size):
        # The dimensions of a tuple are a tuple.
        each = (a.select(d, n) if isinstance(d, int) else a for a, d in zip(inputs, in_dims))
        calls.append(function(*each))
    outputs = tuple(None if o[0] is None else torch.stack(o) for o in zip(*calls))
    return outputs, tuple(None if o is None else 0 for o in outputs)


def _fold(info, tensor, dim, rows):
    """(batch, rows, …) as (batch·rows, …); what is not batched, or the same in all rows, repeats."""
    tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    if tensor.dim() == 2:
        tensor = tensor.unsqueeze(1)
    return tensor.expand(info.batch_size, rows, tensor.shape[-1]).flatten(0, 1)


def _spread(some, places, count):
    every = [None] * count
    for place, tensor in zip(places, some):
        every[place] = tensor
    return every


def _save(ctx, tensors, arguments):
    ctx.spec, *rest = arguments
    ctx.save_for_backward(*tensors, *rest)


def _saved(ctx, count):
    saved = ctx.saved_tensors
    return saved[:count], (ctx.spec, *saved[count:])
