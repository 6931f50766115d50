"""What a peer's module says about one layer, and the check that a fused layer keeps its numbers."""

import copy
from typing import NamedTuple

import torch

from flowkern.backends import backend


class Plan(NamedTuple):
    """How one layer of a peer is treated.

    methods: name → function(module, …) that takes the place of the bound method; empty to leave
        the layer as it is.
    reason: why the layer is left.
    """

    methods: dict
    reason: str = ""


def disagreement(module, methods, trial):
    """Why the fused methods are not known to give the layer's own numbers, or None if they do.

    Forks change formulas under unchanged names, so numbers are compared, not versions: both sides
    run in float64 on the CPU, on a copy of the layer with some submodules exchanged.

    Args:
        module: the layer as the peer built it.
        methods: as in `Plan`.
        trial: trial(module) gives x (N, …) in float64, points within the domain of all methods, and
            a dictionary of the submodules to exchange.
    """
    try:
        x, stand_ins = trial(module)
        twin = _twin(module, stand_ins)
        with torch.no_grad(), backend("reference"):
            for name, fused in methods.items():
                pairs = zip(getattr(type(module), name)(twin, x), fused(twin, x))
                if not all(torch.allclose(want, got, 1e-6, 1e-6) for want, got in pairs):
                    return f"its {name} gives other numbers than the fused one"
    except Exception as error:  # a fork may fail in any way, and its layer is then left to it
        return f"a trial call failed: {type(error).__name__}: {error}"
    return None


def _twin(module, stand_ins):
    twin = copy.copy(module)
    for store in ("_parameters", "_buffers"):
        twin.__dict__[store] = {
            name: None if tensor is None else _on_cpu(tensor)
            for name, tensor in getattr(module, store).items()
        }
    twin.__dict__["_modules"] = {**module._modules, **stand_ins}
    return twin


def _on_cpu(tensor):
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor
