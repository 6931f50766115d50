"""Tables of the affine coupling: 64 features, all transformed.

params is what a conditioner returns, (N, 2·64). Each library reads it in its own layout and by its
own map; flowkern takes part once for each of these, so that every ratio compares the same work.

| candidates | layout | log-scale |
|---|---|---|
| flowkern, eager, compile(eager) | chunked [shift, scale] | u |
| flowkern[nflows], nflows | chunked [shift, scale] | log(sigmoid(u + 2) + 1e-3) |
| flowkern[zuko], zuko | interleaved shift, scale | u / (1 + abs(u)/ln 1000) |
| flowkern[normflows], normflows | interleaved shift, scale | u |
| flowkern[tanh], flowkern[atan] | chunked [shift, scale] | 2·tanh u, 1.272·atan u |
| flowkern[softplus] | interleaved shift, scale | log(softplus(u) + 1e-3) |
"""

import torch

import flowkern
from bench import ops, peers
from flowkern.ops import affine_coupling

nflows_coupling = peers.optional("nflows.transforms.coupling")
normflows_flows = peers.optional("normflows.flows")
zuko_transforms = peers.optional("zuko.transforms")
FEATURES = 64


QUICK = {"batches": (1, 64), "compiled": ()}


def on_gpu(dry_run, compiled):
    return {"batches": (3,) if dry_run else (1, 2048, 2**20), "streaming": (), "compiled": compiled}


def tables(batches=(1, 64, 2048, 65536), streaming=(65536,), compiled=("compile",)):
    return ops.tables(
        "affine_coupling",
        _candidates,
        x_shape=(FEATURES,),
        params_shape=(2 * FEATURES,),
        batches=batches,
        streaming=streaming,
        compiled=compiled,
    )


def _candidates(direction):
    pairs = (
        ("flowkern", _fused(_chunked, "exp"), "eager", lambda: eager),
        ("flowkern[nflows]", _fused(_chunked, "sigmoid"), "nflows", _nflows),
        ("flowkern[zuko]", _fused(_interleaved, "softclip"), "zuko", lambda: _zuko),
        ("flowkern[normflows]", _fused(_interleaved, "exp"), "normflows", _normflows),
    )
    for ours, fused, theirs, build in pairs:
        plain = _plain(fused, direction)
        yield from ops.candidates(ours, lambda f=fused: f, direction, plain, ours, compiled=False)
        yield from ops.candidates(theirs, build, direction, plain, ours)
    for layout, scale_map in ((_chunked, "tanh"), (_chunked, "atan"), (_interleaved, "softplus")):
        name, fused = f"flowkern[{scale_map}]", _fused(layout, scale_map)
        plain = _plain(fused, direction)
        yield from ops.candidates(name, lambda f=fused: f, direction, plain, name, compiled=False)


def _chunked(params):
    return params.unflatten(-1, (2, FEATURES)).mT


def _interleaved(params):
    return params.unflatten(-1, (FEATURES, 2))


def _fused(layout, scale_map):
    def function(x, params, inverse):
        return affine_coupling(x, layout(params), scale_map=scale_map, inverse=inverse)

    return function


def _plain(fused, direction):
    def function(x, params, inverse):
        with flowkern.backend("reference"):
            return fused(x, params, inverse)

    return lambda dtype: ops.bind(function, direction)


def eager(x, params, inverse):
    """What one writes by hand."""
    shift, log_scale = params.chunk(2, dim=-1)
    if inverse:
        return (x - shift) * torch.exp(-log_scale), -log_scale.sum(-1)
    return x * torch.exp(log_scale) + shift, log_scale.sum(-1)


def _nflows():
    """The elementwise part of nflows' layer; its conditioner is never called."""
    mask = torch.tensor([0] + [1] * FEATURES)
    layer = nflows_coupling.AffineCouplingTransform(mask, lambda features, outputs: torch.nn.Identity())

    def function(x, params, inverse):
        if inverse:
            return layer._coupling_transform_inverse(x, params)
        return layer._coupling_transform_forward(x, params)

    return function


def _zuko(x, params, inverse):
    transform = zuko_transforms.MonotonicAffineTransform(*_interleaved(params).unbind(-1))
    if inverse:
        y = transform._inverse(x)
        return y, -transform.log_abs_det_jacobian(y, x).sum(-1)
    return transform._call(x), transform.log_abs_det_jacobian(x, None).sum(-1)


def _normflows():
    """normflows' layer with the conditioner's output as its first half."""
    layer = normflows_flows.AffineCoupling(torch.nn.Identity())

    def function(x, params, inverse):
        (_, y), logabsdet = (layer.inverse if inverse else layer)([params, x])
        return y, logabsdet

    return function
