"""Flows of nflows and zuko that run as one program, plain and accelerated, for the tests of programs."""

import copy
from functools import partial

import nflows.nn.nets as nets
import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    ActNorm,
    AdditiveCouplingTransform,
    AffineCouplingTransform,
    BatchNorm,
    CompositeTransform,
    HouseholderSequence,
    InverseTransform,
    LULinear,
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
    PointwiseAffineTransform,
    QRLinear,
    RandomPermutation,
    ReversePermutation,
    SVDLinear,
)
from torch import nn

import flowkern

D, C, HIDDEN = 4, 3, 8
MASK = [1, 0, 1, 0]
RQS = {"num_bins": 4, "tails": "linear", "tail_bound": 3.0}


def standardising():
    return PointwiseAffineTransform(torch.linspace(-0.5, 0.5, D), torch.linspace(0.5, 2.0, D))


def affine(context=C, **options):
    options = {"num_blocks": 2, "use_residual_blocks": False, "activation": torch.tanh} | options
    return MaskedAffineAutoregressiveTransform(D, HIDDEN, context, **options)


def splines(context=C, **options):
    return MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, HIDDEN, context, **RQS, **options)


def net(context=C, **options):
    return partial(nets.ResidualNet, hidden_features=HIDDEN, context_features=context, **options)


def spline_coupling(context=C, mask=MASK, **options):
    return PiecewiseRationalQuadraticCouplingTransform(mask, net(context, **options), **RQS)


def act_norm():
    layer = ActNorm(D)
    layer.initialized.fill_(True)
    return layer


class Chain(nn.Module):
    """A conditioner as users write it."""

    def __init__(self, inputs, outputs, context=C):
        super().__init__()
        inner = [nn.SiLU(), nn.Dropout(0.0), nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU(0.2), nn.Linear(HIDDEN, outputs)]
        self.layers = nn.Sequential(nn.Linear(inputs + context, HIDDEN), *inner)

    def forward(self, x, context=None):
        return self.layers(x if context is None else torch.cat([x, context], 1))


class FlatMLP(nets.MLP):
    """nflows' MLP, which takes no context, as a conditioner."""

    def __init__(self, inputs, outputs):
        super().__init__((inputs,), (outputs,), [HIDDEN, HIDDEN], activation=nn.functional.elu)

    def forward(self, x, context=None):
        return super().forward(x)


class ContextMap(nn.Module):
    """As sbi's ContextSplineMap, for a flow of one feature: it reads the context alone, its middle layer twice."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.hidden_features = HIDDEN
        middle = [nn.Linear(HIDDEN, HIDDEN), nn.ReLU()] * 2
        self.predictor = nn.Sequential(nn.Linear(C, HIDDEN), nn.ReLU(), *middle, nn.Linear(HIDDEN, outputs))

    def __call__(self, inputs, context, *args, **kwargs):
        return self.predictor(context)


def spline_of(network, mask=MASK, **options):
    return PiecewiseRationalQuadraticCouplingTransform(mask, network, **(RQS | options))


def own_networks():
    return [AffineCouplingTransform(MASK, Chain), LULinear(D), spline_of(Chain, [0, 1, 0, 1])]


def flat():
    return [AffineCouplingTransform(MASK, FlatMLP), RandomPermutation(D), spline_of(FlatMLP)]


def unconditional():
    alone = PiecewiseRationalQuadraticCDF([D], num_bins=4, tails="linear", tail_bound=3.0)
    return [spline_of(net(), apply_unconditional_transform=True), LULinear(D), InverseTransform(alone)]


def maf():
    """As sbi builds it."""
    return [standardising(), *(t for _ in range(2) for t in (affine(), RandomPermutation(D)))]


def nsf():
    """As sbi builds it."""
    return [standardising(), spline_coupling(), LULinear(D), spline_coupling(mask=[0, 1, 0, 1]), LULinear(D)]


def normed():
    return [
        affine(use_batch_norm=True), affine(use_residual_blocks=True, use_batch_norm=True), BatchNorm(D),
        AffineCouplingTransform(MASK, net(use_batch_norm=True)),
    ]  # fmt: skip


def residual_maf():
    return [affine(use_residual_blocks=True, activation=nn.functional.elu), ReversePermutation(D), act_norm()]


def turned():
    inner = CompositeTransform([RandomPermutation(D), affine(), LULinear(D)])
    return [InverseTransform(inner), PointwiseAffineTransform(0.5, 2.0), CompositeTransform([splines()])]


def real_nvp():
    return [
        AffineCouplingTransform(MASK, net(None)), act_norm(),
        AdditiveCouplingTransform([0, 1, 0, 1], net(None, activation=nn.functional.leaky_relu)), LULinear(D),
    ]  # fmt: skip


def matrices():
    return [HouseholderSequence(D, 3), affine(), QRLinear(D, 2), SVDLinear(D, 4), InverseTransform(SVDLinear(D, 2))]


# name: (transforms, how many features of the context, whether splines are in it)
NFLOWS = {
    "maf": (maf, C, False),
    "nsf": (nsf, C, True),
    "spline maf": (lambda: [splines(), RandomPermutation(D), splines()], C, True),
    "random masks": (lambda: [affine(random_mask=True), LULinear(D)], C, False),
    "normed": (normed, C, False),
    "residual maf": (residual_maf, C, False),
    "turned": (turned, C, True),
    "real nvp": (real_nvp, 0, False),
    "no context": (lambda: [affine(None), LULinear(D), splines(None)], 0, True),
    "own networks": (own_networks, C, True),
    "mlp": (flat, 0, True),
    "unconditional": (unconditional, C, True),
    "matrices": (matrices, C, False),
}
_RQS = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(4,), (4,), (3,)]}
_SMALL = {"hidden_features": (HIDDEN, HIDDEN), "transforms": 3}
# name: (flow, how many features of the context)
ZUKO = {
    "maf": (lambda: zuko.flows.MAF(D, C, **_SMALL, activation=nn.ELU), C),
    "nsf": (lambda: zuko.flows.NSF(D, C, bins=4, randperm=True, **_SMALL), C),
    "residual": (lambda: zuko.flows.MAF(D, hidden_features=(HIDDEN,) * 2, residual=True), 0),
    "passes": (lambda: zuko.flows.MAF(D, C, passes=2, **_SMALL), C),
    "nice": (lambda: zuko.flows.NICE(D, C, **_SMALL), C),
    "spline coupling": (lambda: zuko.flows.NICE(D, **_RQS, **_SMALL), 0),
    "additive": (
        lambda: zuko.flows.NICE(D, univariate=zuko.transforms.AdditiveTransform, shapes=[()], **_SMALL), 0,
    ),
    "standardised": (lambda: _standardised(zuko.flows.MAF(D, C, **_SMALL)), C),
    "matrices": (lambda: _turned(zuko.flows.MAF(D, C, **_SMALL)), C),
    "diagonal base": (lambda: zuko.lazy.Flow(zuko.flows.MAF(D, C, **_SMALL).transform.transforms, _diagonal()), C),
}  # fmt: skip


def _turned(flow):
    """With linear layers between its transforms."""
    first, *others = flow.transform.transforms
    rotation = zuko.lazy.UnconditionalTransform(zuko.transforms.RotationTransform, torch.randn(D, D))
    triangles = zuko.lazy.UnconditionalTransform(zuko.transforms.LULinearTransform, torch.randn(D, D) + torch.eye(D))
    return zuko.lazy.Flow((rotation, first, triangles, *others), flow.base)


def _diagonal():
    loc, scale = torch.linspace(-0.5, 0.5, D), torch.linspace(0.5, 2.0, D)
    return zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, loc, scale, buffer=True)


def _standardised(flow):
    """As sbi builds it."""
    first = zuko.lazy.UnconditionalTransform(
        torch.distributions.AffineTransform, loc=torch.linspace(-0.5, 0.5, D), scale=torch.linspace(0.5, 2.0, D),
        buffer=True,
    )  # fmt: skip
    order = zuko.lazy.UnconditionalTransform(
        zuko.transforms.PermutationTransform, order=torch.tensor([2, 0, 3, 1]), buffer=True
    )
    return zuko.lazy.Flow((first, *flow.transform.transforms, order), flow.base)


def randomised(model, dtype=torch.float64):
    """The model with weights and statistics of its own, in evaluation."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.to(dtype).eval()


def nflows_flow(name, dtype=torch.float64, base=True):
    torch.manual_seed(0)
    transform = CompositeTransform(NFLOWS[name][0]())
    return randomised(Flow(transform, StandardNormal([D])), dtype)


def zuko_flow(name, dtype=torch.float64):
    torch.manual_seed(0)
    return randomised(ZUKO[name][0](), dtype)


def pair(model):
    """The plain model, and an accelerated copy."""
    return model, flowkern.accelerate(copy.deepcopy(model))


def data(context, rows=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, D, generator=generator, dtype=torch.float64)
    c = torch.randn(rows, context, generator=generator, dtype=torch.float64) if context else None
    return x.to(dtype), c if c is None else c.to(dtype)


def derivatives(model, outputs, *inputs):
    """Gradients of a mixture of the outputs with respect to all parameters and inputs."""
    mixture = sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
    wanted = [*model.parameters(), *(t for t in inputs if t is not None)]
    return torch.autograd.grad(mixture, wanted, allow_unused=True)
