"""A flow: a transform from data to standard normal noise, read as a distribution."""

import torch
from torch import nn

from flowkern.distributions import FlowDistribution
from flowkern.nn._arguments import check_context, check_count


class Flow(nn.Module):
    """`flow(context)` is p(x | context) = N(f(x; context); 0, I)·|det ∂f/∂x|.

    Args:
        transform: f, a module as in `flowkern.transforms`, from data to noise.
        features: number of features D of x.
        context: number of context features; 0 for none.

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

    def __init__(self, transform: nn.Module, features: int, context: int = 0) -> None:
        super().__init__()
        check_count("features", features, 1)
        check_count("context", context, 0)
        self.transform, self.context = transform, context
        # The mean of the noise; it also says which dtype and device to draw noise with.
        self.register_buffer("origin", torch.zeros(features), persistent=False)

    def forward(self, context=None):
        """The `FlowDistribution` given context (…, context); its batch_shape is (…,)."""
        check_context(context, self.context)
        return FlowDistribution(self.transform, self.origin, context)
