"""Accelerated models of every library in many surroundings, against the same models plain."""

from functools import partial

import nflows.transforms.splines.rational_quadratic as nflows_splines
import pytest
import torch
from torch import nn

import flowkern
from flowkern.adapters import spline_functions
from tests.adapters import autoregressive_models, nflows_models, normflows_models, program_models, samplers
from tests.adapters.test_spline_functions import copied
from tests.surroundings import SURROUNDINGS, Case

try:
    from FrEIA import framework
except ImportError:
    framework = None
else:
    from tests.adapters import test_freia


@pytest.fixture(autouse=True)
def in_float64():
    """normflows sums log-dets in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Called(nn.Module):
    """A model, and how it is called."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x, *context):
        return self.call(self.model, x, *context)

    def __repr__(self):  # which torch.func.vmap asks for; zuko's draws random numbers
        return "Called()"


def case(build, call, shape, context=0, **options):
    """The model that `build` makes, plain and accelerated, both called by call(model, x[, context])."""

    def inputs(rows):
        generator = torch.Generator().manual_seed(rows)
        shapes = ((*shape,), (context,)) if context else ((*shape,),)
        return tuple(torch.rand(rows, *s, generator=generator, dtype=torch.float64) for s in shapes)

    def fast():
        model = flowkern.accelerate(build())
        explained = flowkern.explain(model)
        assert explained.replaced and not explained.left, explained
        return Called(model, call)

    return Case(fast, lambda: Called(build(), call), inputs, as_twin=True, **options)


# Layers of nflows, zuko and normflows.


def forward(layer, x, context=None):
    return autoregressive_models.call(layer, x, context)


def inverse(layer, x, context=None):
    return autoregressive_models.call(layer.inverse, x, context)


def layer(name, call):
    source = nflows_models if name in nflows_models.LAYERS else autoregressive_models
    _, x, context = source.build(name)
    context = 0 if context is None or name in ("cdf", "lu") else context.shape[1]
    return case(lambda: source.build(name)[0].eval(), call, x.shape[1:], context)


CASES = {}
for name in (
    "additive", "affine", "spline", "spline_unconditional", "cdf", "image_affine", "nflows", "nflows norm",
    "nflows spline", "normflows without context", "normflows circular", "zuko residual", "zuko spline",
    "zuko no hidden layer",
):  # fmt: skip
    CASES[f"{name} forward"] = layer(name, forward)
    CASES[f"{name} inverse"] = layer(name, inverse)
CASES["lu inverse"] = layer("lu", inverse)


# Whole flows, whose random numbers are given.


def nflows_log_prob(flow, x, context=None):
    return flow.log_prob(x, context=context)


def nflows_sample(flow, x, context=None):
    return flow._transform.inverse(x, context)


def zuko_log_prob(flow, x, context=None):
    return flow(context).log_prob(x)


def zuko_sample(flow, x, context=None):
    return flow(context).transform.inv.call_and_ladj(x)


def normflows_log_prob(flow, x, *context):
    return flow.log_prob(x, *context)


def normflows_sample(flow, x, *context):
    return flow.forward_and_log_det(x, *context)


def whole(build, call, context):
    def halved():
        """With weights that no surrounding makes large, so that its digits can be compared."""
        flow = build()
        for parameter in flow.parameters():
            parameter.data *= 0.5
        return flow

    return case(halved, call, (program_models.D,), context)


for name, call in (
    ("maf", nflows_log_prob), ("nsf", nflows_log_prob), ("nsf", nflows_sample), ("own networks", nflows_log_prob),
    ("unconditional", nflows_sample), ("real nvp", nflows_log_prob),
):  # fmt: skip
    build = partial(program_models.nflows_flow, name)
    CASES[f"{name} {call.__name__}"] = whole(build, call, program_models.NFLOWS[name][1])
for name, call in (
    ("maf", zuko_log_prob), ("nsf", zuko_sample), ("nice", zuko_log_prob), ("spline coupling", zuko_log_prob),
    ("spline coupling", zuko_sample),
):  # fmt: skip
    build = partial(program_models.zuko_flow, name)
    CASES[f"{name} {call.__name__}"] = whole(build, call, program_models.ZUKO[name][1])
for name, call in (
    ("affine", normflows_log_prob), ("masked", normflows_sample), ("coupled", normflows_log_prob),
    ("autoregressive", normflows_sample), ("conditional", normflows_log_prob),
):  # fmt: skip
    layers, context, _ = normflows_models.MODELS[name]
    CASES[f"{name} {call.__name__}"] = whole(partial(normflows_models.build, layers, context), call, context)


# FrEIA's blocks and sequences.


def freia_forward(model, x, *context, rev=False):
    if isinstance(model, framework.SequenceINN):
        return model(x, list(context) or None, rev=rev)
    (y,), logabsdet = model((x,), list(context), rev=rev)
    return y, logabsdet


def freia_inverse(model, x, *context):
    return freia_forward(model, x, *context, rev=True)


if framework is not None:
    for call in (freia_forward, freia_inverse):
        shape, context = (test_freia.D,), test_freia.C
        CASES[f"all in one {call.__name__}"] = case(partial(test_freia.block, "all in one", True), call, shape, context)
        CASES[f"glow {call.__name__}"] = case(partial(test_freia.block, "glow"), call, shape)
        CASES[f"sequence {call.__name__}"] = case(partial(test_freia.sequence, True), call, shape, context)


# Continuous flows and samplers, by steps that both take.


def velocities(solver, x):
    return solver.sample(x, step_size=0.25, method="midpoint", enable_grad=True)


CASES["flow_matching sample"] = case(lambda: samplers.ODESolver(samplers.Velocity()), velocities, (2,))


# Spline functions in a module that has a copy of them.


class Splines(nn.Module):
    """A spline of each feature by a function, which `spline_functions` may have replaced."""

    def __init__(self, function, inverse):
        super().__init__()
        self.function, self.inverse = function, inverse
        shapes = {"widths": 4, "heights": 4, "slopes": 3}
        for name, count in shapes.items():
            setattr(self, name, nn.Parameter(torch.linspace(-1, 1, 3 * count).view(3, count)))

    def forward(self, x):
        raw = [p.expand(x.shape[0], *p.shape) for p in (self.widths, self.heights, self.slopes)]
        return self.function(4 * x - 2, *raw, self.inverse, tail_bound=1.5)


def replaced():
    """The function of a copied module."""
    module = copied()
    found = spline_functions(module)
    assert len(found.replaced) == 2, found
    return module.unconstrained_rational_quadratic_spline


def points(rows):
    return (torch.rand(rows, 3, generator=torch.Generator().manual_seed(rows), dtype=torch.float64),)


def spline_case(inverse):
    plain = nflows_splines.unconstrained_rational_quadratic_spline
    return Case(lambda: Splines(replaced(), inverse), lambda: Splines(plain, inverse), points, as_twin=True)


CASES |= {"functions forward": spline_case(False), "functions inverse": spline_case(True)}

# Others are compiled elsewhere.
COMPILED = (
    "masked normflows_sample", "coupled normflows_log_prob", "spline coupling zuko_log_prob",
    "sequence freia_forward", "flow_matching sample",
)  # fmt: skip


@pytest.mark.parametrize(
    "name, surrounding",
    [(c, s) for c in CASES for s in SURROUNDINGS if s not in ("compile", "export") or c in COMPILED],
)
def test_surroundings(name, surrounding):
    CASES[name].check(surrounding)
