"""The flows of the benchmark in every library, with the same matrix products to do.

| flow | features | layers | elementwise part |
|---|---|---|---|
| nsf | 32 | 5 | rational-quadratic spline, 8 bins, on [−3, 3], each library's own maps |
| realnvp | 64 | 8 | affine, each library's own map |
| maf | 64 | 5 | affine, each library's own map, autoregressive |

The conditioners of maf are MADEs with three hidden layers of width 128, which are two feed-forward
blocks in nflows. normflows takes no part in it: its MAF takes the slow direction to train. Every
conditioner of the others has six linear layers of width 128 between its input and output, with
alternating masks: a residual net of two blocks in nflows, in its copies and in normflows' spline
flow, an MLP elsewhere.
"""

import math
from functools import partial

import torch
from torch import nn

from bench import peers
from bench.tables.rational_quadratic_spline import BINS, BOUND, dense
from flowkern import flows

nflows_distributions = peers.optional("nflows.distributions")
nflows_flows = peers.optional("nflows.flows")
nflows_nets = peers.optional("nflows.nn.nets")
nflows_transforms = peers.optional("nflows.transforms")
nflows_utils = peers.optional("nflows.utils.torchutils")
normflows = peers.optional("normflows")
normflows_splines = peers.optional("normflows.flows.neural_spline.coupling")
zuko = peers.optional("zuko")

HIDDEN, BLOCKS = 128, 2
WIDTHS = (HIDDEN,) * (1 + 2 * BLOCKS)
MADE_WIDTHS = (HIDDEN,) * (1 + BLOCKS)
FEATURES = {"nsf": 32, "realnvp": 64, "maf": 64}
LAYERS = {"nsf": 5, "realnvp": 8, "maf": 5}
_ALL = ("nflows", "hand", "normflows", "zuko", "flowkern.flows")
LIBRARIES = {"nsf": _ALL, "realnvp": _ALL, "maf": ("nflows", "zuko", "flowkern.flows")}

# How to ask a library's flow for log p(x), and for the sample that it makes of given noise.
LOG_PROB = {
    "nflows": lambda flow, x: flow.log_prob(x),
    "hand": lambda flow, x: flow.log_prob(x),
    "normflows": lambda flow, x: flow.log_prob(x),
    "zuko": lambda flow, x: flow().log_prob(x),
    "flowkern.flows": lambda flow, x: flow().log_prob(x),
}
SAMPLE = {
    "nflows": lambda flow, noise: flow._transform.inverse(noise)[0],
    "hand": lambda flow, noise: flow(noise, inverse=True)[0],
    "normflows": lambda flow, noise: flow.forward(noise),
    "zuko": lambda flow, noise: flow().transform.inv(noise),
    "flowkern.flows": lambda flow, noise: flow.transform.inverse(noise)[0],
}


def build(library, shape):
    """A flow with the same weights each time, moved away from the identity that some start as."""
    torch.manual_seed(0)
    flow = _BUILDERS[library](shape, FEATURES[shape], LAYERS[shape])
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return flow


def _residual_net(features, outputs):
    return nflows_nets.ResidualNet(features, outputs, hidden_features=HIDDEN, num_blocks=BLOCKS)


def _mask(i, features):
    return nflows_utils.create_alternating_binary_mask(features, even=i % 2 == 0)


def _nflows(shape, features, layers):
    if shape == "maf":
        transforms = [_nflows_made(i, features) for i in range(layers)]
    else:
        transforms = [_nflows_coupling(shape, i, features) for i in range(layers)]
    base = nflows_distributions.StandardNormal([features])
    return nflows_flows.Flow(nflows_transforms.CompositeTransform(transforms), base)


def _nflows_coupling(shape, i, features):
    coupling = nflows_transforms.AffineCouplingTransform
    if shape == "nsf":
        coupling = partial(
            nflows_transforms.PiecewiseRationalQuadraticCouplingTransform,
            num_bins=BINS,
            tails="linear",
            tail_bound=BOUND,
        )
    return coupling(_mask(i, features), _residual_net)


def _nflows_made(i, features):
    """nflows' layer, behind a reversal of the features in every layer but the first."""
    layer = nflows_transforms.MaskedAffineAutoregressiveTransform(
        features, HIDDEN, num_blocks=BLOCKS, use_residual_blocks=False
    )
    reversal = nflows_transforms.ReversePermutation(features)
    return nflows_transforms.CompositeTransform([reversal, layer]) if i else layer


def _zuko(shape, features, layers):
    if shape == "maf":
        return zuko.flows.MAF(features, transforms=layers, hidden_features=MADE_WIDTHS)
    spline = {
        "univariate": partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND),
        "shapes": [(BINS,), (BINS,), (BINS - 1,)],
    }
    return zuko.flows.NICE(
        features,
        transforms=layers,
        hidden_features=WIDTHS,
        **(spline if shape == "nsf" else {}),
    )


def _normflows(shape, features, layers):
    layer = _normflows_spline if shape == "nsf" else _normflows_affine
    base = normflows.distributions.DiagGaussian(features, trainable=False)
    return normflows.NormalizingFlow(base, [part for i in range(layers) for part in layer(i, features)])


def _normflows_spline(i, features):
    """normflows' layer without the second spline that its wrapper puts on the identity half."""
    coupling = normflows_splines.PiecewiseRationalQuadraticCoupling(
        _mask(i, features), _residual_net, num_bins=BINS, tails="linear", tail_bound=BOUND
    )
    return [normflows.flows.Reverse(coupling)]


def _normflows_affine(i, features):
    net = normflows.nets.MLP([features // 2, *WIDTHS, features])
    return [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(features, "swap")]


def _flowkern(shape, features, layers):
    if shape == "maf":
        return flows.MAF(features, transforms=layers, hidden_features=MADE_WIDTHS)
    if shape == "nsf":
        return flows.NSF(features, transforms=layers, bins=BINS, bound=BOUND, hidden_features=WIDTHS)
    return flows.RealNVP(features, transforms=layers, hidden_features=WIDTHS)


class HandFlow(nn.Module):
    """nflows' flow around the same conditioners, with an elementwise part written by hand."""

    def __init__(self, flow, elementwise):
        super().__init__()
        self.layers, self.elementwise = flow._transform._transforms, elementwise

    def forward(self, x, inverse=False):
        logabsdet = 0.0
        for layer in reversed(self.layers) if inverse else self.layers:
            params = layer.transform_net(x[:, layer.identity_features])
            y, increment = self.elementwise(x[:, layer.transform_features], params, inverse)
            x = x.index_copy(1, layer.transform_features, y)
            logabsdet = logabsdet + increment
        return x, logabsdet

    def log_prob(self, x):
        z, logabsdet = self(x)
        return logabsdet - 0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def _hand(shape, features, layers):
    elementwise = _hand_spline if shape == "nsf" else _hand_affine
    return HandFlow(_nflows(shape, features, layers), elementwise)


def _hand_spline(x, params, inverse):
    params = params.unflatten(-1, (x.shape[-1], -1))
    return dense(x, params, inverse, scale=HIDDEN**-0.5)


def _hand_affine(x, params, inverse):
    shift, raw = params.chunk(2, dim=-1)
    scale = torch.sigmoid(raw + 2) + 1e-3
    logabsdet = torch.log(scale).sum(-1)
    return ((x - shift) / scale, -logabsdet) if inverse else (x * scale + shift, logabsdet)


_BUILDERS = {
    "nflows": _nflows,
    "hand": _hand,
    "normflows": _normflows,
    "zuko": _zuko,
    "flowkern.flows": _flowkern,
}
