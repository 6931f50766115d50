"""y = scale(u)·x + shift on the transformed features, with log-det Σ log|scale|."""

import torch

from flowkern import backends
from flowkern.ops import _arguments
from flowkern.ops._affine_coupling.function import apply
from flowkern.ops._affine_coupling.native import KERNELS
from flowkern.ops._affine_coupling.scale_map import SCALE_MAPS, ScaleMap

__all__ = ["SCALE_MAPS", "ScaleMap", "affine_coupling"]


def affine_coupling(
    x: torch.Tensor,
    params: torch.Tensor,
    *,
    index: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    scale_map: ScaleMap | str = "exp",
    scale_first: bool = False,
    inverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y_t = s(u_t)·x_t + b_t and log|det J| = Σ_t log s(u_t); inverse x_t = (y_t − b_t)/s(u_t).

    Features that are not transformed are copied. The parameters are read where they lie, by their
    strides: for a conditioner output p (…, 2T) that is chunked as [b | u] pass
    `p.unflatten(-1, (2, T)).mT`, for one interleaved as b₀ u₀ b₁ u₁ … `p.unflatten(-1, (T, 2))`.

    Args:
        x: (…, D), float32/float64, or float16/bfloat16 (computed in float32).
        params: (…, T, 2) holding [shift b, raw scale u], or (…, T, 1) holding the shift alone when
            `scale_map` is "additive". Batch dimensions broadcast with those of x.
        index: int64 (T,), the transformed features in the order of params. Default: all D.
        mask: bool (D,), True at the transformed features, instead of `index`.
        scale_map: a name in `SCALE_MAPS` or a `ScaleMap`.
        scale_first: whether params holds [u, b] instead of [b, u].
        inverse: compute x from y instead.

    Returns:
        y (…, D) of x's dtype, and logabsdet (…,) in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        RuntimeError: the chosen backend cannot run here; or compiled code for the CPU finds an entry of
            index or mask wrong. On a GPU, where looking at them would wait, the log-det is NaN then.

    Source: Dinh et al., Density estimation using Real NVP (2017), eqs. 7–8; NICE (2015), eq. 8.

    Example:
        >>> import torch
        >>> from flowkern import ops
        >>> x, params = torch.ones(4, 3), torch.zeros(4, 2, 2)  # two of three features: shift 0, scale exp 0
        >>> y, logabsdet = ops.affine_coupling(x, params, index=torch.tensor([0, 2]))
        >>> y.shape, logabsdet
        (torch.Size([4, 3]), tensor([0., 0., 0., 0.]))
    """
    _arguments.check_tensors(x, params)
    scale_map = ScaleMap.of(scale_map)
    _check_params(params, scale_map)
    index = _arguments.resolve_index(index, mask, x, params.shape[-2])
    backend = backends.resolve(x.device.type, KERNELS, _arguments.half(x, params))
    flat_x, flat_params, batch = _arguments.flatten(x, params)
    code, *numbers = scale_map.numbers()
    plain = bool(inverse), bool(scale_first), code, *_arguments.constants(*numbers)
    y, logabsdet = apply(backend, plain, flat_x, flat_params, index)
    return _arguments.unflatten(y, logabsdet, batch)


def _check_params(params: torch.Tensor, scale_map: ScaleMap) -> None:
    wanted = 1 if scale_map.kind == "additive" else 2
    if params.shape[-1] != wanted:
        raise ValueError(
            f"params: scale_map {scale_map.kind!r} takes {wanted} parameter(s) per feature in the "
            f"last dimension, got shape {tuple(params.shape)}"
        )
