"""Flows of normflows that run as one program, for the tests of its adapter."""

import torch
from normflows import ConditionalNormalizingFlow, NormalizingFlow, distributions, flows, nets
from torch import nn

from tests.adapters.program_models import randomised

D, C = 4, 3


def mlp(inputs, outputs):
    return nets.MLP([inputs, 8, 8, outputs], leaky=0.1)


def block(outputs=4, **options):
    return flows.AffineCouplingBlock(mlp(2, outputs), **options)


def act_norm():
    layer = flows.ActNorm(D)
    layer.data_dep_init_done = torch.tensor(1.0)
    return layer


def affine():
    modes = [
        ("exp", "channel"),
        ("sigmoid", "channel_inv"),
        ("sigmoid_inv", "checkerboard"),
        ("exp", "checkerboard_inv"),
    ]
    mixing = [flows.Permute(D, mode="swap"), flows.Permute(D), act_norm(), flows.AffineConstFlow((D,), shift=False)]
    return [f for (kind, mode), mix in zip(modes, mixing) for f in (block(scale_map=kind, split_mode=mode), mix)]


def coupled(context=None, **options):
    options = {"num_context_channels": context, "num_bins": 4} | options
    return flows.CoupledRationalQuadraticSpline(D, 1, 8, **options)


def maf(context=None):
    return flows.MaskedAffineAutoregressive(D, 8, context_features=context, num_blocks=1)


def autoregressive(context=None):
    return flows.AutoregressiveRationalQuadraticSpline(D, 1, 8, num_context_channels=context, num_bins=4)


def masked():
    """As the library's examples have it, the last without scale."""
    return [flows.MaskedAffineFlow(m, mlp(D, D), *([] if only_shift else [mlp(D, D)])) for m, only_shift in MASKS]


MASKS = [(torch.tensor(m), m[2] > 0) for m in ([1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0])]
# name: (layers, how many features of the context, how many run in the one call)
MODELS = {
    "affine": (affine, 0, 8),
    "additive": (lambda: [block(2, scale=False), flows.Reverse(block())], 0, 2),
    "masked": (masked, 0, 3),
    "coupled": (lambda: [coupled(), flows.LULinearPermute(D), coupled(reverse_mask=True)], 0, 3),
    "circular": (lambda: [coupled(tails="circular"), coupled(tails="circular", reverse_mask=True)], 0, 2),
    "autoregressive": (lambda: [autoregressive(), flows.LULinearPermute(D), autoregressive()], 0, 3),
    "maf": (lambda: [maf(), flows.LULinearPermute(D), maf()], 0, 3),
    "conditional": (lambda: [maf(C), flows.LULinearPermute(D), coupled(C), autoregressive(C)], C, 4),
}


def build(layers, context=0, dtype=torch.float64, base=None):
    torch.manual_seed(0)
    target = Target() if not context else ConditionalTarget()
    cls = ConditionalNormalizingFlow if context else NormalizingFlow
    return randomised(cls(base or distributions.DiagGaussian(D), layers(), target), dtype)


class Target(nn.Module):
    def log_prob(self, x):
        return -(x**2).sum(-1)


class ConditionalTarget(nn.Module):
    def log_prob(self, x, context):
        return -((x - context.sum(-1, keepdim=True)) ** 2).sum(-1)
