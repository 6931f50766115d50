"""Small, well-conditioned calls of all ops for `python -m flowkern check`; those of an op are in its `problem.py`."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

ROWS, FEATURES, UNITS = 37, 6, 10
Draw = Callable[..., torch.Tensor]


class Problem(NamedTuple):
    """A call of an op: what it computes from float64 tensors, all of which have gradients."""

    op: str
    direction: str
    tensors: tuple[torch.Tensor, ...]
    call: Callable[..., Iterable[torch.Tensor]]


def all_problems() -> list[Problem]:
    """Those of all ops; the same numbers each time."""
    package = importlib.import_module("flowkern.ops")
    names = [found.name for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.") if found.ispkg]
    modules: list[Any] = [importlib.import_module(f"{name}.problem") for name in sorted(names)]
    return [problem for module in modules for problem in module.problems(_normal())]


def _normal() -> Draw:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def both(op: str, tensors: tuple[torch.Tensor, ...], call: Callable[..., Iterable[torch.Tensor]]) -> list[Problem]:
    """A problem for each direction of an op whose call takes `inverse`."""

    def direction(inverse: bool) -> Callable[..., Iterable[torch.Tensor]]:
        return lambda *tensors: call(*tensors, inverse=inverse)

    return [Problem(op, name, tensors, direction(name == "inverse")) for name in ("forward", "inverse")]


def layers(draw: Draw, inputs: int, outputs: int) -> tuple[torch.Tensor, ...]:
    """Weights and biases of a network with one hidden layer."""
    return draw(UNITS, inputs) / inputs**0.5, draw(UNITS) / 3, draw(outputs, UNITS) / UNITS**0.5, draw(outputs) / 3
