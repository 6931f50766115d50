"""Stages of explicit Runge-Kutta methods: y + Σ_j w_j k_j in one pass, and the error of a step."""

from collections.abc import Sequence

import torch

from flowkern import backends
from flowkern.ops._runge_kutta_stage.function import apply, error
from flowkern.ops._runge_kutta_stage.native import KERNELS

__all__ = ["runge_kutta_error", "runge_kutta_stage"]


def runge_kutta_stage(y: torch.Tensor, k: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """y + Σ_j w_j k_j, or y_n + Σ_j w_nj k_nj with weights of their own for the rows n of y.

    The weights are those of a tableau times the step, w_j = h a_ij.

    Args:
        y: (N, …) or (), float32/float64; other dtypes, complex too, run the plain formula.
        k: tensors of y's shape and dtype; where there are more than eight, PyTorch sums those beyond
            the seventh first.
        weights: (s,) or (N, s) for s tensors k, of y's dtype (complex y: of its real dtype).

    Returns:
        A tensor of y's shape and dtype, differentiable in y, k and weights.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the chosen backend cannot run here.

    Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I (1993), II.1.

    Example:
        >>> import torch
        >>> from flowkern import ops
        >>> ops.runge_kutta_stage(torch.zeros(2), [torch.ones(2), torch.ones(2)], torch.tensor([0.5, 0.25]))
        tensor([0.7500, 0.7500])
    """
    return apply(y, k, weights, backends.resolve(y.device.type, KERNELS))


def runge_kutta_error(
    y0: torch.Tensor,
    y1: torch.Tensor,
    k: Sequence[torch.Tensor],
    weights: torch.Tensor,
    rtol: float | torch.Tensor,
    atol: float | torch.Tensor,
) -> torch.Tensor:
    """Σ_d (e/(atol + rtol·max(|y0|, |y1|)))² for each row, of the error e = Σ_j w_j k_j of a step.

    NaN where y1 is not finite. It controls steps and is not differentiable.

    Args:
        y0, y1: (N, …) or (), the states before and after the step.
        k, weights: as `runge_kutta_stage` takes them.
        rtol, atol: numbers, or tensors that broadcast with y0.

    Returns:
        (N,), or (1,) for a y0 of shape (), of y0's real dtype.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the chosen backend cannot run here.

    Source: Hairer, Nørsett, Wanner, eqs. II.4.10-4.11.

    Example:
        >>> import torch
        >>> from flowkern import ops
        >>> y, k = torch.zeros(1, 2), torch.ones(1, 2)
        >>> ops.runge_kutta_error(y, y, [k], torch.tensor([0.1]), rtol=0.0, atol=0.1)
        tensor([2.])
    """
    return error(y0, y1, k, weights, rtol, atol, backends.resolve(y0.device.type, KERNELS))
