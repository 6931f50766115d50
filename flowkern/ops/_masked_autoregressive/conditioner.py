"""The masked conditioner: its layers, and the degrees that make it autoregressive."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from flowkern.ops._activation import Activation
from flowkern.ops._plain import common, plainly

_Integers: TypeAlias = torch.Tensor | Sequence[int]


class ContextTerm(NamedTuple):
    """What a context c adds to the bias of a layer: activation(C c + d).

    context: c (…, inputs), one row per sample, or (inputs,) for all.
    weight: C (units, inputs).
    bias: d (units,); None for 0.
    activation: an `Activation`, or its name.
    """

    context: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    activation: Activation | str = "identity"


class MaskedLayer(NamedTuple):
    """One layer: z = gate·(W u + b) + z_skip, and u' = activation(gain·z + offset).

    u is what the layer before gives, or x. Entries of W from a unit of higher degree than the one
    they lead to are not read.

    weight: W (units, inputs).
    bias: b (units,), or (…, units) with one row per sample.
    activation: an `Activation`, or its name.
    skip: the number of an earlier layer as wide as this one, whose z is added; None for none.
    gate: a factor (units,) or (…, units) per sample; None for 1.
    gain, offset: (units,), such as a batch normalisation in evaluation; None for 1 and 0.
    context: a `ContextTerm`, which is added to b; None for none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    activation: Activation | str = "identity"
    skip: int | None = None
    gate: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    context: ContextTerm | None = None

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """(weight, bias, gate, gain, offset)."""
        return self.weight, self.bias, self.gate, self.gain, self.offset


class Degrees:
    """Degrees of the features and of each hidden layer's units: who may depend on whom.

    A hidden unit of degree m may depend on the features of degree ≤ m, and on earlier units that see no
    more features than itself; the parameters of a feature of degree d on the units of degree < d. So of a
    unit's degree only the number of features that it sees matters: units of degree −2 and −1 are alike where
    every feature has a higher one. Features of one degree do not depend on each other: D different degrees make a fully
    autoregressive transform, two make a coupling.

    Args:
        features: (D,) integers.
        hidden: for each hidden layer (units,) integers.

    Raises:
        ValueError: one of them is not a vector of integers, or there is no feature.

    Source: Germain et al., MADE (2015), eqs. 13–14.
    """

    def __init__(self, features: _Integers, hidden: Sequence[_Integers] = ()) -> None:
        with plainly():  # they are kept, also for calls that need gradients
            self._rank(features, hidden)

    def _rank(self, features, hidden):
        features = _vector("features", features)
        if features.numel() == 0:
            raise ValueError("features: expected at least one")
        levels, ranks = torch.unique(features, return_inverse=True)
        hidden = [_vector(f"hidden[{k}]", units) for k, units in enumerate(hidden)]
        # The rank of a unit is the number of feature degrees that it may see.
        seen = [torch.searchsorted(levels, units, right=True) for units in hidden]
        ranks = [ranks + 1, *seen]
        self.levels = len(levels)
        self.sizes = tuple(len(r) for r in ranks)
        self._ranks = ranks
        self._skips = _skips(seen)
        self._on: dict[Any, Any] = {}

    def made_of(self) -> tuple:
        """The arguments that make degrees like these."""
        features, *hidden = (ranks.tolist() for ranks in self._ranks)
        return features, hidden

    def on(self, device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(order, ends, ranks) on `device`, as the kernels take them.

        ranks: of the features, then of each hidden layer's units, 1 being the lowest feature's.
        order: for each layer in turn, its units sorted by rank.
        ends: (layers, levels + 1), how many units have rank ≤ r.
        """
        key = str(device)
        if key not in self._on:
            with plainly():
                self._on[key] = self._tables(device)
        return self._on[key]

    def _tables(self, device: str | torch.device) -> Any:
        order = torch.cat([torch.argsort(r, stable=True) for r in self._ranks])
        rank = torch.arange(self.levels + 1, device="cpu")
        ends = [torch.searchsorted(r.sort().values, rank, right=True) for r in self._ranks]
        tensors = order, torch.stack(ends), torch.cat(self._ranks)
        return tuple(t.to(device) for t in tensors)

    def may_skip(self, layer: int, to: int) -> bool:
        """Whether no unit of hidden layer `layer` has a higher degree than the same one of `to`."""
        return (layer, to) in self._skips


def masks(features: int, ranks: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """For each weight (units, inputs), which of its entries are read: bool, of the same shape.

    features: how many there are; ranks: as from `Degrees.on`. The outputs of the last weight belong
    to one feature after the other, and see units of lower rank than their feature.
    """
    per_feature = weights[-1].shape[0] // features
    sizes = [features, *(weight.shape[0] for weight in weights[:-1])]
    before = ranks.split(sizes)
    last = (before[0] - 1).repeat_interleave(per_feature, output_size=features * per_feature)
    return [to.unsqueeze(-1) >= seen for to, seen in zip((*before[1:], last), before)]


def _skips(ranks: Sequence[torch.Tensor]) -> frozenset:
    """The pairs of layers (earlier, later) between which a skip keeps the order of ranks."""
    pairs = itertools.combinations(range(len(ranks)), 2)
    as_wide = ((a, b) for a, b in pairs if len(ranks[a]) == len(ranks[b]))
    return frozenset((a, b) for a, b in as_wide if bool((ranks[a] <= ranks[b]).all()))


def _vector(name: str, values: _Integers) -> torch.Tensor:
    values = common(name, values) if isinstance(values, torch.Tensor) else values
    values = torch.as_tensor(values, device="cpu")
    if values.dim() != 1 or values.is_floating_point():
        raise ValueError(f"{name}: expected a vector of integers, got {values.dtype} {tuple(values.shape)}")
    return values.detach().long()
