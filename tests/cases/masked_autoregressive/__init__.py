"""Named conditioners and element transforms for the masked autoregressive op.

    case = CASES["relu"]
    check(case, "cpu", torch.float32, inverse=True)

`check` compares values, log-dets and all gradients with the float64 reference, within
`tests/tolerances.py`, in units of what the reference itself loses in the kernel's precision.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

import flowkern
from flowkern.ops import (
    Activation,
    AffineElement,
    ContextTerm,
    Degrees,
    MaskedLayer,
    ScaleMap,
    SoftclipKnots,
    SplineElement,
    masked_autoregressive,
)
from flowkern.ops._activation import NAMES
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._masked_autoregressive.reference import NO_TERMS, Terms
from tests import tolerances
from tests.cases import coupling
from tests.cases.coupling import cotangents
from tests.cases.tensors import generator_of, moved

LABEL = "masked"
# The unit of a spline's y has one rounding of its interval besides: with parameters that are exactly 0
# nothing that moves shows how positions near 0 round there.
# Measured worst over all cases on cpu: 1.5, 2.0, 2.3 and 16.2. The last is in float64, through
# the inverse of 40 features, where the reference in float64 is no better itself; else 7.6.
TOLERANCES = {torch.float64: tolerances.Units(4, 4, 8, 32), torch.float32: tolerances.Units(4, 4, 8, 16)}


@dataclass(frozen=True)
class Case:
    """D features in some order, hidden layers of some widths, and what the layers have.

    order: natural | reversed | random, or the number of passes (features of equal degree).
    rows: biases per sample; gate, norm: gates (per sample) and gains with offsets on hidden layers.
    residual: every second hidden layer adds the z of two layers before; or (layer, earlier layer whose
    z it adds) of each that does.
    inputs: of a context, of which every layer has a term, with that activation; None for no context.
    """

    name: str
    features: int = 5
    hidden: tuple = (12, 9)
    element: AffineElement | SplineElement = AffineElement("softplus", True)
    per_feature: int = 2
    order: str | int = "natural"
    activation: object = "tanh"
    residual: bool | tuple = False
    rows: bool = False
    gate: bool = False
    norm: bool = False
    bias: bool = True
    inputs: int | None = None
    of_context: object = "tanh"
    batch: int = 17
    spread: float = 1.0

    def degrees(self):
        """Degrees of features and hidden units, the latter from seeing nothing to seeing all."""
        return _degrees(self.features, self.hidden, self.order, self.residual)

    def tensors(self, dtype=torch.float32, seed=0, device="cpu"):
        """x (batch, D), and a list of five tensors or None for each layer; then the context, and a
        weight and a bias for each."""
        generator = generator_of(seed)

        def draw(*shape, scale=1.0):
            values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(device, dtype)

        x = 2 * draw(self.batch, self.features)
        tensors, inputs = [], self.features
        for k, units in enumerate((*self.hidden, self.features * self.per_feature)):
            hidden = k < len(self.hidden)
            rows = (self.batch,) if self.rows and hidden else ()
            tensors += [
                draw(units, inputs, scale=self.spread / math.sqrt(inputs)),
                draw(*rows, units) if self.bias else None,
                draw(self.batch, units).sigmoid() if self.gate and hidden else None,
                1 + draw(units, scale=0.3) if self.norm and hidden else None,
                draw(units) if self.norm and hidden else None,
            ]
            inputs = units
        if self.inputs is not None:
            weights = [draw(w.shape[0], self.inputs, scale=0.5) for w in tensors[::5]]
            biases = [draw(len(w)) if k % 2 == 0 else None for k, w in enumerate(weights)]
            tensors += [draw(self.batch, self.inputs), *weights, *biases]
        return x, tensors

    def layers(self, tensors):
        """The `MaskedLayer`s of so many tensors."""
        pairs = ((k, k - 2) for k in range(2, len(self.hidden), 2)) if self.residual is True else self.residual
        skips, layers, count = dict(pairs or ()), [], len(self.hidden) + 1
        context, *terms = tensors[5 * count :] or (None,)
        for k in range(len(self.hidden) + 1):
            hidden = k < len(self.hidden)
            weight, bias, gate, gain, offset = tensors[5 * k : 5 * k + 5]
            activation = self.activation if hidden else "identity"
            term = terms and ContextTerm(context, terms[k], terms[k + count], self.of_context)
            layers.append(MaskedLayer(weight, bias, activation, skips.get(k), gate, gain, offset, term or None))
        return layers

    def __call__(self, x, tensors, inverse=False):
        """(y, logabsdet), or x and its log-det, on the backend chosen outside."""
        return masked_autoregressive(x, self.layers(tensors), self.degrees(), self.element, inverse=inverse)


@functools.cache
def _degrees(features, hidden, order, residual):
    generator = generator_of(3)
    degrees = torch.arange(1, features + 1)
    if order == "reversed":
        degrees = degrees.flip(0)
    elif order == "random":
        degrees = degrees[torch.randperm(features, generator=generator)]
    elif order != "natural":
        degrees = (degrees - 1) * order // features + 1
    top = int(degrees.max())
    units = [torch.randint(0, top + 1, (n,), generator=generator) for n in hidden]
    return Degrees(degrees, [units[0]] * len(units) if residual else units)


def _spline(name, bins=8, tails="identity", **arguments):
    extra = {"identity": -1, "circular": 0, "none": 1}[tails]
    options = {"bound": 3.0, "tails": tails, **arguments.pop("options", {})}
    return Case(name, element=SplineElement(**options), per_feature=3 * bins + extra, **arguments)


CASES = {
    case.name: case
    for case in (
        *(Case(a, activation=a) for a in NAMES if a not in ("tanh", "identity")),
        Case("identity", activation="identity"),
        *(Case(kind, element=AffineElement(kind), per_feature=1 if kind == "additive" else 2) for kind in SCALE_MAPS),
        Case("additive_scale_first", element=AffineElement("additive", True), per_feature=1),
        Case("constants", element=AffineElement(ScaleMap("tanh", a=1.5, prefactor=0.5))),
        _spline("k8"),
        _spline("k10", bins=10, activation="relu"),
        _spline("k5_circular", bins=5, tails="circular"),
        _spline("k4_softclip", bins=4, options={"bound": 5.0, "knot_map": SoftclipKnots()}),
        # All parameters are 0, and positions near 0 are measured in a long interval.
        _spline("k1_without_bias", bins=1, tails="none", options={"bound": 30.0}, features=1, bias=False, batch=33),
        Case("reversed", order="reversed"),
        Case("random", order="random", features=7),
        Case("coupling", order=2),
        Case("passes", order=3, features=8),
        Case("one_pass", order=1),
        Case("context", rows=True),
        Case("inputs", inputs=3),
        Case("inputs_none", inputs=0),  # of which the biases are left
        Case("inputs_of_all", features=7, order="random", inputs=21, of_context="silu", batch=33),
        Case("inputs_of_outputs", hidden=(), inputs=2, of_context="identity", bias=False),
        Case("residual", residual=True, hidden=(10, 10, 10, 10, 10), activation="elu"),
        # One inside of another, two that begin in one layer, and one that begins where another ends.
        Case("skips", residual=((2, 1), (3, 0), (4, 0), (5, 3)), hidden=(10,) * 6),
        Case("everything", residual=True, hidden=(10, 10, 10), rows=True, gate=True, norm=True),
        Case(
            "inputs_with_everything",
            residual=True,
            hidden=(10, 10, 10),
            rows=True,
            gate=True,
            norm=True,
            inputs=3,
            of_context="elu",
        ),
        Case("no_bias", bias=False),
        Case("linear", hidden=()),
        Case("deep", hidden=(8, 6, 7, 5)),
        Case("few_units", features=9, hidden=(3, 2)),
        Case("one_feature", features=1, hidden=(4,)),
        Case("two_features", features=2, hidden=(1, 4)),
        Case("three_features", features=3, hidden=(40,)),
        Case("many_features", features=40, hidden=(70, 90), batch=5, order="random"),
        Case("wide", features=6, hidden=(150, 33), batch=40),
        Case("one_row", batch=1),
        Case("rows_63", batch=63, rows=True),
        Case("rows_of_many_units", features=19, hidden=(50, 21), batch=33, rows=True),
        Case("rows_1023", batch=1023, features=3, hidden=(5,)),
        Case("empty_batch", batch=0),
    )
}


def raw_arguments(case, dtype=torch.float32, inverse=False):
    """x and what else the dispatcher ops take, but for `raw_terms`."""
    x, tensors = case.tensors(dtype)
    order, ends, _ = case.degrees().on("cpu")
    layers = case.layers(tensors)
    codes, slopes = map(list, zip(*(Activation.of(layer.activation).numbers() for layer in layers)))
    skips = [-1 if layer.skip is None else layer.skip for layer in layers]
    settings = codes, slopes, skips
    tensors = tensors[: 5 * len(layers)]
    return x, tensors, order, ends, *settings, inverse, *case.element.numbers()


def raw_terms(case, dtype=torch.float32):
    """What the forward op takes besides."""
    terms = [layer.context for layer in case.layers(case.tensors(dtype)[1])]
    return Terms.of(terms) if case.inputs is not None else NO_TERMS


class Result(NamedTuple):
    """What the op computes, and the gradients of <cotangents, (y, logabsdet)>, None without one."""

    y: torch.Tensor
    logabsdet: torch.Tensor
    grad_x: torch.Tensor
    grads: list


def evaluate(case, x, tensors, *, backend, inverse=False, grads=None):
    """The `Result` of case(x, tensors) on `backend`."""
    x, *tensors = (t if t is None else t.detach().requires_grad_() for t in (x, *tensors))
    given = [t for t in tensors if t is not None]
    with flowkern.backend(backend):
        y, logabsdet = case(x, tensors, inverse=inverse)
        grad_y, grad_l = cotangents(y, logabsdet) if grads is None else grads
        total = (grad_y * y).sum() + (grad_l * logabsdet).sum()
        grad_x, *some = torch.autograd.grad(total, (x, *given))
        if getattr(case, "inputs", None) is not None:  # whose terms kernels take where no gradient is wanted
            with torch.no_grad():
                y, logabsdet = case(x, tensors, inverse=inverse)
    some = iter(some)
    return Result(y.detach(), logabsdet.detach(), grad_x, [t if t is None else next(some) for t in tensors])


def flat(result):
    """(quantity, tensor) for all that a Result holds."""
    yield from (("y", result.y), ("logabsdet", result.logabsdet), ("grad_x", result.grad_x))
    yield from (("grad_params", grad) for grad in result.grads if grad is not None)


def results(case, backend, dtype, seed=0, device="cpu", inverse=False):
    """All results of a backend."""
    x, tensors = case.tensors(dtype, seed, device)
    return [value for _, value in flat(evaluate(case, x, tensors, backend=backend, inverse=inverse))]


def check(case, backend, dtype, *, inverse=False, seed=0, device="cpu"):
    """Raise AssertionError unless `backend` agrees with the float64 reference on `case`."""
    x, tensors = case.tensors(dtype, seed, device)
    got = evaluate(case, x, tensors, backend=backend, inverse=inverse)
    wide = [t if t is None else t.double() for t in tensors]
    grads = tuple(g.double() for g in cotangents(got.y, got.logabsdet))
    want = evaluate(case, x.double(), wide, backend="reference", inverse=inverse, grads=grads)
    strayed = [_strayed(case, x, tensors, want, inverse, grads, n) for n in range(coupling.SAMPLES)]
    label = f"{case.name} on {backend}, {dtype}, inverse={inverse}"
    for (quantity, a), (_, b), *roundings in zip(flat(got), flat(want), *strayed):
        most = getattr(TOLERANCES[dtype], quantity)
        unit = torch.stack(roundings).amax(0)
        if quantity == "y":  # positions are measured in the spline's interval, however near 0 they lie
            unit = unit + torch.finfo(dtype).eps * getattr(case.element, "bound", 0)
        worst = tolerances.errors(a, b, unit.nan_to_num(0, 0), by_row=quantity != "logabsdet")
        worst = torch.where(tolerances.known(unit), worst, 0.0).max().item() if worst.numel() else 0.0
        tolerances.assert_within(worst, most, f"{label}: {quantity}")


def _strayed(case, x, tensors, want, inverse, grads, seed):
    """How far the reference strays from `want` when every input moves by one rounding."""
    x, *tensors = (t if t is None else moved(t, 1, seed + 5)[0] for t in (x, *tensors))
    grads = tuple(g.to(x.dtype) for g in grads)
    got = evaluate(case, x, tensors, backend="reference", inverse=inverse, grads=grads)
    pairs = zip(flat(got), flat(want))
    return [(a.double() - b).abs() for (_, a), (_, b) in pairs]
