"""The C++ and CUDA kernels as dispatcher ops: schemas, fake kernels, calls."""

import torch

from flowkern import _library as libraries

_ENDS = "Tensor x0, Tensor x1"
_REST = "Tensor? noise, Tensor seed, int path, float sigma"
_OUT = "(Tensor, Tensor, Tensor)"
SCHEMAS = {
    "probability_path": f"({_ENDS}, Tensor? t, {_REST}) -> {_OUT}",
    "probability_path_backward": (f"(Tensor grad_x, Tensor grad_u, bool of_t, {_ENDS}, Tensor t, {_REST}) -> {_OUT}"),
}


def _fake(x0, x1, t, *arguments):
    return new_outputs(x0, t)


def _fake_backward(grad_x, grad_u, of_t, x0, *arguments):
    return new_grads(x0, of_t)


def new_outputs(x0, t):
    """Memory for x_t and u_t (N, D), and for t (N,) where it is drawn, else (0,)."""
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape), x0.new_empty(0 if t is not None else x0.shape[0])


def new_grads(x0, of_t):
    """Memory for grad_x0 and grad_x1 (N, D), and for the parts of grad_t (N, D) where wanted."""
    return *(x0.new_empty(x0.shape) for _ in range(2)), x0.new_empty(x0.shape if of_t else 0)


def define(namespace):
    """The library that holds the two ops in a namespace, defined, with their fake kernels."""
    library = torch.library.Library(namespace, "FRAGMENT")
    for (name, schema), fake in zip(SCHEMAS.items(), (_fake, _fake_backward)):
        library.define(name + schema)
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    return library


_library = define("flowkern")
KERNELS = ("triton", *libraries.compiled("probability_path"))


def forward(x0, x1, t, noise, seed, path, sigma):
    """x_t and u_t (N, D), and the t (N,) that were drawn."""
    return torch.ops.flowkern.probability_path(x0, x1, t, noise, seed, path, sigma)


def backward(grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma):
    """grad_x0 and grad_x1 (N, D), and grad_t (N,) if of_t."""
    grad_x0, grad_x1, parts = torch.ops.flowkern.probability_path_backward(
        grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma
    )
    return grad_x0, grad_x1, parts.sum(-1) if of_t else None
