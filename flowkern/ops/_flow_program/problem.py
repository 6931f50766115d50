"""Small calls of the op, by which `python -m flowkern check` tests an installation."""

import torch

from flowkern.ops._flow_program import LU, Conditioned, ConditionerLayer, Permutation, Program, Scale, flow_program
from flowkern.ops._masked_autoregressive import AffineElement, Degrees
from flowkern.ops._problem import FEATURES, ROWS, UNITS, Draw, Problem, both, layers


def problems(draw: Draw) -> list[Problem]:
    """A flow of one step of each kind."""
    degrees = Degrees(list(range(1, FEATURES + 1)), [[i % (FEATURES + 1) for i in range(UNITS)]])
    network = ConditionerLayer(activation="tanh"), ConditionerLayer(activation="identity")
    steps = (
        Conditioned(network, degrees, AffineElement("softplus", True), 2),
        LU(1e-3),
        Permutation((2, 0, 1, 5, 4, 3)),
        Scale(logarithmic=True),
    )
    program = Program(FEATURES, steps)
    triangle = FEATURES * (FEATURES - 1) // 2
    linear = draw(triangle) / 5, draw(triangle) / 5, draw(FEATURES), draw(FEATURES), draw(FEATURES) / 3, draw(FEATURES)
    tensors = draw(ROWS, FEATURES), *layers(draw, FEATURES, 2 * FEATURES), *linear

    def call(x: torch.Tensor, *tensors: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, ...]:
        return flow_program(x, program, tensors, inverse=inverse)

    return both("flow_program", tensors, call)
