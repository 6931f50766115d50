"""NICE, Real NVP and coupling neural spline flows."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from flowkern.flows.flow import Flow
from flowkern.nn import MLP
from flowkern.nn._arguments import check_count
from flowkern.transforms import (
    ActNorm,
    AffineCoupling,
    Compose,
    LULinear,
    Permutation,
    SplineCoupling,
    alternating_mask,
)

_MIXING = {"permutation": lambda features: Permutation(torch.randperm(features)), "lu": LULinear}


class _CouplingFlow(Flow):
    """Coupling layers with alternating halves, and what stands between them."""

    def __init__(
        self,
        coupling,
        per_feature,
        features,
        context,
        transforms,
        hidden_features,
        conditioner,
        mixing,
        actnorm,
        base,
    ):
        check_count("features", features, 1)
        check_count("context", context, 0)
        check_count("transforms", transforms, 1)
        if mixing is not None and mixing not in _MIXING:
            raise ValueError(f"mixing: expected None, 'permutation' or 'lu', got {mixing!r}")
        layers: list[nn.Module] = []
        for i in range(transforms):
            mask = alternating_mask(features, i + 1)
            count = int(mask.sum())
            net = conditioner(features - count, count * per_feature, context, hidden_features)
            layers += [ActNorm(features)] if actnorm else []
            layers += [_MIXING[mixing](features)] if mixing and i else []
            layers += [coupling(features, context, mask=mask, conditioner=net)]
        super().__init__(Compose(*layers), features, context, base)


class RealNVP(_CouplingFlow):
    """Real NVP: y_t = s(u)·x_t + b, log s = u/(1 + |u|/ln 1000), with alternating halves.

    Every coupling layer starts as the identity, so a new flow is the standard normal (up to what
    `mixing` permutes and `actnorm` normalises). With one feature every layer transforms it, by
    parameters that depend on the context alone, or on nothing.

    Args:
        features: number of features D.
        context: number of context features; 0 for none.
        transforms: number of coupling layers.
        hidden_features: widths of the conditioners' hidden layers.
        conditioner: makes the conditioner of each layer, called with
            (features, outputs, context, hidden_features), for example `nn.ResidualNet`.
            See `transforms.AffineCoupling` for what the conditioner returns.
        mixing: what stands between coupling layers: None, "permutation" (random, fixed) or "lu".
        actnorm: whether an `ActNorm` stands before each coupling layer.
        base: as for `Flow`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Dinh et al., Density estimation using Real NVP (2017).

    Example:
        >>> import torch, flowkern
        >>> flow = flowkern.flows.RealNVP(3, context=2)
        >>> flow(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 8,
        hidden_features: Sequence[int] = (64, 64),
        conditioner: Callable[..., nn.Module] = MLP,
        mixing: Callable[[int], nn.Module] | None = None,
        actnorm: bool = False,
        base: nn.Module | None = None,
    ) -> None:
        super().__init__(
            AffineCoupling, 2, features, context, transforms, hidden_features, conditioner, mixing,
            actnorm, base,
        )  # fmt: skip


class NICE(_CouplingFlow):
    """NICE: y_t = x_t + b with alternating halves, then y = exp(u)·x + b for every feature.

    The last layer's u and b depend on the context alone, or on nothing: without it the flow could
    not change volumes.

    Args:
        features, context, transforms, hidden_features, conditioner, mixing, actnorm, base: as for
            `RealNVP`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Dinh et al., NICE (2015), section 3.

    Example:
        >>> import torch, flowkern
        >>> flow = flowkern.flows.NICE(3)
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 8,
        hidden_features: Sequence[int] = (64, 64),
        conditioner: Callable[..., nn.Module] = MLP,
        mixing: Callable[[int], nn.Module] | None = None,
        actnorm: bool = False,
        base: nn.Module | None = None,
    ) -> None:
        super().__init__(
            partial(AffineCoupling, scale_map="additive"), 1, features, context, transforms,
            hidden_features, conditioner, mixing, actnorm, base,
        )  # fmt: skip
        every = [True] * features
        scaling = AffineCoupling(features, context, every, "exp", hidden_features=hidden_features)
        self.transform = Compose(self.transform, scaling)


class NSF(_CouplingFlow):
    """Neural spline flow: y_t = RQS(x_t; params) on [−bound, bound], with alternating halves.

    Args:
        features, context, transforms, hidden_features, conditioner, mixing, actnorm, base: as for
            `RealNVP`.
        bins: number of bins of each spline.
        bound: the splines act on [−bound, bound], and leave what is outside as it is. Scale the
            data to lie inside.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Durkan et al., Neural Spline Flows (2019).

    Example:
        >>> import torch, flowkern
        >>> flow = flowkern.flows.NSF(3, bins=4, transforms=2)
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        bins: int = 8,
        bound: float = 5.0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (64, 64),
        conditioner: Callable[..., nn.Module] = MLP,
        mixing: Callable[[int], nn.Module] | None = None,
        actnorm: bool = False,
        base: nn.Module | None = None,
    ) -> None:
        check_count("bins", bins, 1)
        super().__init__(
            partial(SplineCoupling, bins=bins, bound=bound), 3 * bins - 1, features, context,
            transforms, hidden_features, conditioner, mixing, actnorm, base,
        )  # fmt: skip
