"""nflows layers and flows for the adapter's tests, plain and accelerated."""

import copy

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import MLP, ConvResidualNet, ResidualNet
from nflows.transforms import (
    AdditiveCouplingTransform,
    AffineCouplingTransform,
    CompositeTransform,
    LULinear,
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
)
from torch import nn

import flowkern

FEATURES, CONTEXT, BOUND, BINS = 5, 3, 3.0, 6
MASK = [1, 0, 1, 0, 1]
IMAGE = (FEATURES, 4, 3)
TAILS = {"tails": "linear", "tail_bound": BOUND}


class UnscaledNet(MLP):
    """An MLP conditioner with the call of nflows and without `hidden_features`."""

    def __init__(self, inputs, outputs):
        super().__init__((inputs,), (outputs,), [16])

    def forward(self, inputs, context=None):
        return super().forward(inputs)


def vector_net(inputs, outputs):
    return ResidualNet(inputs, outputs, hidden_features=16, context_features=CONTEXT)


def image_net(inputs, outputs):
    return ConvResidualNet(inputs, outputs, hidden_channels=6, num_blocks=1)


def spline(net, **options):
    return PiecewiseRationalQuadraticCouplingTransform(MASK, net, num_bins=BINS, **options)


def own_spline(features):
    return PiecewiseRationalQuadraticCDF([features], num_bins=4, **TAILS)


# name: (builder, whether inputs must be in [0, 1])
VECTOR_LAYERS = {
    "additive": (lambda: AdditiveCouplingTransform(MASK, vector_net), False),
    "affine": (lambda: AffineCouplingTransform(MASK, vector_net), False),
    "affine_unconditional": (
        lambda: AffineCouplingTransform(MASK, vector_net, own_spline),
        False,
    ),
    "spline": (lambda: spline(vector_net, **TAILS), False),
    "spline_unconditional": (
        lambda: spline(vector_net, **TAILS, apply_unconditional_transform=True),
        False,
    ),
    "spline_minima": (
        lambda: spline(vector_net, **TAILS, min_bin_width=0.05, min_bin_height=0.02, min_derivative=0.1),
        False,
    ),
    "spline_unit": (lambda: spline(vector_net), True),
    "spline_unit_unconditional": (
        lambda: spline(vector_net, apply_unconditional_transform=True),
        True,
    ),
    "spline_unscaled": (lambda: spline(UnscaledNet, **TAILS), False),
    "cdf": (lambda: PiecewiseRationalQuadraticCDF([FEATURES], num_bins=4, **TAILS), False),
    "cdf_unit": (lambda: PiecewiseRationalQuadraticCDF([FEATURES], identity_init=True), True),
    "lu": (lambda: LULinear(FEATURES, identity_init=False), False),
}
IMAGE_LAYERS = {
    "image_additive": (lambda: AdditiveCouplingTransform(MASK, image_net), False),
    "image_affine": (lambda: AffineCouplingTransform(MASK, image_net), False),
    "image_spline": (lambda: spline(image_net, **TAILS), False),
    "image_spline_unit": (lambda: spline(image_net), True),
    "image_spline_unconditional": (
        lambda: spline(image_net, **TAILS, apply_unconditional_transform=True, img_shape=list(IMAGE[1:])),
        False,
    ),
    "image_cdf": (lambda: PiecewiseRationalQuadraticCDF(IMAGE, num_bins=4, **TAILS), False),
}
LAYERS = {**VECTOR_LAYERS, **IMAGE_LAYERS}


def build(name, spread=1.0, dtype=torch.float64):
    """A layer with raw parameters of about `spread`, and (inputs, context) for it."""
    builder, unit = LAYERS[name]
    layer, shape = builder().to(dtype), IMAGE if name in IMAGE_LAYERS else (FEATURES,)
    inputs = torch.rand(40, *shape, dtype=torch.float64)
    inputs = inputs if unit else (2 * inputs - 1) * 1.2 * BOUND
    context = None if name in IMAGE_LAYERS else torch.randn(40, CONTEXT, dtype=torch.float64)
    widen(layer, spread)
    return layer, inputs.to(dtype), None if context is None else context.to(dtype)


def widen(model, spread):
    """Scale the last layer of each conditioner, so that it gives outputs of standard deviation
    `spread` for typical inputs; scale shared spline parameters likewise."""
    for module in model.modules():
        net = getattr(module, "transform_net", None)
        if net is not None:
            last = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
            with torch.no_grad():
                last.weight.normal_(0, spread)
                last.bias.normal_(0, spread)
        elif isinstance(module, PiecewiseRationalQuadraticCDF):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0, spread)


def sbi_flow(dtype=torch.float32, blocks=5, features=4):
    """A conditional spline flow as sbi builds it: coupling and LU, five times."""

    def block(i):
        mask = [(i + j) % 2 for j in range(features)]

        def net(inputs, outputs):
            return ResidualNet(inputs, outputs, hidden_features=20, context_features=CONTEXT)

        coupling = PiecewiseRationalQuadraticCouplingTransform(mask, net, num_bins=10, **TAILS)
        return [coupling, LULinear(features, identity_init=True)]

    layers = [layer for i in range(blocks) for layer in block(i)]
    return Flow(CompositeTransform(layers), StandardNormal([features])).to(dtype)


def pair(model):
    """`model`, and an accelerated deep copy of it."""
    return model, flowkern.accelerate(copy.deepcopy(model))


def evaluate(layer, inputs, context, inverse=False):
    """y, logabsdet, and the gradients of a fixed mixture of both, by name."""
    inputs = inputs.detach().requires_grad_()
    context = None if context is None else context.detach().requires_grad_()
    y, logabsdet = (layer.inverse if inverse else layer)(inputs, context)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (weights * y).sum() + (logabsdet * weights.flatten(1)[:, 0]).sum()
    variables = {"inputs": inputs, "context": context, **dict(layer.named_parameters())}
    variables = {name: v for name, v in variables.items() if v is not None}
    grads = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
    return {"y": y.detach(), "logabsdet": logabsdet.detach(), **dict(zip(variables, grads))}
