"""Solves in many surroundings, against steps written out in plain PyTorch."""

import pytest
import torch

import flowkern
from tests.ode.fields import Field
from tests.surroundings import SURROUNDINGS, Case


class Plain(torch.nn.Module):
    """Steps of the 3/8 rule in plain PyTorch; many of them are an accurate solution."""

    def __init__(self, steps):
        super().__init__()
        self.field, self.steps = Field(torch.float64), steps

    def forward(self, y):
        h = 1 / self.steps
        for n in range(self.steps):
            t = torch.tensor(n * h, dtype=y.dtype.to_real())
            a = self.field(t, y)
            b = self.field(t + h / 3, y + h / 3 * a)
            c = self.field(t + 2 * h / 3, y + h * (b - a / 3))
            d = self.field(t + h, y + h * (a - b + c))
            y = y + h / 8 * (a + 3 * b + 3 * c + d)
        return y


class Solves(torch.nn.Module):
    def __init__(self, solve, **call):
        super().__init__()
        self.field, self.solve, self.call = Field(torch.float64), solve, call

    def forward(self, y):
        precise = y.dtype in (torch.float64, torch.complex128)
        tolerances = dict.fromkeys(("rtol", "atol"), 1e-9 if precise else 1e-2)
        return self.solve(self.field, y, [0.0, 1.0], **tolerances, **self.call)[-1]


def inputs(rows):
    return (torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows), dtype=torch.float64),)


ADAPTIVE = {
    "vmap": (NotImplementedError, "vmap: the steps depend on values that torch.func.vmap maps over"),
    "ensemble": (NotImplementedError, "vmap: the steps depend on values that torch.func.vmap maps over"),
    "jit trace": (NotImplementedError, "method: the steps of dopri5 depend on values"),
    "export": (NotImplementedError, "method: the steps of dopri5 depend on values"),
}
ADJOINT = dict.fromkeys(
    ("jacrev", "jacfwd", "vmap", "ensemble", "forward mode"),
    (NotImplementedError, "odeint_adjoint: torch.func's transforms and forward mode do not see it"),
)


def case(solve, steps, refuses={}, rtol=1e-9, **call):  # noqa: B006
    return Case(lambda: Solves(solve, **call), lambda: Plain(steps), inputs, refuses, rtol)


CASES = {
    "odeint rk4": case(flowkern.odeint, 2, method="rk4", options={"step_size": 0.5}),
    "odeint dopri5": case(flowkern.odeint, 64, ADAPTIVE, 1e-6),
    "odeint per_sample": case(flowkern.odeint, 64, ADAPTIVE, 1e-6, options={"per_sample": True}),
    "adjoint rk4": case(flowkern.odeint_adjoint, 12, ADJOINT, 1e-3, method="rk4", options={"step_size": 1 / 12}),
    "adjoint dopri5": case(flowkern.odeint_adjoint, 64, ADAPTIVE | ADJOINT, 1e-6),
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("case", CASES)
def test_surroundings(case, surrounding):
    CASES[case].check(surrounding)


def test_steps_and_checks_that_depend_on_mapped_values_are_refused():
    field, y0, ends = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)

    def until(end, y, **options):
        return flowkern.odeint(field, y, torch.stack((0 * end, end)), method="rk4", options=options)[-1]

    with pytest.raises(NotImplementedError, match="vmap: the steps depend on values that torch.func.vmap maps over"):
        torch.func.vmap(lambda end, y: until(end, y, step_size=0.1))(ends, y0)
    with pytest.raises(NotImplementedError, match="on_failure: the ends are values that torch.func.vmap maps over"):
        torch.func.vmap(lambda end, y: until(end, y, on_failure="raise"))(ends, y0)
