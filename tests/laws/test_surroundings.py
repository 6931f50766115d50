"""Ops, transforms and flows in many surroundings, against the reference's formulas in plain PyTorch."""

import math

import pytest
import torch
from torch import nn

from flowkern import flows, ops, transforms
from flowkern.ops import AffineElement, Degrees, MaskedLayer, SplineElement
from flowkern.ops import _flow_program as program
from flowkern.ops._masked_autoregressive import reference
from tests.surroundings import SURROUNDINGS, Calls, Case

D, C, BINS, BOUND = 3, 2, 3, 2.0
SMALL = {"hidden_features": (4,)}


def inputs(rows, context=0):
    generator = torch.Generator().manual_seed(rows)
    sizes = (D, context) if context else (D,)
    return tuple(torch.randn(rows, size, generator=generator, dtype=torch.float64) for size in sizes)


def with_context(rows):
    return inputs(rows, C)


class Direction(nn.Module):
    """One direction of a transform, or its formulas; the log-det in the dtype of x."""

    def __init__(self, transform, inverse, plain=False):
        super().__init__()
        self.transform, self.inverted, self.plain = transform, inverse, plain
        generator = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3

    def forward(self, x, context=None):
        if self.plain:
            return formulas(self.transform, x, context, self.inverted)
        y, logabsdet = (self.transform.inverse if self.inverted else self.transform)(x, context)
        return y, logabsdet.to(x.dtype)


class LogProb(Direction):
    """An eighth of a flow's log-density: what half precision rounds off is then little to the sine of the loss."""

    def forward(self, x, context=None):
        if not self.plain:
            return self.transform(context).log_prob(x).to(x.dtype) / 8
        z, logabsdet = formulas(self.transform.transform, x, context, False)
        return (-0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) + logabsdet) / 8


class Sample(Direction):
    """What a flow's sampler makes of noise, and its log-density."""

    def forward(self, z, context=None):
        transform = self.transform.transform
        x, logabsdet = formulas(transform, z, context, True) if self.plain else transform.inverse(z, context)
        return x, logabsdet.to(z.dtype)


# The formulas of each transform.


def formulas(transform, x, context, inverse):
    """y and log|det J| of a transform in plain operations."""
    for kind, formula in FORMULAS.items():
        if isinstance(transform, kind):
            return formula(transform, x, context, inverse)
    raise NotImplementedError(type(transform))


def of_compose(transform, x, context, inverse):
    total = 0.0
    for inner in reversed(transform.transforms) if inverse else transform.transforms:
        x, logabsdet = formulas(inner, x, context, inverse)
        total = total + logabsdet
    return x, total


def of_coupling(transform, x, context, inverse):
    given = x[:, transform.identity]
    raw = transform.conditioner(given) if context is None else transform.conditioner(given, context)
    params = raw.expand(len(x), raw.shape[-1]).unflatten(-1, (-1, transform.per_feature))
    y, logabsdet = element(x[:, transform.index], params, transform._element(), inverse)
    return x.index_copy(-1, transform.index, y), logabsdet


def of_masked(transform, x, context, inverse):
    net, count = transform.conditioner, x.shape[-1]

    def params(x):
        return net(x, context).unflatten(-1, (count, -1))

    if not inverse:
        return element(x, params(x), transform.element, False)
    found = torch.zeros_like(x)
    for _ in range(count):
        found, logabsdet = element(x, params(found), transform.element, True)
    return found, logabsdet


def element(x, params, kind, inverse):
    code, *numbers = kind.numbers()
    return reference.transformed(x, params, inverse, code, *numbers)


def of_lu(transform, x, context, inverse):
    lower = transform.weight.tril(-1) + torch.eye(D, dtype=x.dtype)
    matrix = lower @ (transform.weight.triu(1) + transform.log_diagonal.exp().diag())
    total = transform.log_diagonal.sum().expand(len(x))
    if inverse:
        return (x - transform.bias) @ torch.linalg.inv(matrix).mT, -total
    return x @ matrix.mT + transform.bias, total


def of_act_norm(transform, x, context, inverse):
    scale, total = transform.log_scale.exp(), transform.log_scale.sum().expand(len(x))
    return ((x - transform.shift) / scale, -total) if inverse else (x * scale + transform.shift, total)


def of_permutation(transform, x, context, inverse):
    order = transform.permutation.argsort() if inverse else transform.permutation
    return x[:, order], torch.zeros(len(x), dtype=x.dtype)


FORMULAS = {
    transforms.Compose: of_compose,
    transforms.Inverse: lambda inv, x, context, inverse: formulas(inv.transform, x, context, not inverse),
    transforms.MaskedAutoregressive: of_masked,
    transforms.LULinear: of_lu,
    transforms.ActNorm: of_act_norm,
    transforms.Permutation: of_permutation,
    transforms.AffineCoupling: of_coupling,
    transforms.SplineCoupling: of_coupling,
}


# Ops, whose parameters are those of the module.


def called(function, **parameters):
    """A function of x and parameters, and its log-det in the dtype of x."""

    def call(x, *values):
        y, logabsdet = function(x, *values)
        return y, logabsdet.to(x.dtype)

    return lambda: Calls(call, **parameters)


def coupling_op(op, kind, per_feature, inverse, **options):
    params, index = torch.linspace(-1, 1, 2 * per_feature).view(2, per_feature), torch.tensor([0, 2])

    def by_op(x, params):
        return op(x, params.expand(x.shape[0], 2, per_feature), index=index, inverse=inverse, **options)

    def by_hand(x, params):
        y, logabsdet = element(x[:, index], params.expand(x.shape[0], 2, per_feature), kind, inverse)
        return x.index_copy(-1, index, y), logabsdet

    return Case(called(by_op, params=params), called(by_hand, params=params), inputs, REAL)


def affine_op(inverse):
    return coupling_op(ops.affine_coupling, AffineElement("softclip"), 2, inverse, scale_map="softclip")


def spline_op(inverse):
    kind = SplineElement(BOUND)
    return coupling_op(ops.rational_quadratic_spline, kind, 3 * BINS - 1, inverse, bound=BOUND)


def masked_op(inverse):
    kind, features, hidden = AffineElement("tanh"), torch.tensor([1, 2, 3]), torch.tensor([1, 2, 1, 2])
    degrees = Degrees(features, [hidden])
    first, last = (hidden[:, None] >= features).double(), (features.repeat_interleave(2)[:, None] > hidden).double()
    values = dict(w=torch.linspace(-1, 1, 12).view(4, 3), b=torch.ones(4) / 2, v=torch.linspace(-1, 1, 24).view(6, 4))

    def by_op(x, w, b, v):
        layers = MaskedLayer(w, b, "tanh"), MaskedLayer(v)
        return ops.masked_autoregressive(x, layers, degrees, kind, inverse=inverse)

    def by_hand(x, w, b, v):
        seen = torch.zeros_like(x) if inverse else x
        for _ in range(D if inverse else 1):
            hidden = torch.tanh(seen @ (w * first).mT + b)
            y, logabsdet = element(x, (hidden @ (v * last).mT).unflatten(-1, (D, 2)), kind, inverse)
            seen = y
        return y, logabsdet

    return Case(called(by_op, **values), called(by_hand, **values), inputs, REAL)


def program_op(inverse):
    order = torch.tensor([2, 0, 1])
    flow = program.Program(D, (program.Scale(logarithmic=True), program.Permutation((2, 0, 1)), program.LU(0.0)))
    names = "log_scale", "shift", "below", "above", "diagonal", "bias"
    values = {name: torch.linspace(-0.4, 0.1 * i, 3) for i, name in enumerate(names)}

    def by_op(x, *tensors):
        return program.flow_program(x, flow, tensors, inverse=inverse)

    def by_hand(x, log_scale, shift, below, above, raw, bias):
        lower = torch.eye(D, dtype=x.dtype).index_put(tuple(torch.tril_indices(D, D, -1)), below)
        diagonal = nn.functional.softplus(raw)
        matrix = lower @ diagonal.diag().index_put(tuple(torch.triu_indices(D, D, 1)), above)
        total = (log_scale.sum() + diagonal.log().sum()).expand(len(x))
        if inverse:
            y = ((x - bias) @ torch.linalg.inv(matrix).mT)[:, order.argsort()]
            return (y - shift) * torch.exp(-log_scale), -total
        return (x * log_scale.exp() + shift)[:, order] @ matrix.mT + bias, total

    return Case(called(by_op, **values), called(by_hand, **values), inputs, REAL)


REAL = {"complex": (TypeError, "expected a (floating-point|real) dtype, got torch.complex128")}
OPS = {"affine": affine_op, "spline": spline_op, "masked": masked_op, "program": program_op}


def case(kind, make, context=0, inverse=False, refuses=REAL):
    return Case(
        lambda: kind(make(), inverse), lambda: kind(make(), inverse, plain=True),
        with_context if context else inputs, refuses,
    )  # fmt: skip


ORDER = torch.tensor([2, 0, 1])
TRANSFORMS = {
    "AffineCoupling": (lambda: transforms.AffineCoupling(D, C, **SMALL), C),
    "SplineCoupling": (lambda: transforms.SplineCoupling(D, bins=BINS, bound=BOUND, **SMALL), 0),
    "AffineAutoregressive": (lambda: transforms.AffineAutoregressive(D, C, **SMALL), C),
    "SplineAutoregressive": (lambda: transforms.SplineAutoregressive(D, bins=BINS, bound=BOUND, **SMALL), 0),
    "LULinear": (lambda: transforms.LULinear(D), 0),
    "ActNorm": (lambda: transforms.ActNorm(D).eval(), 0),
    "Permutation": (lambda: transforms.Permutation(ORDER), 0),
    "Compose": (
        lambda: transforms.Compose(transforms.LULinear(D), transforms.Inverse(transforms.AffineCoupling(D, **SMALL))),
        0,
    ),
}
FLOWS = {
    "NICE": (lambda: flows.NICE(D, transforms=2, **SMALL), 0),
    "RealNVP": (lambda: flows.RealNVP(D, C, transforms=2, mixing="lu", **SMALL), C),
    "NSF": (lambda: flows.NSF(D, C, bins=BINS, bound=BOUND, transforms=2, mixing="permutation", **SMALL), C),
    "MAF": (lambda: flows.MAF(D, C, transforms=2, **SMALL), C),
    "IAF": (lambda: flows.IAF(D, transforms=2, **SMALL), 0),
    "AutoregressiveNSF": (lambda: flows.AutoregressiveNSF(D, bins=BINS, bound=BOUND, transforms=2, **SMALL), 0),
}
WAYS = {"forward": False, "inverse": True}
CASES = {
    **{f"{name} {way}": make(inverse) for name, make in OPS.items() for way, inverse in WAYS.items()},
    **{
        f"{name} {way}": case(Direction, *arguments, inverse)
        for name, arguments in TRANSFORMS.items()
        for way, inverse in WAYS.items()
    },
    **{f"{name} log_prob": case(LogProb, *arguments) for name, arguments in FLOWS.items()},
    **{f"{name} sample": case(Sample, *arguments) for name, arguments in FLOWS.items()},
}

# Others are compiled in other tests.
COMPILED = ("program forward", "Compose inverse")


@pytest.mark.parametrize(
    "name, surrounding",
    [(c, s) for c in CASES for s in SURROUNDINGS if s not in ("compile", "export") or c in COMPILED],
)
def test_surroundings(name, surrounding):
    CASES[name].check(surrounding)
