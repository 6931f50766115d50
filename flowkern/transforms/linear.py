"""Layers between couplings: a permutation, a full linear map, a normalisation."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flowkern.nn._arguments import check_count, check_dtype, check_features
from flowkern.ops import _flow_program as program
from flowkern.ops._arguments import compute_dtype, without_autocast
from flowkern.programs import Computed, Part
from flowkern.transforms.base import Transform


class Permutation(Transform):
    """y_i = x_{p(i)}, log|det J| = 0.

    Args:
        permutation: int64 (D,), the feature that each output takes. For a random one pass
            `torch.randperm(D)`. It is saved in the state_dict.

    Raises:
        ValueError: permutation is not a permutation of 0 … D − 1; x has the wrong shape.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.Permutation([2, 0, 1])
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, permutation: torch.Tensor | Sequence[int]) -> None:
        super().__init__()
        permutation = torch.as_tensor(permutation)
        if permutation.dtype != torch.int64 or permutation.dim() != 1 or not len(permutation):
            raise ValueError(
                f"permutation: expected int64 of shape (D,), got {permutation.dtype} {tuple(permutation.shape)}"
            )
        wanted = torch.arange(len(permutation), device=permutation.device)
        if not permutation.is_meta and not torch.equal(permutation.sort().values, wanted):
            raise ValueError(f"permutation: expected each of 0 … D − 1 once, got {permutation.tolist()}")
        self.register_buffer("permutation", permutation.clone())

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y (…, D) and logabsdet (…,) = 0."""
        return self._select("x", x, self.permutation)

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, D) and logabsdet (…,) = 0."""
        # Sorted here rather than stored, so that loading a state_dict cannot leave it stale.
        return self._select("y", y, self.permutation.argsort())

    def _select(self, name: str, x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        check_features(name, x, self.permutation.shape[0])
        zeros = torch.zeros(x.shape[:-1], dtype=compute_dtype(x, x), device=x.device)
        return x.index_select(-1, index), zeros

    def part(self, with_context: bool) -> Any:
        order = tuple(self.permutation.tolist())
        return Part((program.Permutation(order),), features=len(order))


class LULinear(Transform):
    """y = L U x + b with L unit lower and U upper triangular, log|det J| = Σ log U_ii.

    The parameters are `weight` (D, D), whose strict lower and upper triangles are those of L and U,
    `log_diagonal` (D,), the log of U's diagonal, and `bias` (D,). All start at zero: the identity.
    The inverse solves two triangular systems. Autocast does not lower the precision of this layer.

    Args:
        features: number of features D.

    Raises:
        TypeError, ValueError: features is not an integer >= 1; x has the wrong shape or dtype.

    Source: Kingma & Dhariwal, Glow (2018), eq. 10, without its fixed permutation.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.LULinear(3)
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        check_count("features", features, 1)
        self.weight = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor, context: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y (…, D) and logabsdet (…,)."""
        dtype = self._dtype("x", x)
        with without_autocast(x.device.type):
            lower, upper = self._factors(dtype)
            y = F.linear(x.to(dtype), lower @ upper, self.bias.to(dtype))
        return y.to(x.dtype), self._logabsdet(x, dtype)

    def inverse(self, y: torch.Tensor, context: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, D) and logabsdet (…,)."""
        dtype = self._dtype("y", y)
        with without_autocast(y.device.type):
            lower, upper = self._factors(dtype)
            rows = (y.to(dtype) - self.bias.to(dtype)).reshape(-1, y.shape[-1])
            rows = _solve(lower.mT, rows, upper=True, unitriangular=True)
            x = _solve(upper.mT, rows, upper=False).reshape(y.shape)
        return x.to(y.dtype), -self._logabsdet(y, dtype)

    def _factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        weight, diagonal = self.weight.to(dtype), self.log_diagonal.to(dtype).exp()
        lower = weight.tril(-1) + torch.eye(len(diagonal), dtype=dtype, device=weight.device)
        return lower, weight.triu(1) + diagonal.diag()

    def _logabsdet(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.log_diagonal.to(dtype).sum().expand(x.shape[:-1])

    def _dtype(self, name: str, x: torch.Tensor) -> torch.dtype:
        check_features(name, x, self.bias.shape[0])
        check_dtype(name, x, self.bias)
        return compute_dtype(x, self.bias)

    def part(self, with_context: bool) -> Part:
        features = self.bias.shape[0]
        places = ((self._parameters, "weight"),)
        below, above = (
            Computed(partial(_entries, indices(features, features, offset, device="cpu")), places)
            for indices, offset in ((torch.tril_indices, -1), (torch.triu_indices, 1))
        )
        diagonal = Computed(_raw_diagonal, ((self._parameters, "log_diagonal"),))
        slots = below, above, diagonal, (self._parameters, "bias")
        return Part((program.LU(0.0),), slots, features=features)

    def extra_repr(self) -> str:
        return f"features={self.bias.shape[0]}"


def _entries(index: torch.Tensor, dtype: torch.dtype, weight: torch.Tensor) -> torch.Tensor:
    return weight[index[0], index[1]]


def _raw_diagonal(dtype: torch.dtype, log_diagonal: torch.Tensor) -> torch.Tensor:
    """u with softplus(u) = exp(log_diagonal)."""
    diagonal = log_diagonal.exp()
    return diagonal + torch.log(-torch.expm1(-diagonal))


def _solve(triangle: torch.Tensor, rows: torch.Tensor, **options: Any) -> torch.Tensor:
    """The X (N, D) for which X · triangle = rows."""
    return torch.linalg.solve_triangular(triangle, rows, left=False, **options)


class ActNorm(Transform):
    """y = exp(log_scale)·x + shift, with log|det J| = Σ log_scale, learned for each feature.

    The first `forward` in training mode on at least two rows sets both from its batch, so that y
    has mean 0 and variance 1 there; a constant feature keeps scale 1. `inverse` and evaluation mode
    never do: before that batch they are the identity. Initialise before wrapping in
    DistributedDataParallel, or each process would start from its own batch.

    Whether it has happened is the buffer `initialized`, for the state_dict, mirrored by a Python
    flag that `forward` asks, so that no call waits for the device and `torch.compile` keeps one
    graph. Where parameters and buffer were copied in by other means than `load_state_dict`, the
    buffer decides.

    Args:
        features: number of features D.

    Raises:
        TypeError, ValueError: features is not an integer >= 1; x has the wrong shape or dtype.

    Source: Kingma & Dhariwal, Glow (2018), section 3.1.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.ActNorm(3)
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        check_count("features", features, 1)
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialized", torch.tensor(False))
        self._pending = True

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y (…, D) and logabsdet (…,)."""
        dtype = self._dtype("x", x)
        if self.training and self._pending and x.shape[:-1].numel() > 1:
            self._initialize(x.detach().to(dtype).reshape(-1, x.shape[-1]))
        log_scale, shift = self.log_scale.to(dtype), self.shift.to(dtype)
        y = torch.addcmul(shift, x.to(dtype), log_scale.exp())
        return y.to(x.dtype), log_scale.sum().expand(x.shape[:-1])

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, D) and logabsdet (…,)."""
        dtype = self._dtype("y", y)
        log_scale, shift = self.log_scale.to(dtype), self.shift.to(dtype)
        x = (y.to(dtype) - shift) * torch.exp(-log_scale)
        return x.to(y.dtype), -log_scale.sum().expand(y.shape[:-1])

    def part(self, with_context: bool) -> Part | str:
        if self.training and self._pending and not self.initialized:
            return "its first batch in training sets its parameters"
        slots = (self._parameters, "log_scale"), (self._parameters, "shift")
        return Part((program.Scale(logarithmic=True),), slots, features=self.shift.shape[0])

    @torch.no_grad()
    def _initialize(self, rows):
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        log_scale = torch.where(variance > 0, -0.5 * variance.log(), 0.0)
        shift = -mean * log_scale.exp()
        # Chosen on the device, which an `if` would wait for.
        self.log_scale.copy_(torch.where(self.initialized, self.log_scale, log_scale))
        self.shift.copy_(torch.where(self.initialized, self.shift, shift))
        self.initialized.fill_(True)
        self._pending = False

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._pending = self.initialized.is_meta or not bool(self.initialized)

    def _dtype(self, name: str, x: torch.Tensor) -> torch.dtype:
        check_features(name, x, self.shift.shape[0])
        check_dtype(name, x, self.shift)
        return compute_dtype(x, self.shift)

    def extra_repr(self) -> str:
        return f"features={self.shift.shape[0]}"
