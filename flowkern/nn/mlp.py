"""Conditioners of coupling layers: dense networks, plain and residual."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flowkern.nn._arguments import check_context, check_dtype, check_one_width, check_sizes
from flowkern.nn._module import Module


class InputLayer(Module):
    """W x + V c + b. The context has a product of its own, so that it broadcasts without a copy."""

    def __init__(self, features: int, context: int, outputs: Any) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(features + context, 1))

        def uniform(*shape: int) -> Any:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) if all(shape) else None

        self.weight = uniform(outputs, features)
        self.context_weight = uniform(outputs, context)
        self.bias = uniform(outputs)

    @property
    def context_features(self) -> int:
        """Number of features of the context; 0 for none."""
        return 0 if self.context_weight is None else self.context_weight.shape[1]

    def forward(self, x: torch.Tensor, context: Any = None) -> torch.Tensor:
        """x (…, features), context (…, context) -> (…, outputs); (outputs,) if both are empty."""
        check_context(context, self.context_features)
        hidden = self.bias
        if self.weight is not None:
            check_dtype("x", x, self.bias)
            hidden = F.linear(x, self.weight, self.bias)
        if self.context_weight is not None:
            check_dtype("context", context, self.bias)
            hidden = hidden + F.linear(context, self.context_weight)
        return hidden


class MLP(Module):
    """h₀ = W x + V c + b, hᵢ = Wᵢ relu(hᵢ₋₁) + bᵢ; the last layer starts at zero.

    Without features and without context there is nothing to look at, and the output is one learned
    vector (outputs,), which broadcasts with any batch.

    Args:
        features: number of features of x; may be 0.
        outputs: number of parameters to return.
        context: number of features of the context; 0 for none.
        hidden_features: widths of the hidden layers.

    Raises:
        TypeError, ValueError: a size is not an integer in range; at the call, x or context has the
            wrong shape or dtype.

    Example:
        >>> import torch
        >>> from flowkern import nn
        >>> nn.MLP(3, 4)(torch.zeros(5, 3)).shape
        torch.Size([5, 4])
    """

    broadcasts = True

    def __init__(
        self, features: int, outputs: int, context: int = 0, hidden_features: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        hidden = check_sizes(features, context, outputs, hidden_features)
        widths = (*hidden, outputs) if features + context else (outputs,)
        self.input = InputLayer(features, context, widths[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        zero(self.layers[-1] if self.layers else self.input)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """x (…, features) and context (…, context) -> (…, outputs)."""
        hidden = self.input(x, context)
        for layer in self.layers:
            hidden = layer(F.relu(hidden))
        return hidden


class ResidualNet(Module):
    """h₀ = W x + V c + b, hᵢ = hᵢ₋₁ + Bᵢ relu(Aᵢ relu(hᵢ₋₁)); the last layer starts at zero.

    Args:
        features, outputs, context: as for `MLP`.
        hidden_features: the width of each residual block; all blocks have the same.

    Raises:
        TypeError, ValueError: a size is not an integer in range, or the widths differ; at the call,
            x or context has the wrong shape or dtype.

    Source: He et al., Identity Mappings in Deep Residual Networks (2016).

    Example:
        >>> import torch
        >>> from flowkern import nn
        >>> nn.ResidualNet(3, 4)(torch.zeros(5, 3)).shape
        torch.Size([5, 4])
    """

    broadcasts = True

    def __init__(
        self, features: int, outputs: int, context: int = 0, hidden_features: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        hidden = check_sizes(features, context, outputs, hidden_features)
        width = check_one_width(hidden)
        self.input = InputLayer(features, context, width)
        self.blocks = nn.ModuleList(_block(width) for _ in hidden)
        self.output = nn.Linear(width, outputs)
        zero(self.output)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """x (…, features) and context (…, context) -> (…, outputs)."""
        hidden = self.input(x, context)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.output(F.relu(hidden))


def _block(width: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def zero(layer: nn.Module) -> None:
    """Set all parameters of the layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
