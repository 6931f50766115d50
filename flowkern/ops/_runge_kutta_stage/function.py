"""The autograd.Function of a Runge-Kutta stage, and the choice of what runs."""

import torch

from flowkern import _torch
from flowkern.ops._plain import runs_formulas
from flowkern.ops._runge_kutta_stage import native, reference

_KERNEL_DTYPES = (torch.float32, torch.float64)
_MOST = 8  # tensors k that a kernel takes


def backends(name):
    """The module that holds the kernels of backend `name`."""
    if name == "triton":
        from flowkern.ops._runge_kutta_stage import triton

        return triton
    return reference if name == "reference" else native


class Stage(torch.autograd.Function):
    """The map is linear in y and k: its backward are products, in plain PyTorch."""

    @staticmethod
    def forward(ctx, backend, y, weights, *k):
        # The stages are needed for the weights' gradient alone, that is, for one of times.
        ctx.save_for_backward(weights, *(k if ctx.needs_input_grad[2] else ()))
        return backends(backend).forward(y, weights, *k)

    @staticmethod
    def backward(ctx, grad):
        weights, *k = ctx.saved_tensors
        grads = (reference.spread(weights, grad) * grad).unbind()  # one kernel for all stages
        return None, grad, _weights_grad(grad, weights, k) if k else None, *grads


def _weights_grad(grad, weights, k):
    """⟨grad, k_j⟩, of each row where weights are (N, s)."""
    first = weights.dim() - 1
    products = [(grad * k_j).reshape(*grad.shape[:first], -1).sum(first) for k_j in k]
    return torch.stack(products, first)


def apply(y, k, weights, backend):
    """y + Σ_j w_j k_j on the named backend."""
    if _plain(y):
        return reference.forward(y, weights, *k)
    weights, *k = _few(weights, *k)
    if torch.is_grad_enabled() and _differentiable(y, weights, *k):
        return Stage.apply(backend, y, weights, *k)
    return backends(backend).forward(y, weights, *k)


@torch.no_grad()
def error(y0, y1, k, weights, rtol, atol, backend):
    """Squares of the scaled error, summed over each row, on the named backend."""
    plain = _plain(y0) or isinstance(rtol, torch.Tensor) or isinstance(atol, torch.Tensor)
    chosen = reference if plain else backends(backend)
    weights, *k = _few(weights, *k)
    return chosen.error(y0, y1, weights, rtol, atol, *k)


def _few(weights, *k):
    """As many as a kernel takes, those beyond summed into the last of them."""
    if len(k) <= _MOST:
        return weights, *k
    weights, rest = weights.split((_MOST - 1, len(k) - _MOST + 1), -1)
    total = reference.combination(rest, k[_MOST - 1 :])
    return torch.cat((weights, torch.ones_like(weights[..., :1])), -1), *k[: _MOST - 1], total


def _plain(y):
    """Where PyTorch has to see plain operations: compilers, traces, transforms, forward mode, other dtypes."""
    return torch.compiler.is_compiling() or y.dtype not in _KERNEL_DTYPES or runs_formulas() or _torch.transforming()


def _differentiable(*tensors):
    return any(tensor.requires_grad for tensor in tensors)
