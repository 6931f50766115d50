"""Autoregressive layers of nflows, normflows and zuko, plain and accelerated, with one interface."""

import math

import nflows.transforms as nflows
import torch
import torch.nn.functional as F
import zuko
from normflows import flows as normflows
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive as NormflowsSpline,
)
from torch import nn

FEATURES, CONTEXT, ROWS = 5, 3, 6
TAILS = {"num_bins": 4, "tails": "linear", "tail_bound": 2.0}


class Lazy(nn.Module):
    """A lazy transform of zuko with the interface of nflows."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs, context=None):
        return self.layer(context).call_and_ladj(inputs)

    def inverse(self, inputs, context=None):
        return self.layer(context).inv.call_and_ladj(inputs)


def nflows_affine(features=FEATURES, hidden=12, **options):
    return nflows.MaskedAffineAutoregressiveTransform(features, hidden, **options)


def nflows_spline(features=FEATURES, hidden=12, **options):
    return nflows.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(features, hidden, **options)


def normflows_affine(features=FEATURES, hidden=12, **options):
    return normflows.MaskedAffineAutoregressive(features, hidden, **options)


def normflows_spline(features=FEATURES, hidden=12, **options):
    return NormflowsSpline(features, hidden, init_identity=False, **options)


def zuko_maf(features=FEATURES, context=0, **options):
    return Lazy(zuko.flows.MAF(features, context, transforms=2, **options).transform)


def zuko_nsf(features=FEATURES, context=0, **options):
    return Lazy(zuko.flows.NSF(features, context, transforms=2, bins=4, **options).transform)


GIVEN = {"context_features": CONTEXT}
FEEDFORWARD = {"use_residual_blocks": False}
NORM = {"use_batch_norm": True}
ADJACENCY = [
    [1, 0, 0, 0, 0, 1, 0, 0],
    [0, 1, 0, 1, 0, 0, 1, 0],
    [1, 0, 1, 0, 0, 0, 0, 1],
    [0, 0, 0, 1, 0, 1, 1, 0],
    [1, 1, 1, 1, 1, 0, 0, 0],
]
# name: (builder, number of context features)
LAYERS = {
    "nflows": (lambda: nflows_affine(**GIVEN), CONTEXT),
    "nflows without context": (nflows_affine, 0),
    "nflows elu": (lambda: nflows_affine(activation=F.elu), 0),
    "nflows feed-forward": (
        lambda: nflows_affine(**GIVEN, **FEEDFORWARD, activation=torch.tanh),
        CONTEXT,
    ),
    "nflows narrow": (lambda: nflows_affine(hidden=2, **GIVEN), CONTEXT),
    "nflows random mask": (
        lambda: nflows_affine(random_mask=True, **GIVEN, **FEEDFORWARD, activation=nn.SiLU()),
        CONTEXT,
    ),
    "nflows norm": (lambda: nflows_affine(**GIVEN, **NORM), CONTEXT),
    "nflows feed-forward norm": (
        lambda: nflows_affine(**GIVEN, **NORM, **FEEDFORWARD),
        CONTEXT,
    ),
    "nflows no blocks": (lambda: nflows_affine(num_blocks=0), 0),
    "nflows spline": (lambda: nflows_spline(**GIVEN, **TAILS, activation=F.gelu), CONTEXT),
    "nflows unit spline": (lambda: nflows_spline(num_bins=4), 0),
    "normflows": (lambda: normflows_affine(**GIVEN), CONTEXT),
    "normflows without context": (lambda: normflows_affine(activation=torch.sigmoid), 0),
    "normflows feed-forward norm": (lambda: normflows_affine(**NORM, **FEEDFORWARD), 0),
    "normflows norm": (lambda: normflows_affine(**NORM, **GIVEN), CONTEXT),
    "normflows spline": (
        lambda: normflows_spline(**GIVEN, **TAILS, permute_mask=True, activation=nn.LeakyReLU(0.2)),
        CONTEXT,
    ),
    "normflows circular": (lambda: normflows_spline(num_bins=4, tails="circular"), 0),
    "normflows wrapper": (
        lambda: normflows.AutoregressiveRationalQuadraticSpline(FEATURES, 2, 12, init_identity=False),
        0,
    ),
    "zuko": (lambda: zuko_maf(context=CONTEXT, hidden_features=(12, 9)), CONTEXT),
    "zuko without context": (lambda: zuko_maf(randperm=True, activation=nn.ELU), 0),
    "zuko passes": (lambda: zuko_maf(context=CONTEXT, passes=2), CONTEXT),
    "zuko residual": (
        lambda: zuko_maf(context=CONTEXT, residual=True, hidden_features=(12, 12, 7)),
        CONTEXT,
    ),
    "zuko adjacency": (
        lambda: zuko_maf(context=CONTEXT, adjacency=torch.tensor(ADJACENCY), activation=nn.Tanh),
        CONTEXT,
    ),
    "zuko no hidden layer": (lambda: zuko_maf(context=CONTEXT, hidden_features=()), CONTEXT),
    "zuko additive": (
        lambda: zuko_maf(univariate=zuko.transforms.AdditiveTransform, shapes=[()]),
        0,
    ),
    "zuko spline": (lambda: zuko_nsf(context=CONTEXT, hidden_features=(3,), slope=1e-2), CONTEXT),
}
UNIT = {"nflows unit spline"}  # inputs must be in [0, 1]


def build(name, dtype=torch.float64):
    """A layer with random parameters and statistics, in training mode, and (inputs, context)."""
    builder, context = LAYERS[name]
    layer = randomised(builder().to(dtype))
    features = FEATURES
    inputs = torch.rand(ROWS, features, dtype=dtype)
    inputs = inputs if name in UNIT else 6 * inputs - 3
    return layer, inputs, torch.randn(ROWS, context, dtype=dtype) if context else None


@torch.no_grad()
def randomised(layer):
    """The layer with weights of about 1/√inputs and statistics of batch normalisations."""
    for parameter in layer.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 4
        parameter.normal_(0, 1 / math.sqrt(max(fan_in, 1)))
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return layer


def call(layer, inputs, context=None):
    """layer(inputs, context), with the context only where there is one."""
    return layer(inputs) if context is None else layer(inputs, context)
