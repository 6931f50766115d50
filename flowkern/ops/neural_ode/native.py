"""The kernels as dispatcher ops: schemas, fake kernels, calls."""

import torch

from flowkern import _library as libraries

_ARGUMENTS = (
    "Tensor y, Tensor steps, Tensor first, Tensor? row_bias, Tensor? closed, Tensor? directions, "
    "Tensor?[] tensors, int[] activations, float[] slopes, float[] a, float[] b, int every, "
    "float weight, bool kinetic, bool jacobian"
)


def _fake(y, steps, first, row_bias, closed, directions, tensors, activations, slopes, a, b, every, *_):
    kept = steps.shape[0] // every
    return y.new_empty(kept, *y.shape), y.new_empty(kept, 3, y.shape[0])


def _fake_backward(grad_path, grad_sums, path, adjoint, y, steps, first, row_bias, closed, directions, tensors, *_):
    inputs = (y, steps, first, row_bias, closed, *tensors)
    return [y.new_empty(t.shape) for t in inputs if t is not None]


# name: (schema, fake kernel)
_OPS = {
    "neural_ode": (f"({_ARGUMENTS}) -> (Tensor, Tensor)", _fake),
    "neural_ode_backward": (
        f"(Tensor grad_path, Tensor grad_sums, Tensor path, bool adjoint, {_ARGUMENTS}) -> Tensor[]",
        _fake_backward,
    ),
}


def define(namespace):
    """The library that holds the ops in a namespace, defined, with their fake kernels."""
    library = torch.library.Library(namespace, "FRAGMENT")
    for name, (schema, fake) in _OPS.items():
        library.define(name + schema)
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    return library


_library = define("flowkern")
KERNELS = ("triton", *libraries.compiled("neural_ode"))
MOST_CUDA_LAYERS = 24  # csrc/neural_ode/neural_ode_cuda.h: what a kernel's arguments hold


def kernels(layers):
    """The backends that have kernels for a field of so many layers."""
    return KERNELS if layers <= MOST_CUDA_LAYERS else tuple(name for name in KERNELS if name != "cuda")


def forward(y, spec, steps, first, row_bias, closed, directions, *tensors, ops=torch.ops.flowkern):
    """path (C, N, D), sums (C, 3, N) by the kernel registered for y's device."""
    inputs = _contiguous(y, steps, first, row_bias, closed)
    return ops.neural_ode(*inputs, directions, _contiguous(*tensors), *spec)


def backward(
    grad_path, grad_sums, path, y, adjoint, spec, steps, first, row_bias, closed, directions, *tensors,
    ops=torch.ops.flowkern,
):  # fmt: skip
    """Gradients of y, steps, first, row_bias, closed, directions (None) and tensors."""
    inputs = _contiguous(y, steps, first, row_bias, closed)
    cotangents = _contiguous(grad_path, grad_sums, path)
    some = ops.neural_ode_backward(*cotangents, adjoint, *inputs, directions, _contiguous(*tensors), *spec)
    some = iter(some)
    grads = [None if t is None else next(some) for t in (*inputs, *tensors)]
    return *grads[:5], None, *grads[5:]


def _contiguous(*tensors):
    return [t if t is None else t.contiguous() for t in tensors]
