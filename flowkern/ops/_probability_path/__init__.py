"""Points x_t of a path from x0 to x1 and their velocities u_t, with the random numbers they take."""

import math
import numbers
from typing import Any

import torch

from flowkern import backends
from flowkern.ops._arguments import check_tensor, compute_dtype, constants
from flowkern.ops._probability_path.function import apply, draws_noise
from flowkern.ops._probability_path.kinds import PATHS
from flowkern.ops._probability_path.native import KERNELS

__all__ = ["PATHS", "probability_path"]


def probability_path(
    x0: torch.Tensor | None,
    x1: torch.Tensor,
    t: torch.Tensor | None = None,
    *,
    path: str = "conditional",
    sigma: float | torch.Tensor = 0.0,
    noise: torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t = α(t)·x0 + β(t)·x1 + σ(t)·ε and u_t = dx_t/dt, the regression target of flow matching.

    | path | α, β | σ(t) |
    |---|---|---|
    | conditional | 1 − t, t | σ |
    | target | 0, t | 1 − (1 − σ)·t |
    | variance_preserving | cos πt/2, sin πt/2 | σ |
    | schroedinger_bridge | 1 − t, t | σ·√(t(1 − t)) |

    t and ε are drawn in the same kernel unless they are given. They are a function of the seed and of
    the place in (N, D), the same on every backend: t uniform in (0, 1), ε ~ N(0, 1). Differentiable
    in x0, x1 and a given t.

    Args:
        x0: (N,) or (N, …), of the source; float32/float64, or float16/bfloat16 (computed in float32). "target"
            does not look at it, its source is ε: None will do.
        x1: like x0, of the data.
        t: (N,), in [0, 1].
        path: a name in `PATHS`.
        sigma: σ ≥ 0, a number, NumPy's too, or a tensor of one that requires no gradient.
        noise: ε, like x0.
        seed: an int64, as a number or as a tensor without dimensions on x1's device. Default: drawn
            from torch's generator there, so that `torch.manual_seed` makes it reproducible.

    Returns:
        t (N,), as given or in float32 (float64 for float64 inputs); x_t and u_t like x0 and x1.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        RuntimeError: the chosen backend cannot run here.

    Source: Tong et al., Improving and generalizing flow-based generative models with minibatch
    optimal transport (2024), table 1; Lipman et al., Flow matching for generative modeling (2023),
    eqs. 20–21; Albergo and Vanden-Eijnden, Building normalizing flows with stochastic interpolants
    (2023), eq. 5.

    Example:
        >>> import torch
        >>> from flowkern import ops
        >>> t, x_t, u_t = ops.probability_path(torch.zeros(4, 2), torch.ones(4, 2), torch.full((4,), 0.25))
        >>> x_t[0], u_t[0]
        (tensor([0.2500, 0.2500]), tensor([1., 1.]))
    """
    sigma = check_sigma(sigma)
    _check(x0, x1, t, path, noise)
    if path == "target":
        x0 = x1.detach()  # never read, nor differentiated
    assert x0 is not None
    if path == "schroedinger_bridge" and sigma == 0:
        path = "conditional"  # the same, but for 0·∞ in the derivative by t at the ends
    backend = backends.resolve(x1.device.type, KERNELS)
    dtype = compute_dtype(x0, x1)
    ends = (_rows(v.to(dtype)) for v in (x0, x1))
    noise = None if noise is None else _rows(noise.to(dtype))
    given_t = None if t is None else t.to(dtype)
    if seed is None and t is not None and (noise is not None or not draws_noise(PATHS[path], sigma)):
        seed = 0  # for nothing is drawn
    plain = PATHS[path], *constants(sigma)
    x_t, u_t, drawn = apply(backend, plain, *ends, given_t, noise, _seed(seed, x1.device))
    if x_t.shape != x1.shape or x_t.dtype is not x0.dtype or x0.dtype is not x1.dtype:
        shape, dtype = x1.shape, torch.promote_types(x0.dtype, x1.dtype)
        x_t, u_t = x_t.to(dtype).reshape(shape), u_t.to(dtype).reshape(shape)
    return drawn if t is None else t, x_t, u_t


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(1) if x.dim() == 1 else x.flatten(1)


def _check(x0, x1, t, path, noise):
    if not isinstance(path, str) or path not in PATHS:
        raise ValueError(f"path: expected one of {', '.join(PATHS)}, got {path!r}")
    _check_tensor("x1", x1)
    if x1.dim() < 1 or 0 in x1.shape[1:]:
        raise ValueError(f"x1: expected shape (N,) or (N, features, …), got {tuple(x1.shape)}")
    if path != "target" or x0 is not None:
        _check_tensor("x0", x0, x1, x1.shape)
    if t is not None:
        _check_tensor("t", t, x1, x1.shape[:1])
    if noise is not None:
        _check_tensor("noise", noise, x1, x1.shape)
        if noise.requires_grad:
            raise ValueError("noise: no gradient flows to it; expected a tensor that requires none")


def check_sigma(sigma: Any) -> float:
    """σ as a float; raise unless it is a finite number, 0 or more."""
    if isinstance(sigma, torch.Tensor):
        if sigma.requires_grad:
            raise ValueError("sigma: no gradient flows to it; expected a number")
        sigma = sigma.item() if sigma.numel() == 1 and not sigma.is_complex() else sigma
    if isinstance(sigma, bool) or not isinstance(sigma, numbers.Real) or not 0 <= float(sigma) < math.inf:
        raise ValueError(f"sigma: expected a finite number, 0 or more, got {sigma!r}")
    return float(sigma)


def _check_tensor(
    name: str, tensor: torch.Tensor, like: torch.Tensor | None = None, shape: torch.Size | None = None
) -> None:
    check_tensor(name, tensor, like, of="x1")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _seed(seed: Any, device: torch.device) -> torch.Tensor:
    """The seed as an int64 tensor on the device, which does not wait for the device."""
    if seed is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, torch.Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0 or seed.device != device:
            got = f"{seed.dtype} {tuple(seed.shape)} on {seed.device}"
            raise ValueError(f"seed: expected int64 without dimensions on {device}, got {got}")
        return seed
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an int64, got {seed!r}")
    return torch.full((), seed, dtype=torch.int64, device=device)
