"""Named flows for the program op.

    case = CASES["coupling"]
    check(case, "cpu", torch.float32, inverse=True)

`check` compares values, log-dets and all gradients with the float64 reference, within
`tests/tolerances.py`, in units of what the reference itself loses in the kernel's precision.
"""

import random
from dataclasses import dataclass

import torch

import flowkern
from flowkern.ops import AffineElement, Degrees, ScaleMap, SoftplusKnots, SplineElement
from flowkern.ops._activation import NAMES
from flowkern.ops._flow_program import (
    LU,
    Conditioned,
    ConditionerLayer,
    Linear,
    Permutation,
    Program,
    Scale,
    flow_program,
)
from tests.cases.tensors import generator_of, lost
from tests.tolerances import assert_within, in_largest

LABEL = "flow"
# Most units by which any result of a program may be wrong. One unit is the largest error of the reference in that
# precision, also when every tensor moves by one rounding, plus one rounding of the largest value.
# Measured worst over all cases and 300 random programs on cpu: 8.9 in float64, 2.1 in float32.
TOLERANCES = {torch.float64: 16, torch.float32: 8}
AFFINE = AffineElement(ScaleMap("softplus", b=1e-3), scale_first=True)
EXP = AffineElement("exp")
ADDITIVE = AffineElement("additive")
SPLINE = SplineElement(3.0, "identity", SoftplusKnots(scale=0.3))


def _network(width, depth, context=False, activation="tanh", residual=False, gated=False, joint=False, bare=False):
    """Layers with every tensor that they can have, or (bare) with weights alone."""
    layers = []
    for k in range(depth + 1):
        last, hidden = k == depth, k < depth
        tensors = ["weight"] if bare else ["weight", "bias", *(["gain", "offset"] if hidden and k % 2 else [])]
        term = ("identity" if joint else "silu" if k else "tanh") if context and not (k and joint) else None
        joined = joint and k == 0 and context
        gate = "sigmoid" if context and gated and hidden and k else None
        if term is not None and not joined:
            tensors += ["term_weight"] if bare else ["term_weight", "term_bias"]
        elif joined and not bare:
            tensors += ["term_bias"]
        if gate is not None:
            tensors += ["gate_weight", "gate_bias"]
        skip = k - 2 if residual and hidden and k >= 2 and k % 2 == 0 else None
        kind = "identity" if last else activation
        layers.append(ConditionerLayer(tuple(tensors), kind, skip, term, joined, gate))
    return tuple(layers), (width,) * depth


def autoregressive(features, element=AFFINE, parameters=2, width=9, depth=2, order=None, inverse=False, **options):
    """A masked autoregressive step whose units see from nothing to all."""
    layers, hidden = _network(width, depth, **options)
    degrees = [[i % (features + 1) for i in range(units)] for units in hidden]
    of_features = range(1, features + 1) if order is None else order
    return Conditioned(layers, Degrees(of_features, degrees), element, parameters, inverse=inverse)


def coupling(
    features, element=EXP, parameters=2, width=20, depth=2, interleaved=True, first=0, inverse=False, **options
):
    """A coupling step: every other feature stays, and the outputs are in another order than the features."""
    layers, hidden = _network(width, depth, **options)
    inputs = tuple(f for f in range(features) if f % 2 == first)
    outputs = tuple(reversed([f for f in range(features) if f % 2 != first]))
    ranks = Degrees([1 if f in inputs else 2 for f in range(features)], [[1] * units for units in hidden])
    return Conditioned(layers, ranks, element, parameters, outputs, inputs, interleaved, inverse)


@dataclass(frozen=True)
class Case:
    """A program, and a batch for it."""

    features: int
    steps: tuple
    context: int = 0
    base: str | None = None
    batch: int = 17

    def program(self):
        return Program(self.features, self.steps, self.context, self.base)

    def tensors(self, dtype=torch.float32, seed=0):
        """{name: tensor}: x, the context if there is one, and the steps' tensors."""
        generator = generator_of(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        named = {"x": 1.5 * draw(self.batch, self.features)}
        if self.context:
            named["context"] = draw(self.batch, self.context)
        for i, step in enumerate(self.steps):
            if isinstance(step, Linear):
                linear = zip(("matrix", "back", "log"), _invertible(draw, self.features, step.orthogonal))
                named |= {f"{i} {name}": value for name, value in linear}
                continue
            for name, shape in shapes(step, self.features, self.context):
                size = shape[-1] if len(shape) > 1 else self.features if name in ("lower", "upper") else 4
                values = draw(*shape) / max(1, size) ** 0.5
                if isinstance(step, Conditioned) and step.element is not SPLINE:
                    values = 0.7 * values  # or exponentials of exponentials overflow
                if name in ("gain", "scale") and not getattr(step, "logarithmic", False):
                    values = 1 + 0.3 * values
                named[f"{i} {name} {len(named)}"] = values
        return {name: tensor.to(dtype) for name, tensor in named.items()}


def _invertible(draw, features, orthogonal):
    """An orthogonal matrix, or a matrix, its inverse and its log-determinant."""
    matrix = torch.linalg.qr(draw(features, features))[0]
    if orthogonal:
        return (matrix,)
    matrix = matrix * draw(features).exp() @ torch.linalg.qr(draw(features, features))[0]
    return matrix, matrix.inverse(), matrix.det().abs().log().reshape(1)


def shapes(step, features, context):
    """(name, shape) of each tensor that a step takes."""
    if isinstance(step, LU):
        triangle = (features * (features - 1) // 2,)
        vectors = [("diagonal", (features,)), *([("bias", (features,))] if step.bias else [])]
        return [("lower", triangle), ("upper", triangle), *vectors]
    if isinstance(step, Scale):
        return [("scale", (features,)), *([("shift", (features,))] if step.shift else [])]
    if isinstance(step, Permutation):
        return []
    every, inputs = [], len(step.read())
    for layer, units in zip(step.layers, step.widths()[1:]):
        columns = {"weight": inputs + context * layer.joint, "term_weight": context, "gate_weight": context}
        every += [(name, (units, columns[name]) if name in columns else (units,)) for name in layer.tensors]
        inputs = units
    return every


def _bins(count, tails="identity"):
    return 3 * count - 1 if tails == "identity" else 3 * count + 1 if tails == "none" else 3 * count


EVERYTHING = (
    autoregressive(3, context=True, gated=True, residual=True, depth=3),
    Permutation((2, 0, 1)),
    LU(1e-3),
    coupling(3, context=True, joint=True, gated=True, interleaved=False),
    Scale(),
    autoregressive(3, SPLINE, _bins(8), inverse=True, order=(2, 1, 3)),
    Scale(logarithmic=True, inverse=True),
    Linear(orthogonal=True),
    LU(1e-3, bias=False, inverse=True),
)
CASES = {
    "no steps": Case(3, ()),
    "scale": Case(3, (Scale(), Scale(logarithmic=True), Scale(shift=False))),
    "lu": Case(5, (LU(1e-3), LU(1e-2, bias=False))),
    "linear": Case(5, (Linear(), Linear(inverse=True), Linear(True), Linear(True, inverse=True))),
    "linear wide": Case(37, (Linear(True), Linear(inverse=True)), batch=33),
    "lu wide": Case(37, (LU(1e-3), LU(1e-3, inverse=True)), batch=33),
    "one feature": Case(1, (Scale(), LU(1e-3), autoregressive(1), Permutation((0,)))),
    "autoregressive": Case(5, (autoregressive(5), Permutation((4, 3, 2, 1, 0)), autoregressive(5)), base="normal"),
    "no hidden layer": Case(4, (autoregressive(4, depth=0),)),
    "spline": Case(4, (autoregressive(4, SPLINE, _bins(8)), coupling(4, SPLINE, _bins(5), residual=True, depth=3))),
    "spline circular": Case(3, (coupling(3, SplineElement(3.0, "circular"), _bins(4, "circular")),)),
    "additive": Case(4, (coupling(4, ADDITIVE, 1), coupling(4, ADDITIVE, 1, first=1, bare=True))),
    "coupling": Case(6, tuple(coupling(6, first=i % 2, residual=True, depth=3) for i in range(3)), base="normal"),
    "coupling wide": Case(
        9, (coupling(9, AFFINE, width=70, depth=3), coupling(9, AFFINE, width=33, first=1)), batch=65
    ),
    "context": Case(4, (autoregressive(4, context=True), coupling(4, context=True, joint=True)), context=3),
    "gates": Case(4, (coupling(4, context=True, joint=True, gated=True, residual=True, depth=5),), context=10),
    "activations": Case(
        3, tuple(autoregressive(3, activation=a) for a in NAMES if a not in ("tanh", "identity"))
    ),
    "everything": Case(3, EVERYTHING, context=2),
    "everything normal": Case(3, EVERYTHING, context=2, base="normal", batch=200),
    # More than are kept from the forward to the backward.
    "many samples": Case(
        9, (coupling(9, AFFINE, width=70, depth=3), coupling(9, AFFINE, width=33, first=1)), batch=4000
    ),
    "one sample": Case(3, EVERYTHING, context=2, batch=1),
    "no sample": Case(3, EVERYTHING, context=2, batch=0),
}  # fmt: skip


def drawn(seed):
    """A case of random steps, widths, contexts and batch."""
    draw = random.Random(seed)
    features, context = draw.randint(2, 9), draw.choice((0, 0, 1, 4))

    def step():
        inverse, kind = draw.random() < 0.3, draw.randrange(7)
        if kind == 0:
            return LU(1e-3, draw.random() < 0.5, inverse)
        if kind == 1:
            return Permutation(tuple(draw.sample(range(features), features)), inverse)
        if kind == 2:
            return Scale(draw.random() < 0.5, draw.random() < 0.5, inverse)
        if kind == 3:
            return Linear(draw.random() < 0.5, inverse)
        element, parameters = draw.choice(
            ((AFFINE, 2), (ADDITIVE, 1), (SPLINE, _bins(8)), (SPLINE, _bins(10)), (SPLINE, _bins(3)))
        )
        make = coupling if kind > 4 else autoregressive
        network = {
            "width": draw.choice((1, 7, 16, 40)), "depth": draw.randint(0, 4),
            "context": context > 0 and draw.random() < 0.7, "gated": draw.random() < 0.5,
            "residual": draw.random() < 0.5, "bare": draw.random() < 0.2,
            "activation": draw.choice(("relu", "tanh", "elu", "gelu")),
        }  # fmt: skip
        if make is coupling:
            network |= {"joint": draw.random() < 0.5, "interleaved": draw.random() < 0.5, "first": draw.randint(0, 1)}
        return make(features, element, parameters, inverse=inverse, **network)

    steps = tuple(step() for _ in range(draw.randint(1, 5)))
    return Case(features, steps, context, draw.choice((None, "normal")), draw.choice((1, 15, 16, 33, 63)))


def evaluate(case, tensors, backend, inverse=False):
    """The results and, by fixed random cotangents, the gradients of all tensors, by name."""
    tensors = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    x, context, *others = (
        tensors["x"],
        tensors.get("context"),
        *(tensor for name, tensor in tensors.items() if name not in ("x", "context")),
    )
    with flowkern.backend(backend):
        y, l = flow_program(x, case.program(), others, context, inverse)
        generator = generator_of(7)
        loss = sum((v * torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v)).sum() for v in (y, l))
        grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
    gradients = {f"grad {name}": grad for name, grad in zip(tensors, grads)}
    return {name: value.detach() for name, value in ({"y": y, "l": l} | gradients).items()}


def check(case, backend, dtype, inverse=False, seed=0):
    """Every result of backend within TOLERANCES units of the float64 reference."""
    tensors = case.tensors(dtype, seed)
    want = evaluate(case, {name: tensor.double() for name, tensor in tensors.items()}, "reference", inverse)
    of_reference = lost(lambda given: evaluate(case, given, "reference", inverse), tensors, want, samples=8)
    for name, value in evaluate(case, tensors, backend, inverse).items():
        assert value.dtype == dtype and value.shape == want[name].shape, name
        if value.numel() == 0:
            continue
        units = in_largest(value, want[name], of_reference[name])
        assert_within(units, TOLERANCES[dtype], name)
