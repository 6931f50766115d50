"""The affine coupling in plain PyTorch: the specification of every kernel."""

import torch
import torch.nn.functional as F

from flowkern.ops._arguments import compute_dtype, in_dtype, selected


def forward(x, params, index, inverse, scale_first, kind, a, b, prefactor, shift_prefactor):
    """x (N, D), params (N, T, P) -> y (N, D), logabsdet (N,); differentiable to any order."""
    dtype = compute_dtype(x, params)
    x_t = selected(x, index).to(dtype)
    params = params.to(dtype)
    shift = shift_prefactor * params[..., 1 if scale_first and kind != 0 else 0]
    raw = torch.zeros_like(shift) if kind == 0 else prefactor * params[..., 0 if scale_first else 1]
    log_scale = _log_scale(raw, kind, a, b)
    if inverse:
        y_t, logabsdet = (x_t - shift) * torch.exp(-log_scale), -log_scale.sum(-1)
    else:
        y_t, logabsdet = torch.exp(log_scale) * x_t + shift, log_scale.sum(-1)
    y_t = in_dtype(y_t, x.dtype)
    y = y_t if index is None else x.index_copy(-1, index, y_t)
    return y, logabsdet


def _log_scale(v, kind, a, b):
    """log s(v) for each kind of scale_map.py."""
    if kind in (0, 1):
        return v
    if kind == 2:
        return v / (1 + v.abs() / a)
    if kind == 3:
        return a * torch.tanh(v)
    if kind == 4:
        return a * torch.atan(v)
    if kind in (5, 6):
        z = v + a
        log_sigmoid = F.logsigmoid(z) if b == 0 else torch.log(torch.sigmoid(z) + b)
        return log_sigmoid if kind == 5 else -log_sigmoid
    return _log_softplus(v + a) if b == 0 else torch.log(F.softplus(v + a, threshold=40) + b)


def _log_softplus(z):
    """Finite where softplus z = e·(1 − e/2 + …), e = exp z, underflows."""
    far, near = z.clamp(max=-20), z.clamp(min=-20)
    return torch.where(z < -20, far - torch.exp(far) / 2, torch.log(F.softplus(near, threshold=40)))


def backward(grad_y, grad_logabsdet, x, params, *arguments):
    """The vector-Jacobian product of `forward` by autograd."""
    _, pull = torch.func.vjp(lambda x, p: forward(x, p, *arguments), x, params)
    return pull((grad_y, grad_logabsdet))
