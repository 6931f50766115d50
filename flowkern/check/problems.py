"""One small, well-conditioned call of each op in each direction, for all that an installation can run."""

from typing import NamedTuple

import torch

from flowkern import ops
from flowkern.ops import _flow_program as flow_program

ROWS, FEATURES, UNITS = 37, 6, 10


class Problem(NamedTuple):
    """A call of an op: what it computes from float64 tensors, all of which have gradients."""

    op: str
    direction: str
    tensors: tuple
    call: object


def all_problems():
    """All problems; the same numbers each time."""
    draw = _normal(torch.Generator().manual_seed(0))
    return [
        *_coupling(draw),
        *_spline(draw),
        *_masked(draw),
        *_neural_ode(draw),
        _stage(draw),
        _error(draw),
        _path(draw),
        *_program(draw),
    ]


def _normal(generator):
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _both(op, tensors, call):
    """A problem for each direction of an op whose call takes `inverse`."""

    def direction(inverse):
        return lambda *tensors: call(*tensors, inverse=inverse)

    return [Problem(op, name, tensors, direction(name == "inverse")) for name in ("forward", "inverse")]


def _coupling(draw):
    def call(x, params, inverse):
        index = torch.arange(0, FEATURES, 2, device=x.device)
        return ops.affine_coupling(x, params, index=index, scale_map="sigmoid", inverse=inverse)

    return _both("affine_coupling", (draw(ROWS, FEATURES), draw(ROWS, FEATURES // 2, 2)), call)


def _spline(draw):
    def call(x, params, inverse):
        mask = torch.arange(FEATURES, device=x.device) % 2 == 0
        return ops.rational_quadratic_spline(x, params, mask=mask, bound=3.0, inverse=inverse)

    tensors = draw(ROWS, FEATURES), draw(ROWS, FEATURES // 2, 3 * 8 - 1) / 2
    return _both("rational_quadratic_spline", tensors, call)


def _masked(draw):
    element = ops.AffineElement("softplus", True)
    degrees = ops.Degrees(list(range(1, FEATURES + 1)), [[i % (FEATURES + 1) for i in range(UNITS)]])

    def call(x, *tensors, inverse):
        layers = [ops.MaskedLayer(*tensors[:2], "tanh"), ops.MaskedLayer(*tensors[2:], "identity")]
        return ops.masked_autoregressive(x, layers, degrees, element, inverse=inverse)

    return _both("masked_autoregressive", (draw(ROWS, FEATURES), *_layers(draw, FEATURES, 2 * FEATURES)), call)


def _layers(draw, inputs, outputs):
    """Weights and biases of a network with one hidden layer."""
    return (draw(UNITS, inputs) / inputs**0.5, draw(UNITS) / 3, draw(outputs, UNITS) / UNITS**0.5, draw(outputs) / 3)


def _neural_ode(draw):
    def call(y, t, *tensors):
        layers = [ops.FieldLayer(*tensors[:2], "tanh"), ops.FieldLayer(*tensors[2:], "identity")]
        solution = ops.neural_ode(y, layers, t, method="rk4", steps=2, trace="exact")
        return tuple(tensor for tensor in solution if tensor is not None)

    tensors = draw(ROWS, FEATURES), *_layers(draw, FEATURES, FEATURES)
    times = {"forward": (0.0, 0.4, 1.0), "inverse": (1.0, 0.4, 0.0)}
    return [
        Problem("neural_ode", name, (tensors[0], torch.tensor(t, dtype=torch.float64), *tensors[1:]), call)
        for name, t in times.items()
    ]


def _stage(draw):
    tensors = draw(ROWS, FEATURES), draw(3), *(draw(ROWS, FEATURES) for _ in range(3))
    return Problem(
        "runge_kutta_stage", "forward", tensors, lambda y, weights, *k: (ops.runge_kutta_stage(y, k, weights),)
    )


def _error(draw):
    tensors = draw(ROWS, FEATURES), draw(ROWS, FEATURES), draw(3), *(draw(ROWS, FEATURES) for _ in range(3))
    return Problem(
        "runge_kutta_error",
        "forward",
        tensors,
        lambda y0, y1, weights, *k: (ops.runge_kutta_error(y0, y1, k, weights, 1e-1, 1e-2),),
    )


def _path(draw):
    def call(x0, x1, t, noise):
        return ops.probability_path(x0, x1, t, path="schroedinger_bridge", sigma=0.3, noise=noise.detach())[1:]

    tensors = draw(ROWS, FEATURES), draw(ROWS, FEATURES), draw(ROWS).sigmoid(), draw(ROWS, FEATURES)
    return Problem("probability_path", "forward", tensors, call)


def _program(draw):
    """A flow of one step of each kind."""
    degrees = ops.Degrees(list(range(1, FEATURES + 1)), [[i % (FEATURES + 1) for i in range(UNITS)]])
    layers = (
        flow_program.ConditionerLayer(activation="tanh"),
        flow_program.ConditionerLayer(activation="identity"),
    )
    element = ops.AffineElement("softplus", True)
    steps = (
        flow_program.Conditioned(layers, degrees, element, 2),
        flow_program.LU(1e-3),
        flow_program.Permutation((2, 0, 1, 5, 4, 3)),
        flow_program.Scale(logarithmic=True),
    )
    program = flow_program.Program(FEATURES, steps)
    triangle = FEATURES * (FEATURES - 1) // 2
    linear = draw(triangle) / 5, draw(triangle) / 5, draw(FEATURES), draw(FEATURES), draw(FEATURES) / 3, draw(FEATURES)
    tensors = draw(ROWS, FEATURES), *_layers(draw, FEATURES, 2 * FEATURES), *linear

    def call(x, *tensors, inverse):
        return flow_program.flow_program(x, program, tensors, inverse=inverse)

    return _both("flow_program", tensors, call)
