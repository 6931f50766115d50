"""The steps of a flow, and a flow as a list of them: structure alone, no parameter.

A step describes which tensors it takes, in order; their values come with every call, so that they are
never stale. `Program` turns steps into the numbers that kernels read.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from flowkern.ops._activation import Activation
from flowkern.ops._masked_autoregressive.conditioner import Degrees
from flowkern.ops._masked_autoregressive.element import AffineElement, SplineElement

# Codes of the steps, shared with csrc/flow_program/torch.h
CONDITIONED, LU_LINEAR, PERMUTATION, SCALE, LINEAR = range(5)
LAYER_TENSORS = ("weight", "bias", "gain", "offset", "term_weight", "term_bias", "gate_weight", "gate_bias")


class ConditionerLayer(NamedTuple):
    """One layer: z = gate·(W u + b + e(C c + d)) + z_skip, u' = activation(gain·z + offset).

    u is what the layer before gives, or the features; c is the context.

    tensors: which of `LAYER_TENSORS` it takes, in their order: W (units, inputs), b, gain and offset
        (units,), C (units, context), d (units,), C' and d'.
    activation: an `Activation`, or its name.
    skip: the number of an earlier layer of the same width, whose z is added; None for none.
    term: the activation e of the context's term; None: the layer has none.
    joint: whether C is the last columns of W, where the library concatenates features and context.
    gate: the activation g of gate = g(C' c + d'); None: the gate is 1.
    """

    tensors: tuple = ("weight", "bias")
    activation: Activation | str = "identity"
    skip: int | None = None
    term: Activation | str | None = None
    joint: bool = False
    gate: Activation | str | None = None


class Conditioned(NamedTuple):
    """y_i = h(x_i; p_i(what i may see, c)): an autoregressive transform, or a coupling, its case of two ranks.

    Tensors: those of each layer.

    layers: the conditioner's, each a `ConditionerLayer`; the last gives the parameters.
    degrees: `Degrees` of the features and of the hidden layers' units.
    element: h, an `AffineElement` or a `SplineElement`.
    parameters: P, how many there are for each transformed feature.
    outputs: the transformed features in the order of the network's outputs, the others, which must be
        those of the lowest degree, stay as they are; None: all, in their order.
    inputs: the features that the columns of the first weight belong to; None: all, in their order.
    interleaved: whether a feature's parameters stand next to each other (else parameter 0 of all
        features comes first, then parameter 1, …).
    inverse: whether the flow's forward direction is h⁻¹.
    """

    layers: tuple
    degrees: Degrees
    element: AffineElement | SplineElement
    parameters: int
    outputs: tuple | None = None
    inputs: tuple | None = None
    interleaved: bool = True
    inverse: bool = False

    @property
    def tensors(self) -> int:
        """How many tensors the step takes."""
        return sum(len(layer.tensors) for layer in self.layers)

    def transformed(self) -> tuple[int, ...]:
        """The transformed features in the order of the network's outputs."""
        return tuple(range(self.degrees.sizes[0])) if self.outputs is None else self.outputs

    def read(self) -> tuple[int, ...]:
        """The features in the order of the first weight's columns."""
        return tuple(range(self.degrees.sizes[0])) if self.inputs is None else self.inputs

    def widths(self) -> tuple[int, ...]:
        """The widths of the features, of the hidden layers and of the outputs."""
        return (*self.degrees.sizes, self.parameters * len(self.transformed()))

    def number(self, feature: int, parameter: int) -> int:
        """Which output is that parameter of the transformed feature with that number."""
        if self.interleaved:
            return feature * self.parameters + parameter
        return parameter * len(self.transformed()) + feature


class LU(NamedTuple):
    """y = L U x + b with L unit lower and U upper triangular, U_ii = softplus(u_i) + epsilon.

    Tensors: the strict lower triangle of L and the strict upper one of U, row by row (D(D − 1)/2,),
    u (D,) and, with a bias, b (D,).
    """

    epsilon: float
    bias: bool = True
    inverse: bool = False

    @property
    def tensors(self) -> int:
        """How many tensors the step takes."""
        return 3 + self.bias


class Permutation(NamedTuple):
    """y_i = x_{order[i]}. No tensors."""

    order: tuple
    inverse: bool = False

    @property
    def tensors(self) -> int:
        """How many tensors the step takes."""
        return 0


class Scale(NamedTuple):
    """y = s·x + b with s = scale, or exp(scale) if logarithmic. Tensors: scale and, with a shift, b (D,)."""

    logarithmic: bool = False
    shift: bool = True
    inverse: bool = False

    @property
    def tensors(self) -> int:
        """How many tensors the step takes."""
        return 1 + self.shift


class Linear(NamedTuple):
    """y = W x. Tensors: W and, unless it is orthogonal, W⁻¹ (D, D) and log|det W| (1,).

    orthogonal: whether W⁻¹ = Wᵀ, and so log|det W| = 0.
    """

    orthogonal: bool = False
    inverse: bool = False

    @property
    def tensors(self) -> int:
        """How many tensors the step takes."""
        return 1 if self.orthogonal else 3


class Program:
    """Steps in the order in which the forward direction takes them, for D features and a context.

    Args:
        features: D.
        steps: `Conditioned`, `LU`, `Permutation`, `Scale`, `Linear`.
        context: the number of context features, 0 for none.
        base: None, or "normal": the forward's second result is then the log-density of x, where y has
            a standard normal one, instead of the log-determinant.

    Attributes:
        tensors: how many tensors its steps take; weights: how many numbers their dense weights hold;
            widest: the most units of a hidden layer.

    Raises:
        ValueError: a step does not fit the features, or itself.
    """

    def __init__(
        self,
        features: int,
        steps: Sequence[Conditioned | LU | Permutation | Scale | Linear],
        context: int = 0,
        base: str | None = None,
    ) -> None:
        self.features, self.steps, self.context, self.base = features, tuple(steps), context, base
        if base not in (None, "normal"):
            raise ValueError(f'base: expected None or "normal", got {base!r}')
        for i, step in enumerate(self.steps):
            reason = _unfit(step, features, context)
            if reason:
                raise ValueError(f"steps[{i}]: {reason}")
        self.tensors = sum(step.tensors for step in self.steps)
        widths = [step.widths() for step in self.steps if isinstance(step, Conditioned)]
        self.weights = sum(a * b for each in widths for a, b in itertools.pairwise(each))
        self.widest = max((width for each in widths for width in each[1:-1]), default=0)
        whole, real = [features, context, len(self.steps), int(base == "normal")], []
        for step in self.steps:
            numbers, more = _ENCODE[type(step)](step)
            whole += numbers
            real += more
        self.code = torch.tensor(whole, dtype=torch.int64, device="cpu")
        self.numbers = torch.tensor(real, dtype=torch.float64, device="cpu")

    def made_of(self) -> tuple:
        """The arguments that make a program like it."""
        return self.features, self.steps, self.context, self.base

    def slices(self) -> list[tuple]:
        """(step, where its tensors begin, where they end) for each step."""
        ends = list(itertools.accumulate(step.tensors for step in self.steps))
        return list(zip(self.steps, (0, *ends), ends))


def _unfit(step: Any, features: int, context: int) -> str | None:
    """Why the step does not fit a program with this number of features, or None."""
    if isinstance(step, Permutation):
        if sorted(step.order) != list(range(features)):
            return f"order: expected each of 0 … {features - 1} once, got {step.order}"
        return None
    if isinstance(step, (LU, Scale, Linear)):
        return None
    if not isinstance(step, Conditioned):
        return f"expected Conditioned, LU, Permutation, Scale or Linear, got {type(step).__name__}"
    return _unfit_network(step, features, context) or _unfit_features(step)


def _unfit_network(step: Conditioned, features: int, context: int) -> str | None:
    sizes = step.degrees.sizes
    if sizes[0] != features:
        return f"degrees: expected {features} features, got {sizes[0]}"
    if len(step.layers) != len(sizes):
        return f"layers: expected {len(sizes)}, one more than degrees has hidden layers, got {len(step.layers)}"
    for k, layer in enumerate(step.layers):
        reason = _unfit_tensors(layer)
        if reason:
            return f"layers[{k}].tensors: {reason}"
        if not context and (layer.term is not None or layer.gate is not None):
            return f"layers[{k}]: it has a term of the context, but the program has no context"
        if layer.joint and (k > 0 or layer.term is None):
            return f"layers[{k}]: only the first layer's term can be joint"
        if layer.skip is not None and not step.degrees.may_skip(layer.skip, k):
            return f"layers[{k}].skip: a unit of that layer has a higher degree than the one it is added to"
    last = step.layers[-1]
    if last.skip is not None or last.gate is not None or Activation.of(last.activation).kind != "identity":
        return "layers: the last takes no activation, skip or gate"
    return None


def _unfit_tensors(layer: ConditionerLayer) -> Any:
    if layer.tensors != tuple(name for name in LAYER_TENSORS if name in layer.tensors):
        return f"expected some of {', '.join(LAYER_TENSORS)}, in this order, got {layer.tensors}"
    needed = {"weight"}
    needed |= {"gate_weight"} if layer.gate is not None else set()
    needed |= {"term_weight"} if layer.term is not None and not layer.joint else set()
    optional = {"bias", "gain", "offset"}
    optional |= {"gate_bias"} if layer.gate is not None else set()
    optional |= {"term_bias"} if layer.term is not None else set()
    missing, unused = needed - set(layer.tensors), set(layer.tensors) - needed - optional
    if missing or unused:
        return f"missing: {sorted(missing)}; not used: {sorted(unused)}"
    return None


def _unfit_features(step: Conditioned) -> str | None:
    outputs = step.transformed()
    try:
        step.element.parameters(step.parameters * len(outputs), len(outputs))
    except ValueError as error:
        return f"parameters: {error}"
    ranks = step.degrees.on("cpu")[2][: step.degrees.sizes[0]].tolist()
    if step.outputs is not None:
        passive = set(range(len(ranks))) - set(outputs)
        if len(set(outputs)) != len(outputs) or passive != {f for f, rank in enumerate(ranks) if rank == 1}:
            return "outputs: expected each feature but those of the lowest degree once"
    seen = {f for f, rank in enumerate(ranks) if rank < step.degrees.levels}
    if len(set(step.read())) != len(step.read()) or not seen <= set(step.read()):
        return "inputs: expected each feature that a unit sees once"
    return None


def _of_conditioned(step: Any) -> tuple[list[int], list[float]]:
    order, ends, ranks = (t.tolist() for t in step.degrees.on("cpu"))
    code, kinds, constants = step.element.numbers()
    features = step.degrees.sizes[0]
    outputs = step.transformed()
    passive, levels = features - len(outputs), step.degrees.levels
    whole = [CONDITIONED, int(step.inverse), code, *kinds, len(constants)]
    whole += [len(step.layers), levels, passive, step.parameters, int(step.layers[0].joint)]
    real = list(constants)
    for layer, units in zip(step.layers, step.widths()[1:]):
        kinds = [_kind(layer.activation), _kind(layer.term), _kind(layer.gate)]
        takes = sum(1 << i for i, name in enumerate(LAYER_TENSORS) if name in layer.tensors)
        whole += [units, takes, -1 if layer.skip is None else layer.skip, *(code for code, _ in kinds)]
        real += [slope for _, slope in kinds]
    place = {feature: number for number, feature in enumerate(outputs)}
    column = {feature: number for number, feature in enumerate(step.read())}
    whole += order
    whole += [column.get(f, -1) for f in order[:features]]
    whole += [step.number(place[f], p) for f in order[passive:features] for p in range(step.parameters)]
    whole += itertools.chain.from_iterable(ends)
    return whole, real


def _kind(activation: Any) -> tuple[int, float]:
    """(code, slope) of an activation, −1 for none."""
    return (-1, 0.0) if activation is None else Activation.of(activation).numbers()


_ENCODE = {
    Conditioned: _of_conditioned,
    LU: lambda step: ([LU_LINEAR, int(step.inverse), int(step.bias)], [step.epsilon]),
    Permutation: lambda step: ([PERMUTATION, int(step.inverse), *step.order], []),
    Scale: lambda step: ([SCALE, int(step.inverse), int(step.logarithmic), int(step.shift)], []),
    Linear: lambda step: ([LINEAR, int(step.inverse), int(step.orthogonal)], []),
}
