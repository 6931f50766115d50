"""The rational-quadratic spline in plain PyTorch: the specification of every kernel.

Symbols as in the README: θ ∈ [0, 1] is the position within the bin (w wide, h high, s = h/w),
p and r the slopes at its left and right knot.
"""

from typing import Any

import torch
import torch.nn.functional as F

from flowkern.ops._arguments import compute_dtype, in_dtype, selected, size
from flowkern.ops._rational_quadratic_spline.kinds import KNOT_MAPS, TAILS

_IDENTITY, _CIRCULAR, _NONE = (TAILS[name].code for name in ("identity", "circular", "none"))
_SOFTCLIP = [*KNOT_MAPS].index("softclip")


def forward(
    x: torch.Tensor,
    params: torch.Tensor,
    index: Any,
    bound: Any,
    inverse: Any,
    tails: int,
    left: Any,
    right: float,
    bottom: float,
    top: float,
    knots: int,
    min_width: float,
    min_height: float,
    min_slope: float,
    softclip: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, D), params (N, T, M) -> y (N, D), logabsdet (N,); differentiable to any order."""
    dtype = compute_dtype(x, params)
    x_t = selected(x, index).to(dtype)
    if bound is not None:
        bound = bound.to(dtype)
        valid = (bound > 0) & bound.isfinite()
        right = top = bound.unsqueeze(-1)
        left = bottom = -right
    widths, heights, slopes = _constrain(
        params.to(dtype), tails, knots, min_width, min_height, min_slope, softclip, scale
    )
    knots_x, knots_y = _knots(widths, left, right), _knots(heights, bottom, top)
    edges = knots_y if inverse else knots_x
    inside = (x_t >= edges[..., 0]) & (x_t <= edges[..., -1])
    # The identity is chosen before the maths, so that the branch not taken has no gradient.
    x_in = torch.where(inside, x_t, (0.5 * (edges[..., 0] + edges[..., -1])).detach())
    bin_ = _bin(x_in, edges, knots_x, knots_y, slopes)
    y_in, logabsdet = _inverse(x_in, *bin_) if inverse else _forward(x_in, *bin_)
    y_in = _within(y_in, knots_x if inverse else knots_y)
    outside = x_t if tails != _NONE else torch.full_like(x_t, torch.nan)
    y_t = in_dtype(torch.where(inside, y_in, outside), x.dtype)
    logabsdet = torch.where(inside, logabsdet, outside * 0 if tails == _NONE else 0.0)
    if bound is not None:
        y_t, logabsdet = (torch.where(valid, value, torch.nan) for value in (y_t, logabsdet))
    logabsdet = logabsdet.sum(-1)
    y = y_t if index is None else x.index_copy(-1, index, y_t)
    return y, logabsdet


def _constrain(
    params: torch.Tensor,
    tails: int,
    knots: Any,
    min_width: float,
    min_height: float,
    min_slope: float,
    softclip: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shares of the width and of the height (…, K) and slopes at the knots (…, K + 1)."""
    bins = (params.shape[-1] + 1) // 3
    raw_widths, raw_heights, raw_slopes = params.split((bins, bins, params.shape[-1] - 2 * bins), dim=-1)
    widths = _shares(scale * raw_widths, min_width, knots, softclip)
    heights = _shares(scale * raw_heights, min_height, knots, softclip)
    if knots == _SOFTCLIP:
        slopes = torch.exp(raw_slopes / (1 + raw_slopes.abs() / softclip))
    else:
        slopes = min_slope + F.softplus(raw_slopes, threshold=40)
    if tails == _IDENTITY:
        slopes = F.pad(slopes, (1, 1), value=1.0)
    elif tails == _CIRCULAR:
        slopes = torch.cat((slopes, slopes[..., :1]), dim=-1)
    return widths, heights, slopes


def _shares(raw: torch.Tensor, minimum: float, knots: Any, softclip: float) -> torch.Tensor:
    if knots == _SOFTCLIP:
        raw = raw / (1 + 2 * raw.abs() / softclip)
    return minimum + (1 - minimum * size(raw, -1)) * torch.softmax(raw, dim=-1)


def _knots(shares: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
    """Knots (…, K + 1) from low to high, both ends exact."""
    inner = low + (high - low) * torch.cumsum(shares[..., :-1], dim=-1)
    low = torch.as_tensor(low, dtype=shares.dtype, device=shares.device).expand(*shares.shape[:-1], 1)
    high = torch.as_tensor(high, dtype=shares.dtype, device=shares.device).expand_as(low)
    return torch.cat((low, inner, high), dim=-1)


def _within(y: torch.Tensor, knots: torch.Tensor) -> torch.Tensor:
    """y put back into the interval that rounding may have left; its gradient as it was."""
    return y + (y.clamp(knots[..., 0], knots[..., -1]) - y).detach()


def _bin(
    x: torch.Tensor, knots: torch.Tensor, knots_x: torch.Tensor, knots_y: torch.Tensor, slopes: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """(x_k, w, y_k, h, p, r) of the bin that holds x; a knot belongs to the bin on its right."""
    k = (x.unsqueeze(-1) >= knots[..., 1:-1]).sum(-1, keepdim=True)

    def at(values: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return values.gather(-1, k).squeeze(-1)

    x_k, y_k = at(knots_x, k), at(knots_y, k)
    w, h = at(knots_x, k + 1) - x_k, at(knots_y, k + 1) - y_k
    return x_k, w, y_k, h, at(slopes, k), at(slopes, k + 1)


def _forward(
    x: torch.Tensor,
    x_k: torch.Tensor,
    w: torch.Tensor,
    y_k: torch.Tensor,
    h: torch.Tensor,
    p: torch.Tensor,
    r: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    theta = (x - x_k) / w
    s, beta = h / w, theta * (1 - theta)
    denominator = s + (p + r - 2 * s) * beta
    y = y_k + h * ((s * theta**2 + p * beta) / denominator)
    return y, _log_slope(theta, 1 - theta, s, p, r)


def _log_slope(
    theta: torch.Tensor, rest: torch.Tensor, s: torch.Tensor, p: torch.Tensor, r: torch.Tensor
) -> torch.Tensor:
    beta = theta * rest
    numerator = r * theta**2 + 2 * s * beta + p * rest**2
    denominator = s + (p + r - 2 * s) * beta
    return 2 * torch.log(s) + torch.log(numerator) - 2 * torch.log(denominator)


def _inverse(
    y: torch.Tensor,
    x_k: torch.Tensor,
    w: torch.Tensor,
    y_k: torch.Tensor,
    h: torch.Tensor,
    p: torch.Tensor,
    r: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve the quadratic in θ by the form of the README, in which nothing cancels."""
    s, eta = h / w, (y - y_k) / h
    a = p * (1 - eta) - r * eta
    size = (a.abs() + 2 * s).detach()  # its square may overflow
    root = size * torch.sqrt((a / size) ** 2 + (2 * s / size) ** 2 * eta * (1 - eta))
    from_left = 2 * s * eta / _nonzero(root + 2 * s * eta + a, a >= 0)
    from_right = 2 * s * (1 - eta) / _nonzero(root + 2 * s * (1 - eta) - a, ~(a >= 0))
    theta = torch.where(a >= 0, from_left, 1 - from_right)
    rest = torch.where(a >= 0, 1 - from_left, from_right)  # 1 − θ, which a steep slope multiplies
    return x_k + theta * w, -_log_slope(theta, rest, s, p, r)


def _nonzero(value: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """value where it is used, else 1, so that the branch not taken has a finite gradient."""
    return torch.where(used, value, torch.ones_like(value))


def backward(
    grad_y: torch.Tensor, grad_logabsdet: Any, x: Any, params: Any, *arguments: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The vector-Jacobian product of `forward` by autograd."""
    _, pull, *_ = torch.func.vjp(lambda x, p: forward(x, p, *arguments), x, params)
    return pull((grad_y, grad_logabsdet))
