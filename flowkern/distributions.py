"""The distributions that flows return."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.distributions import Distribution, constraints

from flowkern.bases import StandardNormal
from flowkern.nn._arguments import check_broadcast, check_count, check_features
from flowkern.ops import _random

_ROWS_STREAM = 2  # of `_random`; those before are `probability_path`'s


class FlowDistribution(Distribution):
    """p(x) = p_base(f(x))·|det ∂f/∂x|, for a transform f from data to noise.

    Compatible with `torch.distributions`: batch_shape is that of the context, event_shape is (D,).
    Shapes are always checked; the support (all reals) is not, so that a NaN stays in its row and
    nothing waits for the device.

    Args:
        transform: a module as in `flowkern.transforms`.
        base: the distribution of the noise, as in `flowkern.bases`; with batch dimensions, those of the context.
        context: (…, context), or None.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, transform: Any, base: Distribution, context: torch.Tensor | None = None) -> None:
        self.transform, self.base, self.context = transform, base, context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples have derivatives: where those of the base have."""
        return self.base.has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with batch dimensions `batch_shape`; nothing is copied."""
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.transform, new.base, new.context = self.transform, self.base, self.context
        batch_shape = torch.Size(batch_shape)
        if check_broadcast("batch_shape", batch_shape, "the flow", self.batch_shape) != batch_shape:
            raise ValueError(f"batch_shape: cannot expand {tuple(self.batch_shape)} to {tuple(batch_shape)}")
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p(value) = log p_base(z) + log|det ∂z/∂x| at z = f(value), for value (…, D)."""
        check_features("value", value, self.event_shape[0])
        shape = check_broadcast("value", value.shape[:-1], "the flow", self.batch_shape)
        whole = getattr(self.transform, "log_normal", None) if isinstance(self.base, StandardNormal) else None
        density = whole and whole(value, self.context)
        if density is None:
            noise, logabsdet = self.transform(value, self.context)
            density = self.base.log_prob(noise) + logabsdet
        return density.expand(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        """x = f⁻¹(z) for noise z, (*sample_shape, *batch_shape, D)."""
        return self._data(self._noise(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        """`sample`, differentiable; NotImplementedError where the base's samples are not."""
        self._check_rsample()
        return self._data(self._noise(sample_shape))

    def rsample_and_log_prob(self, sample_shape: Any = torch.Size()) -> tuple[torch.Tensor, torch.Tensor]:
        """`rsample` and the log_prob of what it returns, in one pass."""
        self._check_rsample()
        noise = self._noise(sample_shape)
        x, logabsdet = self.transform.inverse(noise, self.context)
        return x, self.base.log_prob(noise) - logabsdet

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"FlowDistribution({shapes})"

    def _check_rsample(self) -> None:
        if not self.has_rsample:
            raise NotImplementedError("rsample: the base distribution has no differentiable samples; call sample")

    def _data(self, noise: torch.Tensor) -> torch.Tensor:
        return self.transform.inverse(noise, self.context)[0]

    def _noise(self, sample_shape: Sequence[int]) -> torch.Tensor:
        base = self.base if self.base.batch_shape == self.batch_shape else self.base.expand(self.batch_shape)
        return (base.rsample if base.has_rsample else base.sample)(torch.Size(sample_shape))


class Costs(NamedTuple):
    """log_prob (…,), and the cost of the path between data and noise: kinetic = ∫ ‖f‖² |dt| (…,) and
    jacobian = ∫ ‖∂f/∂x‖² |dt| (…,), Frobenius, or its estimate."""

    log_prob: torch.Tensor
    kinetic: torch.Tensor
    jacobian: torch.Tensor


class ContinuousFlowDistribution(FlowDistribution):
    """p(x) by a `transforms.NeuralODE`, whose samples need no log-det.

    Args:
        transform, base, context: as for `FlowDistribution`.
    """

    def _data(self, noise: torch.Tensor) -> torch.Tensor:
        return self.transform.data(noise, self.context)

    def log_prob_and_costs(self, value: torch.Tensor) -> Costs:
        """The `Costs` for value (…, D) in one solve: regularisers, to add to the loss.

        Source: Finlay et al., How to Train Your Neural ODE (2020), eqs. 10 and 11.
        """
        check_features("value", value, self.event_shape[0])
        shape = check_broadcast("value", value.shape[:-1], "the flow", self.batch_shape)
        noise, logabsdet, *costs = self.transform.forward_and_costs(value, self.context)
        log_prob = self.base.log_prob(noise) + logabsdet
        return Costs(*(part.expand(shape) for part in (log_prob, *costs)))


def normal_rows(
    seed: int,
    start: int,
    stop: int,
    features: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Rows start … stop − 1 of a matrix (∞, features) of standard normal numbers, a function of the seed.

    The numbers come from counters, not from a state: whoever draws a row gets the same one, so that the processes of
    a group, each with rows of its own, have independent noise, and the same noise together as one process has.

    Args:
        seed: an integer in [−2⁶³, 2⁶³).
        start, stop: 0 ≤ start ≤ stop.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), Philox4x32-10.

    Example:
        >>> from flowkern.distributions import normal_rows
        >>> normal_rows(7, 0, 4, 3)[2:].equal(normal_rows(7, 2, 4, 3))
        True
    """
    _check_rows(seed, start, stop)
    check_count("features", features, 1)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    count, key = (stop - start) * features, torch.tensor(seed, device=device)
    return _random.normal(count, _ROWS_STREAM, key, dtype, start * features).view(stop - start, features)


def _check_rows(seed: int, start: int, stop: int) -> None:
    """Raise unless they are as `normal_rows` takes them."""
    check_count("start", start, 0)
    check_count("stop", stop, start)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an int64, got {seed}")
