"""The activations of conditioners and vector fields: one table, and the formulas that kernels are tested against."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Kind(NamedTuple):
    """A kind of activation. Its code is its place in `KINDS`, as in csrc/common/kinds.h.

    value, derivative: functions of (z, slope), differentiable; at a kink the derivative from the left.
    slope: torch's slope just below zero; None for kinds without one.
    module: torch's module for it.
    functions: torch's functions for it.
    """

    value: Callable
    derivative: Callable
    slope: float | None
    module: type[nn.Module]
    functions: tuple = ()


def _gelu_derivative(z, slope):
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * density


def _silu_derivative(z, slope):
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _below(z, value):
    """`value` at z ≤ 0, else 1."""
    return torch.where(z > 0, torch.ones_like(z), value)


KINDS = {
    "identity": Kind(lambda z, slope: z, lambda z, slope: torch.ones_like(z), None, nn.Identity),
    "leaky_relu": Kind(  # max(0, z) + slope·min(0, z)
        lambda z, slope: F.relu(z) if slope == 0 else F.leaky_relu(z, slope),
        lambda z, slope: _below(z, torch.full_like(z, slope)),
        0.01, nn.LeakyReLU, (F.leaky_relu,),
    ),
    "tanh": Kind(
        lambda z, slope: torch.tanh(z), lambda z, slope: 1 - torch.tanh(z).square(),
        None, nn.Tanh, (torch.tanh, F.tanh),
    ),
    "elu": Kind(  # max(0, z) + slope·(exp(min(0, z)) − 1)
        F.elu, lambda z, slope: _below(z, slope * torch.exp(z.clamp(max=0))), 1.0, nn.ELU, (F.elu,)
    ),
    "silu": Kind(lambda z, slope: F.silu(z), _silu_derivative, None, nn.SiLU, (F.silu,)),  # z·sigmoid z
    "gelu": Kind(lambda z, slope: F.gelu(z), _gelu_derivative, None, nn.GELU, (F.gelu,)),  # z·Φ(z)
    "sigmoid": Kind(
        lambda z, slope: torch.sigmoid(z), lambda z, slope: torch.sigmoid(z) * torch.sigmoid(-z),
        None, nn.Sigmoid, (torch.sigmoid, F.sigmoid),
    ),
    "softplus": Kind(  # log(1 + exp z)
        lambda z, slope: torch.logaddexp(z, torch.zeros_like(z)), lambda z, slope: torch.sigmoid(z),
        None, nn.Softplus, (F.softplus,),
    ),
}  # fmt: skip
_CODES = {kind: code for code, kind in enumerate(KINDS)}
_BY_CODE = tuple(KINDS.values())
NAMES = ("relu", *KINDS)  # relu is leaky_relu with slope 0


@dataclass(frozen=True)
class Activation:
    """An activation by name, with its slope.

    | kind | activation |
    |---|---|
    | identity | z |
    | relu | max(0, z) |
    | leaky_relu | max(0, z) + slope·min(0, z) |
    | tanh | tanh z |
    | elu | max(0, z) + slope·(exp(min(0, z)) − 1) |
    | silu | z·sigmoid z |
    | gelu | z·Φ(z) |
    | sigmoid | sigmoid z |
    | softplus | log(1 + exp z) |

    `slope` is the derivative just below zero, by default torch's: 0.01 of leaky_relu, 1 of elu; other
    kinds have none. Activation("relu") is Activation("leaky_relu", 0.0).

    Raises:
        ValueError: kind is unknown, slope is not finite, or the kind has none.
        TypeError: slope is no number.
    """

    kind: str
    slope: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in NAMES:
            raise ValueError(f"activation: expected one of {', '.join(NAMES)}, got {self.kind!r}")
        default = None if self.kind == "relu" else KINDS[self.kind].slope
        slope = default if self.slope is None else self.slope
        if default is None and slope is not None:
            raise ValueError(f"activation: {self.kind} has no slope, got {slope!r}")
        if slope is not None:
            if isinstance(slope, bool) or not isinstance(slope, numbers.Real):
                raise TypeError(f"activation: expected a number as slope, got {slope!r}")
            if not -math.inf < slope < math.inf:
                raise ValueError(f"activation: expected a finite slope, got {slope}")
        if self.kind == "relu":
            object.__setattr__(self, "kind", "leaky_relu")
            slope = 0.0
        object.__setattr__(self, "slope", slope)

    @staticmethod
    def of(activation: "Activation | str") -> "Activation":
        """An Activation from one, or from its name."""
        if isinstance(activation, Activation):
            return activation
        return _NAMED[activation] if isinstance(activation, str) and activation in _NAMED else Activation(activation)

    @property
    def code(self) -> int:
        """The number by which kernels know the kind."""
        return _CODES[self.kind]

    def numbers(self) -> tuple[int, float]:
        """(code, slope), as the kernels take them."""
        return _CODES[self.kind], 0.0 if self.slope is None else float(self.slope)

    def module(self) -> nn.Module:
        """A new module of torch's that computes it."""
        if self == _NAMED["relu"]:
            return nn.ReLU()
        module = KINDS[self.kind].module
        return module() if self.slope is None else module(self.slope)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """The activation of a tensor z, by PyTorch."""
        return KINDS[self.kind].value(z, self.slope)


_NAMED = {name: Activation(name) for name in NAMES}
_FUNCTIONS = {F.relu: _NAMED["relu"], torch.relu: _NAMED["relu"]} | {
    function: _NAMED[name] for name, kind in KINDS.items() for function in kind.functions
}


def value(z: torch.Tensor, code: int, slope: float) -> torch.Tensor:
    """The activation with this code at z."""
    return _BY_CODE[code].value(z, slope)


def derivative(z, code, slope):
    """Its derivative."""
    return _BY_CODE[code].derivative(z, slope)


def of_function(function: Callable[..., Any]) -> Any:
    """The `Activation` that a function of torch computes, None for any other."""
    try:
        return _FUNCTIONS.get(function)
    except TypeError:  # it cannot be hashed
        return None


def of_module(module: nn.Module, cls: type[Any]) -> Activation | None:
    """The `Activation` that torch's module of class `cls` computes, None for any other."""
    return MODULES[cls](module) if cls in MODULES else None


def _read_gelu(module: nn.Module) -> Activation | None:
    return _NAMED["gelu"] if module.approximate == "none" else None


def _read_softplus(module):
    """Beyond its threshold torch's softplus is the identity: at 20 that is 2e-9 away."""
    return _NAMED["softplus"] if module.beta == 1 and module.threshold >= 20 else None


# torch's module: the function that reads one; None of a module with settings that no kernel has
MODULES = {kind.module: lambda module, name=name: _NAMED[name] for name, kind in KINDS.items()} | {
    nn.ReLU: lambda module: _NAMED["relu"],
    nn.LeakyReLU: lambda module: Activation("leaky_relu", module.negative_slope),
    nn.ELU: lambda module: Activation("elu", module.alpha),
    nn.GELU: _read_gelu,
    nn.Softplus: _read_softplus,
}
# and the settings that it reads
SETTINGS = {
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.Softplus: ("beta", "threshold"),
}
# name of a function of torch: the module with the same arguments
CALLS = {function.__name__: kind.module for kind in KINDS.values() for function in kind.functions} | {"relu": nn.ReLU}


def of_call(name, *arguments, **named):
    """The `Activation` of a function in `CALLS` with these arguments behind the input; None if no kernel has it."""
    module = CALLS[name](*arguments, **named)
    return of_module(module, type(module))
