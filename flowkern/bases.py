"""Base distributions of flows: modules whose call gives the distribution of the noise.

The mathematics is that of `torch.distributions`; parameters are learned, or computed from the context. A new base
without a mixture is the standard normal distribution.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, MultivariateNormal
from torch.distributions import Normal as _Normal
from torch.distributions import Uniform as _Uniform

from flowkern.nn import MLP
from flowkern.nn._arguments import check_count
from flowkern.nn._module import Module
from flowkern.ops._arguments import compute_dtype, size

__all__ = ["BoxUniform", "DiagonalNormal", "FullNormal", "NormalMixture", "StandardNormal"]


class StandardNormal(Distribution):
    """N(0, I), the base of a flow that has no other: a distribution, not a module.

    Args:
        origin: (D,), zero; noise has its dtype and device.
        batch_shape: the batch dimensions.

    Example:
        >>> import torch
        >>> StandardNormal(torch.zeros(2)).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    arg_constraints = {}  # noqa: RUF012
    support = torch.distributions.constraints.real_vector
    has_rsample = True

    def __init__(self, origin: torch.Tensor, batch_shape: Sequence[int] = ()) -> None:
        self.origin = origin
        super().__init__(torch.Size(batch_shape), origin.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same with batch dimensions `batch_shape`."""
        return StandardNormal(self.origin, batch_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log N(value; 0, I), summed over the features, at least in float32."""
        value = value.to(compute_dtype(value, value))
        return -0.5 * (value.square().sum(-1) + size(value, -1) * math.log(2 * math.pi))

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        """Noise (*sample_shape, *batch_shape, D)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.origin.dtype, device=self.origin.device)


class _Learned(Module):
    """Parameters that are learned, or given by a network of the context, and start at zero."""

    def __init__(self, features: int, outputs: int, context: int, hidden_features: Sequence[int]) -> None:
        super().__init__()
        self.features, self.network = features, MLP(0, outputs, context, hidden_features)

    def parameters_at(self, context: torch.Tensor | None) -> torch.Tensor:
        """(…, outputs) for context (…, context), (outputs,) without."""
        nothing = self.network.input.bias.new_zeros(0)
        return self.network(nothing, context)


class DiagonalNormal(_Learned):
    """N(μ, diag σ²) with learned μ and log σ, or with those that a network gives for the context.

    Args:
        features: number of features D.
        context: number of context features; 0 for none.
        hidden_features: widths of the network's hidden layers.

    Raises:
        TypeError, ValueError: a size is not an integer in range.

    Example:
        >>> from flowkern import bases, flows
        >>> flow = flows.MAF(2, context=3, transforms=1, base=bases.DiagonalNormal(2, context=3))
    """

    def __init__(self, features: int, context: int = 0, hidden_features: Sequence[int] = (64, 64)) -> None:
        check_count("features", features, 1)
        super().__init__(features, 2 * features, context, hidden_features)

    def forward(self, context: torch.Tensor | None = None) -> Distribution:
        """The distribution given context (…, context); its batch_shape is (…,)."""
        loc, log_scale = self.parameters_at(context).chunk(2, -1)
        return _independent(loc, log_scale)


class FullNormal(_Learned):
    """N(μ, L Lᵀ) with L lower triangular, log L_ii and L_ij learned, or given by a network of the context.

    Args:
        features, context, hidden_features: as for `DiagonalNormal`.

    Raises:
        TypeError, ValueError: a size is not an integer in range.

    Example:
        >>> from flowkern import bases
        >>> bases.FullNormal(3)().covariance_matrix.shape
        torch.Size([3, 3])
    """

    def __init__(self, features: int, context: int = 0, hidden_features: Sequence[int] = (64, 64)) -> None:
        check_count("features", features, 1)
        super().__init__(features, 2 * features + features * (features - 1) // 2, context, hidden_features)

    def forward(self, context: torch.Tensor | None = None) -> Distribution:
        """The distribution given context (…, context); its batch_shape is (…,)."""
        width = self.features
        loc, log_diagonal, below = self.parameters_at(context).split((width, width, width * (width - 1) // 2), -1)
        row, column = torch.tril_indices(width, width, -1, device=loc.device)
        lower = log_diagonal.exp().diag_embed()
        lower[..., row, column] = below
        return MultivariateNormal(loc, scale_tril=lower, validate_args=False)


class NormalMixture(_Learned):
    """Σ_k w_k N(μ_k, diag σ_k²) with learned parameters, or with those that a network gives for the context.

    The means start at random. Samples have no derivative: `rsample` is refused.

    Args:
        features, context, hidden_features: as for `DiagonalNormal`.
        components: number of components.

    Raises:
        TypeError, ValueError: a size is not an integer in range.

    Example:
        >>> from flowkern import bases
        >>> bases.NormalMixture(2, components=4)().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, features: int, context: int = 0, components: int = 8, hidden_features: Sequence[int] = (64, 64)
    ) -> None:
        check_count("features", features, 1)
        check_count("components", components, 1)
        super().__init__(features, components * (1 + 2 * features), context, hidden_features)
        self.means = nn.Parameter(torch.randn(components, features))

    def forward(self, context: torch.Tensor | None = None) -> Distribution:
        """The distribution given context (…, context); its batch_shape is (…,)."""
        logits, loc, log_scale = (
            self.parameters_at(context)
            .unflatten(-1, (len(self.means), 1 + 2 * self.features))
            .split((1, self.features, self.features), -1)
        )
        weights = Categorical(logits=logits.squeeze(-1), validate_args=False)
        return MixtureSameFamily(weights, _independent(self.means + loc, log_scale), validate_args=False)


class BoxUniform(Module):
    """The uniform distribution on the box from low to high.

    Args:
        low, high: (D,), the corners.

    Raises:
        ValueError: they are not vectors of one length, or low is not below high.

    Example:
        >>> import torch
        >>> from flowkern import bases
        >>> bases.BoxUniform(torch.zeros(2), torch.ones(2))().log_prob(torch.tensor([0.5, 0.5]))
        tensor(0.)
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor) -> None:
        super().__init__()
        if low.dim() != 1 or low.shape != high.shape:
            raise ValueError(f"low, high: expected shape (D,) for both, got {tuple(low.shape)}, {tuple(high.shape)}")
        if not bool((low < high).all()):
            raise ValueError("low: expected entries below those of high")
        self.features = len(low)
        self.low: torch.Tensor
        self.high: torch.Tensor
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, context: torch.Tensor | None = None) -> Distribution:
        """The distribution, whatever the context."""
        return Independent(_Uniform(self.low, self.high, validate_args=False), 1, validate_args=False)


def _independent(loc: torch.Tensor, log_scale: torch.Tensor) -> Distribution:
    return Independent(_Normal(loc, log_scale.exp(), validate_args=False), 1, validate_args=False)
