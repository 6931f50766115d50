"""Small calls of the op, by which `python -m flowkern check` tests an installation."""

import torch

from flowkern.ops._neural_ode import FieldLayer, neural_ode
from flowkern.ops._problem import FEATURES, ROWS, Draw, Problem, layers


def problems(draw: Draw) -> list[Problem]:
    def call(
        y: torch.Tensor, t: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        field = [FieldLayer(w1, b1, "tanh"), FieldLayer(w2, b2)]
        solution = neural_ode(y, field, t, method="rk4", steps=2, trace="exact")
        return tuple(tensor for tensor in solution if tensor is not None)

    y, *tensors = draw(ROWS, FEATURES), *layers(draw, FEATURES, FEATURES)
    times = {"forward": (0.0, 0.4, 1.0), "inverse": (1.0, 0.4, 0.0)}
    return [
        Problem("neural_ode", name, (y, torch.tensor(t, dtype=torch.float64), *tensors), call)
        for name, t in times.items()
    ]
