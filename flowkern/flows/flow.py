"""A flow: a transform from data to noise, read as a distribution."""

from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from flowkern.bases import StandardNormal
from flowkern.distributions import FlowDistribution
from flowkern.nn._arguments import check_context, check_count
from flowkern.nn._module import Module


class Flow(Module):
    """`flow(context)` is p(x | context) = p_base(f(x; context) | context)·|det ∂f/∂x|.

    Args:
        transform: f, a module as in `flowkern.transforms`, from data to noise.
        features: number of features D of x.
        context: number of context features; 0 for none.
        base: a module of `flowkern.bases`, or any other whose call with the context gives the distribution of the
            noise; None for the standard normal distribution.

    Raises:
        TypeError, ValueError: a count is not an integer in range; at the call, the context is
            missing, not expected, or of the wrong shape or dtype.

    Source: Papamakarios et al., Normalizing Flows for Probabilistic Modeling and Inference (2021).

    Example:
        >>> import torch
        >>> from flowkern import flows, transforms
        >>> flow = flows.Flow(transforms.Compose(transforms.LULinear(3), transforms.SplineCoupling(3)), 3)
        >>> flow().sample((4,)).shape
        torch.Size([4, 3])
    """

    def __init__(self, transform: nn.Module, features: int, context: int = 0, base: nn.Module | None = None) -> None:
        super().__init__()
        check_count("features", features, 1)
        check_count("context", context, 0)
        if not isinstance(base, nn.Module | None):
            raise TypeError(f"base: expected a torch.nn.Module, got {type(base).__name__}")
        self.transform: Any = transform
        self.context, self.base = context, base
        self.origin: torch.Tensor
        # The mean of standard normal noise; it also says which dtype and device to draw that with.
        self.register_buffer("origin", torch.zeros(features), persistent=False)

    def forward(self, context: torch.Tensor | None = None) -> FlowDistribution:
        """The `FlowDistribution` given context (…, context); its batch_shape is (…,)."""
        check_context(context, self.context)
        return FlowDistribution(self.transform, self._base_given(context), context)

    def _base_given(self, context: torch.Tensor | None) -> Distribution:
        if self.base is None:
            return StandardNormal(self.origin)
        base = self.base(context) if self.context else self.base()
        if base.event_shape != self.origin.shape:
            raise ValueError(f"base: expected event_shape {tuple(self.origin.shape)}, got {tuple(base.event_shape)}")
        return base
