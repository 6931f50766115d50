"""Masked and inverse autoregressive flows, affine and with splines."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from flowkern.flows.flow import Flow
from flowkern.nn import MADE
from flowkern.nn._arguments import check_count
from flowkern.transforms import AffineAutoregressive, Compose, Inverse, SplineAutoregressive


class _AutoregressiveFlow(Flow):
    """Autoregressive layers, every second one in descending order, or all in random orders."""

    def __init__(
        self,
        layer: Callable | type,
        features: int,
        context: int,
        transforms: int,
        passes: int | None,
        randperm: bool,
        hidden_features: Sequence[int],
        conditioner: Callable | type,
        base: nn.Module | None,
    ) -> None:
        check_count("features", features, 1)
        check_count("context", context, 0)
        check_count("transforms", transforms, 1)
        passes = features if passes is None else passes
        check_count("passes", passes, 1)
        layers = []
        for i in range(transforms):
            order = (torch.randperm if randperm else torch.arange)(features, device="cpu")
            order = order.flip(0) if i % 2 and not randperm else order
            order = order // -(features // -min(passes, features))  # blocks of ⌈features/passes⌉
            layers.append(layer(features, context, order, conditioner=conditioner, hidden_features=hidden_features))
        super().__init__(Compose(*layers), features, context, base)


class MAF(_AutoregressiveFlow):
    """Masked autoregressive flow: z_i = s(u_i)·x_i + b_i, log s = u/(1 + |u|/ln 1000).

    b_i and u_i depend on the features before x_i, in alternately ascending and descending order.
    The density takes one dense pass of each conditioner, a sample one pass unit by unit. Every
    layer starts as the identity, so a new flow is the standard normal.

    Args:
        features: number of features D.
        context: number of context features; 0 for none.
        transforms: number of autoregressive layers.
        passes: number of feature blocks in the ordering; features of one block do not depend on each
            other. Default: D, fully autoregressive; 2 makes coupling layers.
        randperm: whether each layer's order is random instead. It is saved in the state_dict.
        hidden_features: widths of the conditioners' hidden layers.
        conditioner: makes the conditioner of each layer, as for
            `transforms.AffineAutoregressive`, for example `partial(nn.MADE, residual=True)`.
        base: as for `Flow`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Papamakarios et al., Masked Autoregressive Flow (2017).

    Example:
        >>> import torch, flowkern
        >>> flow = flowkern.flows.MAF(3, transforms=2)
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        passes: int | None = None,
        randperm: bool = False,
        hidden_features: Sequence[int] = (64, 64),
        conditioner: Callable[..., nn.Module] = MADE,
        base: nn.Module | None = None,
    ) -> None:
        super().__init__(
            AffineAutoregressive, features, context, transforms, passes, randperm, hidden_features,
            conditioner, base,
        )  # fmt: skip


class IAF(_AutoregressiveFlow):
    """Inverse autoregressive flow: x_i = s(u_i)·z_i + b_i, with parameters of the noise before z_i.

    `MAF` the other way round: a sample takes one dense pass of each conditioner, a density one
    pass unit by unit.

    Args:
        features, context, transforms, passes, randperm, hidden_features, conditioner, base: as for `MAF`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016).

    Example:
        >>> import torch, flowkern
        >>> flow = flowkern.flows.IAF(3, transforms=2)
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        passes: int | None = None,
        randperm: bool = False,
        hidden_features: Sequence[int] = (64, 64),
        conditioner: Callable[..., nn.Module] = MADE,
        base: nn.Module | None = None,
    ) -> None:
        super().__init__(
            AffineAutoregressive, features, context, transforms, passes, randperm, hidden_features,
            conditioner, base,
        )  # fmt: skip
        self.transform = Inverse(self.transform)


class AutoregressiveNSF(_AutoregressiveFlow):
    """Autoregressive neural spline flow: z_i = RQS(x_i; params_i) on [−bound, bound].

    Args:
        features, context, transforms, passes, randperm, hidden_features, conditioner, base: as for `MAF`.
        bins, bound: as for `NSF`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Durkan et al., Neural Spline Flows (2019).

    Example:
        >>> import torch, flowkern
        >>> flow = flowkern.flows.AutoregressiveNSF(3, transforms=2)
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
        passes: int | None = None,
        randperm: bool = False,
        hidden_features: Sequence[int] = (64, 64),
        conditioner: Callable[..., nn.Module] = MADE,
        base: nn.Module | None = None,
    ) -> None:
        super().__init__(
            partial(SplineAutoregressive, bins=bins, bound=bound), features, context, transforms,
            passes, randperm, hidden_features, conditioner, base,
        )  # fmt: skip
