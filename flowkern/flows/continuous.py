"""Continuous normalizing flows, trained by likelihood or by flow matching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flowkern.distributions import ContinuousFlowDistribution
from flowkern.flows.flow import Flow
from flowkern.nn import VectorField
from flowkern.nn._arguments import check_context
from flowkern.ops import Activation
from flowkern.transforms import NeuralODE


class CNF(Flow):
    """Continuous normalizing flow: noise at t_noise follows dx/dt = f(t, x; context) to data at t_data.

    log p(x) = log N(x(t_noise); 0, I) + ∫ Tr ∂f/∂x dt from t_data to t_noise, in one solve with its
    state. The field starts as zero, so a new flow is the standard normal.

    A field that flow matching has trained makes the same flow: `CNF(field=field)` gives its samples
    and its likelihood, with gradients.

    Args:
        features: number of features D.
        context: number of context features; 0 for none.
        hidden_features, activation, time: as for `nn.VectorField`.
        field: an `nn.VectorField`, in place of all arguments before.
        method, steps, trace, noise, seed, gradient, checkpoint, times, on_failure: as for
            `transforms.NeuralODE`.
        base: as for `Flow`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Chen et al., Neural Ordinary Differential Equations (2018); Grathwohl et al., FFJORD (2019).

    Example:
        >>> import torch, flowkern
        >>> flow = flowkern.flows.CNF(3, steps=4)
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int | None = None,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation | str = "tanh",
        time: str = "concatenate",
        field: nn.Module | None = None,
        method: str = "rk4",
        steps: int = 16,
        trace: str = "exact",
        noise: str = "rademacher",
        seed: int | None = None,
        gradient: str = "discrete",
        checkpoint: int = 1,
        times: tuple[float, float] = (0.0, 1.0),
        on_failure: str | None = None,
        base: nn.Module | None = None,
    ) -> None:
        velocity: Any = field
        if field is None:
            velocity = VectorField(features, context, hidden_features, activation, time)  # type: ignore[arg-type]
        transform = NeuralODE(velocity, method, steps, trace, noise, seed, gradient, checkpoint, times, on_failure)
        super().__init__(transform, velocity.features, velocity.context, base)
        self.origin: torch.Tensor = self.origin.to(next(velocity.parameters()))

    def forward(self, context: torch.Tensor | None = None) -> ContinuousFlowDistribution:
        """The `ContinuousFlowDistribution` given context (…, context); its batch_shape is (…,)."""
        check_context(context, self.context)
        return ContinuousFlowDistribution(self.transform, self._base_given(context), context)

    def trajectory(self, x: torch.Tensor, t: Any, context: torch.Tensor | None = None) -> torch.Tensor:
        """The states (T, …, D) at times t, a sequence of numbers in order, of x (…, D) at t[0].

        From noise at t_noise to data at t_data the flow samples; any other way is as good. No step is
        longer than those of the flow.
        """
        return self.transform.trajectory(x, t, context)
