"""What every transform is, and how transforms are put together."""

import torch
from torch import nn

from flowkern.ops._arguments import compute_dtype


class Transform(nn.Module):
    """y = f(x; context), invertible in x. Subclasses define `forward` and `inverse`."""

    def inverse(self, y, context=None):
        """x = f⁻¹(y; context) and log|det ∂x/∂y|, for y (…, features)."""
        raise NotImplementedError

    @property
    def inv(self):
        """This transform the other way round, sharing its parameters."""
        return Inverse(self)


class Inverse(Transform):
    """x = f⁻¹(y): a transform with its two directions swapped.

    Args:
        transform: a module with `forward` and `inverse`.

    Raises:
        TypeError: transform is not such a module.
    """

    def __init__(self, transform):
        super().__init__()
        _check_transform("transform", transform)
        self.transform = transform

    def forward(self, x, context=None):
        """The transform's inverse at x."""
        return self.transform.inverse(x, context)

    def inverse(self, y, context=None):
        """The transform's forward at y."""
        return self.transform(y, context)

    @property
    def inv(self):
        """The transform itself."""
        return self.transform


class Compose(Transform):
    """y = (f_n ∘ … ∘ f_1)(x), the first argument acting first, and the sum of the log-dets.

    Args:
        transforms: modules with `forward` and `inverse`; each is given the same context.

    Raises:
        TypeError: one of them is not such a module.
    """

    def __init__(self, *transforms):
        super().__init__()
        for transform in transforms:
            _check_transform("transforms", transform)
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x, context=None):
        """y (…, features) and logabsdet (…,)."""
        return _cascade(self.transforms, x, context)

    def inverse(self, y, context=None):
        """x (…, features) and logabsdet (…,)."""
        return _cascade([t.inverse for t in reversed(self.transforms)], y, context)


def _cascade(functions, x, context):
    total = torch.zeros(x.shape[:-1], dtype=compute_dtype(x, x), device=x.device)
    for function in functions:
        x, logabsdet = function(x, context)
        total = total + logabsdet
    return x, total


def _check_transform(name, transform):
    if not isinstance(transform, nn.Module) or not callable(getattr(transform, "inverse", None)):
        raise TypeError(
            f"{name}: expected modules with forward and inverse, got {type(transform).__name__}"
        )
