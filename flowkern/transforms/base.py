"""What every transform is, and how transforms are put together."""

from typing import Any

import torch
from torch import nn

from flowkern.nn._module import Module
from flowkern.ops._arguments import compute_dtype
from flowkern.transforms import _program


class Transform(Module):
    """y = f(x; context), invertible in x. Subclasses define `forward` and `inverse`."""

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x = f⁻¹(y; context) and log|det ∂x/∂y|, for y (…, features)."""
        raise NotImplementedError

    @property
    def inv(self) -> "Inverse":
        """This transform the other way round, sharing its parameters."""
        return Inverse(self)

    def part(self, with_context: bool) -> Any:
        """What it adds to a program of `flowkern.programs`, or why that is nothing."""
        return "there is no step for it"


class Inverse(Transform):
    """x = f⁻¹(y): a transform with its two directions swapped.

    Args:
        transform: a module with `forward` and `inverse`.

    Raises:
        TypeError: transform is not such a module.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.Inverse(transforms.LULinear(3))
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        _check_transform("transform", transform)
        self.transform: Any = transform

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The transform's inverse at x."""
        return self.transform.inverse(x, context)

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The transform's forward at y."""
        return self.transform(y, context)

    @property
    def inv(self) -> Any:
        """The transform itself."""
        return self.transform

    def contained(self) -> list[tuple]:
        """[(the transform, True)]."""
        return [(self.transform, True)]


class Compose(Transform):
    """y = (f_n ∘ … ∘ f_1)(x), the first argument acting first, and the sum of the log-dets.

    Neighbours among flowkern's own transforms run in one call of `ops.flow_program` where it has a kernel.

    Args:
        transforms: modules with `forward` and `inverse`; each is given the same context.

    Raises:
        TypeError: one of them is not such a module.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.Compose(transforms.LULinear(3), transforms.AffineCoupling(3))
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, *transforms: nn.Module) -> None:
        super().__init__()
        for transform in transforms:
            _check_transform("transforms", transform)
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y (…, features) and logabsdet (…,)."""
        return _program.evaluate(self, x, context, False) or _cascade(self.transforms, x, context)

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, features) and logabsdet (…,)."""
        found = _program.evaluate(self, y, context, True)
        return found or _cascade([t.inverse for t in reversed(self.transforms)], y, context)

    def log_normal(self, x: torch.Tensor, context: torch.Tensor | None = None) -> Any:
        """log N(y; 0, I) + logabsdet (…,) in one call, or None where that takes more."""
        return _program.log_normal(self, x, context)

    def contained(self) -> list[tuple]:
        """[(transform, whether it is inverted)] in order."""
        return [(transform, False) for transform in self.transforms]


def _cascade(functions: Any, x: torch.Tensor, context: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    total = torch.zeros(x.shape[:-1], dtype=compute_dtype(x, x), device=x.device)
    for function in functions:
        x, logabsdet = function(x, context)
        total = total + logabsdet
    return x, total


def _check_transform(name: str, transform: Any) -> None:
    if not isinstance(transform, nn.Module) or not callable(getattr(transform, "inverse", None)):
        raise TypeError(f"{name}: expected modules with forward and inverse, got {type(transform).__name__}")
