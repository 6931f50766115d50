"""The samplers of flow_matching 1.0 and torchdyn 1.0: the packages where they are installed.

They are no dependencies of the tests (one has a licence for non-commercial use only, the other asks for a
dozen packages), so elsewhere these classes stand in, with the same calls, names and attributes.
"""

import torch
from torch import nn
from torchdiffeq import odeint

try:
    from flow_matching.solver import ODESolver
except ImportError:

    class ODESolver(nn.Module):
        __module__ = "flow_matching.solver.ode_solver"

        def __init__(self, velocity_model):
            super().__init__()
            self.velocity_model = velocity_model

        def sample(
            self, x_init, step_size, method="euler", atol=1e-5, rtol=1e-5,
            time_grid=torch.tensor([0.0, 1.0]), return_intermediates=False, enable_grad=False, **model_extras,
        ):  # fmt: skip
            options = {} if step_size is None else {"step_size": step_size}
            with torch.set_grad_enabled(enable_grad):
                states = odeint(
                    lambda t, x: self.velocity_model(x=x, t=t, **model_extras), x_init, time_grid,
                    method=method, options=options, atol=atol, rtol=rtol,
                )  # fmt: skip
            return states if return_intermediates else states[-1]

        def compute_likelihood(
            self, x_1, log_p0, step_size, method="euler", atol=1e-5, rtol=1e-5,
            time_grid=torch.tensor([1.0, 0.0]), return_intermediates=False, exact_divergence=False,
            enable_grad=False, **model_extras,
        ):  # fmt: skip
            assert time_grid[0] == 1.0 and time_grid[-1] == 0.0, "Time grid must start at 1.0 and end at 0.0"
            features = x_1.shape[1]
            z = torch.eye(features).unsqueeze(1).to(x_1)
            if not exact_divergence:
                z = ((torch.randn_like(x_1) < 0) * 2.0 - 1.0).unsqueeze(0)

            def dynamics(t, state):
                with torch.enable_grad():
                    x = state[0].detach().requires_grad_()
                    u = self.velocity_model(x=x, t=t, **model_extras)
                    rows = (torch.autograd.grad(u, x, v.expand_as(u), retain_graph=True)[0] * v for v in z)
                return u.detach(), sum(row.sum(1) for row in rows)

            options = {} if step_size is None else {"step_size": step_size}
            start = x_1, torch.zeros(len(x_1), dtype=x_1.dtype)
            states, sums = odeint(dynamics, start, time_grid, method=method, options=options, atol=atol, rtol=rtol)
            return states if return_intermediates else states[-1], log_p0(states[-1]) + sums[-1]


try:
    from torchdyn.core import NeuralODE
except ImportError:

    class NeuralODE(nn.Module):
        __module__ = "torchdyn.core.neuralde"

        def __init__(
            self, vector_field, solver="tsit5", order=1, atol=1e-3, rtol=1e-3, sensitivity="autograd",
            return_t_eval=True,
        ):  # fmt: skip
            super().__init__()
            self.vf, self.solver, self.order, self.atol, self.rtol = vector_field, solver, order, atol, rtol
            self.sensitivity, self.integral_loss, self.t_span = sensitivity, None, None
            self.return_t_eval = return_t_eval

        def trajectory(self, x, t_span):
            return odeint(self.vf, x, t_span.to(x), atol=self.atol, rtol=self.rtol, method="dopri5")

        def forward(self, x, t_span=None, save_at=(), args={}):  # noqa: B006  (as torchdyn has it)
            t_span = torch.linspace(0, 1, 2) if t_span is None else t_span
            states = self.trajectory(x, t_span)
            return (t_span, states) if self.return_t_eval else states


class Swish(nn.Module):
    """An activation as flow_matching's first example writes it."""

    def forward(self, x):
        return torch.sigmoid(x) * x


class Velocity(nn.Module):
    """The velocity model of that example."""

    def __init__(self, features=2, activation=Swish):
        super().__init__()
        self.features = features
        self.main = nn.Sequential(
            nn.Linear(features + 1, 16), activation(), nn.Linear(16, 12), activation(), nn.Linear(12, features)
        )

    def forward(self, x, t, shift=None):
        shape, x = x.shape, x.reshape(-1, self.features)
        t = t.reshape(-1, 1).to(x).expand(len(x), 1)
        velocity = self.main(torch.cat([x, t], dim=1)).reshape(shape)
        return velocity if shift is None else velocity + shift


class Wrapped(nn.Module):
    """Such a model inside another one, as its ModelWrapper has it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t, **extras):
        return self.model(x, t, **extras)


class MLP(nn.Module):
    """torchcfm's MLP, time_varying; its activation is SELU."""

    def __init__(self, dim, w=16, activation=nn.SELU):
        super().__init__()
        self.time_varying = True
        widths = (dim + 1, w, w, w, dim)
        parts = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), activation())]
        self.net = nn.Sequential(*parts[:-1])

    def forward(self, x):
        return self.net(x)


class torch_wrapper(nn.Module):  # noqa: N801  (torchcfm's name)
    """What torchcfm puts around it for torchdyn."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, t, x, *args, **kwargs):
        return self.model(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))
