"""The continuous layer of zuko 1.6 (CNF), whose adaptive solve becomes fixed steps in one op.

The numbers are then those of other steps, so a layer is accelerated only if the caller names them.
"""

import copy
import functools
import re
from typing import NamedTuple

import torch
from torch import nn

from flowkern.adapters._ode import ADAPTIVE, OdeError, described, known_of, largest, left
from flowkern.adapters._plan import Plan, disagreement, overridden, points, qualified_name, stranger
from flowkern.nn.vector_field import dense_layers
from flowkern.nn.vector_field import described as described_network
from flowkern.ops import neural_ode
from flowkern.ops._arguments import in_dtype

LAYER = "flows.continuous.FFJTransform"
_PACKAGE = re.compile(r"(?:.*\.)?zuko\.")


class Solver:
    """The steps that take the place of a layer's own.

    Args:
        options: method, steps, … of `ops.neural_ode`.
    """

    def __init__(self, options):
        self.options = dict(options)

    @property
    def note(self):
        """What explain says of a layer that is solved so."""
        return described(self.options)

    def left(self, module):
        """Why zuko computes the module as it is now; None if it does not."""
        net = module.ode
        if name(type(net)) != "nn.MLP":
            return f"its network is no MLP but {type(net).__name__}"
        return left(net, _dense)


def _forward(solver, module, c=None):
    """The transform of x given c (…, context)."""
    plain = type(module).forward(module, c)
    if solver.left(module) or (c is None) != (_widths(module)["context"] == 0):
        return plain
    from flowkern.adapters._zuko_transform import FusedFreeFormJacobianTransform

    return FusedFreeFormJacobianTransform(functools.partial(_solve, solver, module, c), plain)


def _solve(solver, module, c, x, t0, t1, trace):
    """y and the log-det (None without trace) of x from t0 to t1; None where zuko must compute them.

    trace: None, "exact", or "normal" for an estimate with noise drawn here, as zuko has it.
    """
    dense, widths = _dense(module.ode), _widths(module)
    weight = dense[0].linear.weight
    if solver.left(module) or x.shape[-1:] != (widths["x"],) or x.dtype != weight.dtype or x.is_complex():
        return None
    if not module.training:  # zuko gives its parameters no gradient then
        dense = [layer._replace(linear=_Constant.of(layer.linear)) for layer in dense]
    layers, time = described_network(dense, widths, c, module.freqs)
    if trace == "normal":
        trace = torch.randn_like(x)
    t = torch.stack((t0, t1))
    y, logabsdet, *_ = neural_ode(x, layers, t, time=time, trace=trace, **solver.options)
    return y[-1], None if trace is None else in_dtype(logabsdet[-1], x.dtype)


class _Constant(NamedTuple):
    """A linear layer's tensors without gradients."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, linear):
        return cls(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())


def _widths(module):
    """How many columns of the network's input each part has, in order."""
    linears = [part for part in module.ode if _is_linear(part)]
    features, embedding = linears[-1].weight.shape[0], 2 * len(module.freqs)
    context = linears[0].weight.shape[1] - features - embedding
    return {"t": embedding, "x": features, "context": context}


def _dense(net):
    return dense_layers(net, _is_linear)


def _is_linear(part):
    return name(type(part)) == "nn.Linear" and part.weight.dim() == 2 or type(part) is nn.Linear


def name(cls):
    """A class's qualified name from behind `zuko.`, or None for others' classes."""
    return qualified_name(_PACKAGE, cls)


# Whether a layer is accelerated.


def plan(module):
    """The `Plan` for an FFJTransform: what it takes to be solved by steps that the caller names."""
    reason = (
        overridden(module, ("forward", "f"), name)
        or Solver({}).left(module)
        or disagreement(functools.partial(_comparisons, module))
    )
    return Plan({}, reason) if reason else Plan({}, ADAPTIVE, _methods)


def _methods(ode):
    return {"forward": functools.partial(_forward, Solver(ode))}


def _comparisons(module):
    """A layer with such a structure, over a time in which zuko takes one step of the same method."""
    copied, widths = stranger(module), _widths(module)
    copied.times = torch.tensor([0.2, 0.21], dtype=torch.float64, device="cpu")
    x, c = points(widths["x"]), points(widths["context"]) if widths["context"] else None
    copied.exact = True
    plain = type(module).forward(copied, c)
    fused = functools.partial(_solve, Solver({"method": "dopri5", "steps": 1}), copied, c)
    yield "forward", plain.call_and_ladj(x), fused(x, plain.t0, plain.t1, "exact")
    yield "inverse", plain.inv.call_and_ladj(x), fused(x, plain.t1, plain.t0, "exact")


# What the other steps change.


def solves(model):
    """Whether a layer of the model is solved by fixed steps."""
    return bool(_solved(model))


def _solved(model):
    return [m for m in model.modules() if known_of(m, "forward", Solver)]


def ode_error(flow, x, c=None):
    """As `adapters.ode_error` for a flow or lazy transform and its context c (…, context), from data to noise."""
    fixed, plain, exact = (copy.deepcopy(flow) for _ in range(3))
    layers = [_solved(model) for model in (fixed, plain, exact)]
    for module in (*layers[0], *layers[1], *layers[2]):
        module.exact = True
    for module in (*layers[1], *layers[2]):
        del module.__dict__["forward"]
    for module in layers[2]:
        module.atol, module.rtol = 1e-3 * module.atol, 1e-3 * module.rtol
    wanted = _call(exact.double(), x.double(), None if c is None else c.double())
    return OdeError(*(largest(a, b) for f in (fixed, plain) for a, b in zip(_call(f, x, c), wanted)))


def _call(flow, x, c):
    """y and the log-det by a flow or a lazy transform."""
    transform = flow(c)
    return getattr(transform, "transform", transform).call_and_ladj(x)
