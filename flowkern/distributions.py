"""The distributions that flows return."""

import math
from typing import Any, NamedTuple

import torch
from torch.distributions import Distribution, constraints

from flowkern.nn._arguments import check_broadcast, check_features
from flowkern.ops._arguments import compute_dtype, size


class FlowDistribution(Distribution):
    """p(x) = N(f(x); 0, I)·|det ∂f/∂x|, for a transform f from data to noise.

    Compatible with `torch.distributions`: batch_shape is that of the context, event_shape is (D,).
    Shapes are always checked; the support (all reals) is not, so that a NaN stays in its row and
    nothing waits for the device.

    Args:
        transform: a module as in `flowkern.transforms`.
        origin: (D,), the mean of the noise, zero; noise is drawn with its dtype and device.
        context: (…, context), or None.
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transform: Any, origin: torch.Tensor, context: torch.Tensor | None = None) -> None:
        self.transform, self.origin, self.context = transform, origin, context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, origin.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same distribution with batch dimensions `batch_shape`; nothing is copied."""
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.transform, new.origin, new.context = self.transform, self.origin, self.context
        batch_shape = torch.Size(batch_shape)
        if check_broadcast("batch_shape", batch_shape, "the flow", self.batch_shape) != batch_shape:
            raise ValueError(f"batch_shape: cannot expand {tuple(self.batch_shape)} to {tuple(batch_shape)}")
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p(value) = log N(z; 0, I) + log|det ∂z/∂x| at z = f(value), for value (…, D)."""
        check_features("value", value, self.event_shape[0])
        shape = check_broadcast("value", value.shape[:-1], "the flow", self.batch_shape)
        whole = getattr(self.transform, "log_normal", None)
        density = whole and whole(value, self.context)
        if density is None:
            noise, logabsdet = self.transform(value, self.context)
            density = _log_normal(noise) + logabsdet
        return density.expand(shape)

    def rsample(self, sample_shape=torch.Size()):
        """x = f⁻¹(z) for noise z, (*sample_shape, *batch_shape, D), differentiable."""
        return self.transform.inverse(self._noise(sample_shape), self.context)[0]

    def rsample_and_log_prob(self, sample_shape=torch.Size()):
        """`rsample` and the log_prob of what it returns, in one pass."""
        noise = self._noise(sample_shape)
        x, logabsdet = self.transform.inverse(noise, self.context)
        return x, _log_normal(noise) - logabsdet

    def __repr__(self):
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"FlowDistribution({shapes})"

    def _noise(self, sample_shape: tuple[int, ...]) -> torch.Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.origin.dtype, device=self.origin.device)


class Costs(NamedTuple):
    """log_prob (…,), and what the way between data and noise costs: kinetic = ∫ ‖f‖² |dt| (…,) and
    jacobian = ∫ ‖∂f/∂x‖² |dt| (…,), Frobenius, or its estimate."""

    log_prob: torch.Tensor
    kinetic: torch.Tensor
    jacobian: torch.Tensor


class ContinuousFlowDistribution(FlowDistribution):
    """p(x) by a `transforms.NeuralODE`, whose samples need no log-det.

    Args:
        transform, origin, context: as for `FlowDistribution`.
    """

    def rsample(self, sample_shape=torch.Size()):
        """x(t_data) for noise x(t_noise), (*sample_shape, *batch_shape, D), differentiable."""
        return self.transform.data(self._noise(sample_shape), self.context)

    def log_prob_and_costs(self, value: torch.Tensor) -> Costs:
        """The `Costs` for value (…, D) in one solve: regularisers, to add to the loss.

        Source: Finlay et al., How to Train Your Neural ODE (2020), eqs. 10 and 11.
        """
        check_features("value", value, self.event_shape[0])
        shape = check_broadcast("value", value.shape[:-1], "the flow", self.batch_shape)
        noise, logabsdet, *costs = self.transform.forward_and_costs(value, self.context)
        log_prob = _log_normal(noise) + logabsdet
        return Costs(*(part.expand(shape) for part in (log_prob, *costs)))


def _log_normal(z: torch.Tensor) -> torch.Tensor:
    """log N(z; 0, I), summed over the features."""
    z = z.to(compute_dtype(z, z))
    return -0.5 * (z.square().sum(-1) + size(z, -1) * math.log(2 * math.pi))
