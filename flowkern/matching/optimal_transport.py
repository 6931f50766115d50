"""Pairings of two batches by optimal transport under the squared Euclidean distance."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch


def require_pot() -> Callable:
    """`ot.emd`, POT's solver; an error that says what to install where it is missing."""
    try:
        from ot import emd
    except ImportError as error:
        raise ImportError("coupling 'ot' needs the package POT: pip install pot") from error
    return emd


@torch.no_grad()
def exact_pairing(x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
    """An index (N,) into x0 for each x1[j], by a plan that minimises Σ P_ij |x0_i − x1_j|², from POT's network simplex.

    Between batches of one size an optimal plan is a permutation (Birkhoff), so every sample is
    used once. torchcfm draws N pairs from the same plan with replacement: that has the same
    expectation, but leaves out about a third of the samples, N/e, and repeats others. Between batches of other
    sizes x0 is drawn from the plan given j.

    Args:
        x0, x1: (M, …), (N, …), on any device; the plan is computed on the CPU in float64, in about N³ steps.

    Raises:
        ValueError: the shapes of samples differ, x0 has none, or a sample is not finite.
        ImportError: POT is not installed.

    Example:
        >>> import torch
        >>> from flowkern import matching
        >>> matching.exact_pairing(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))
        tensor([1, 0])
    """
    cost = _squared_distances(x0, x1).cpu()
    if not cost.isfinite().all():
        raise ValueError("x0, x1: expected finite samples, whose squared distances are finite too")
    if cost.numel() == 0:  # which crashes POT
        return torch.empty(0, dtype=torch.int64, device=x1.device)
    plan = torch.from_numpy(require_pot()([], [], cost.numpy(), numItermax=10_000_000))
    if plan.shape[0] == plan.shape[1]:
        return plan.argmax(0).to(x1.device)
    return torch.multinomial(plan.mT.contiguous(), 1).squeeze(1).to(x1.device)


@torch.no_grad()
def sinkhorn_pairing(
    x0: torch.Tensor, x1: torch.Tensor, epsilon: float | None = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """An index (N,) into x0 for each x1[j], drawn from the entropic plan given j.

    The plan minimises Σ P_ij |x0_i − x1_j|² + ε Σ P_ij ln P_ij over P ≥ 0 with marginals 1/M, 1/N. It is not
    the optimal plan but a blurred one, and reaches that only as ε → 0: x1 is used once each, x0
    about evenly, some of it twice or not at all. It stays on the tensors' device; one number is read back every
    ten iterations.

    Args:
        x0, x1: (M, …), (N, …).
        epsilon: ε > 0. Default: 5 % of the mean cost.
        generator: for the draws.

    Raises:
        ValueError: the shapes of samples differ, x0 has none, or epsilon is not a finite number above 0.

    Warns:
        UserWarning: after 5000 iterations the row sums are still off by more than 1 % on average.

    Source: Cuturi, Sinkhorn distances: lightspeed computation of optimal transport (2013); Schmitzer, Stabilized
    sparse scaling algorithms for entropy regularized transport problems (2019), ε-scaling.

    Example:
        >>> import torch
        >>> from flowkern import matching
        >>> matching.sinkhorn_pairing(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]), epsilon=0.1)
        tensor([1, 0])
    """
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: expected a finite number above 0, got {epsilon}")
    cost = _squared_distances(x0, x1)
    if cost.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=x1.device)
    logits = sinkhorn_log_plan(cost, epsilon)
    return torch.multinomial(logits.softmax(dim=0).mT, 1, generator=generator).squeeze(1)


_ROUND = 10  # iterations between two of which the row sums are looked at


def sinkhorn_log_plan(
    cost: torch.Tensor, epsilon: Any = None, tolerance: float = 1e-2, iterations: int = 5_000
) -> torch.Tensor:
    """ln P (M, N) by Sinkhorn's algorithm: ε is halved from the largest cost to its value, 10 iterations for each.

    There it goes on until the row sums are off by no more than tolerance on average, relative to 1/M; the column
    sums are exact. A `UserWarning` says so if that takes more iterations.
    """
    highest = cost.max().clamp(min=torch.finfo(cost.dtype).tiny)  # 0 where all are the same
    epsilon = 0.05 * cost.mean().clamp(min=torch.finfo(cost.dtype).tiny) if epsilon is None else epsilon
    epsilon = float(epsilon)
    halvings = max(0, math.ceil(math.log2(float(highest) / epsilon)))
    of_row, of_column = torch.zeros_like(cost[:, 0]), torch.zeros_like(cost[0])
    for scale in (2.0**n for n in range(halvings, 0, -1)):
        of_row, of_column, _ = _round(-cost / (epsilon * scale), of_row, of_column)
        of_row, of_column = 2 * of_row, 2 * of_column  # they are potentials over ε
    logits, off = -cost / epsilon, math.inf
    for _ in range(0, iterations, _ROUND):
        of_row, of_column, each = _round(logits, of_row, of_column)
        if (off := float(each)) <= tolerance:
            break
    else:
        warnings.warn(
            f"sinkhorn: after {iterations} iterations the row sums are off by {off:.1e} on average; samples of x0 "
            "are drawn unevenly; a larger epsilon (for a bridge, sigma) converges sooner",
            stacklevel=2,
        )
    return logits + of_row.unsqueeze(1) + of_column


def _round(
    logits: torch.Tensor, of_row: torch.Tensor, of_column: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some iterations: the first by logarithms, so that nothing is lost, the others by products with the plan so far.

    Returns the new logarithms of row and column factors, and how far the row sums are off on average.
    """
    rows, columns = 1 / len(of_row), 1 / len(of_column)
    of_row = math.log(rows) - (logits + of_column).logsumexp(1)
    of_column = math.log(columns) - (logits + of_row.unsqueeze(1)).logsumexp(0)
    plan, u, v = (logits + of_row.unsqueeze(1) + of_column).exp(), torch.ones_like(of_row), torch.ones_like(of_column)
    tiny = torch.finfo(plan.dtype).tiny
    for _ in range(_ROUND - 1):
        u = rows / (plan @ v).clamp(min=tiny)
        v = columns / (plan.mT @ u).clamp(min=tiny)
    off = (u * (plan @ v) / rows - 1).abs().mean()
    return of_row + u.log(), of_column + v.log(), off


def _squared_distances(x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
    if x0.shape[1:] != x1.shape[1:]:
        raise ValueError(f"x0: expected samples of shape {tuple(x1.shape[1:])}, got {tuple(x0.shape[1:])}")
    if len(x0) == 0 < len(x1):
        raise ValueError(f"x0: expected at least one sample, to be paired with {len(x1)}")
    x0, x1 = (x.reshape(len(x), x.shape[1:].numel()).double() for x in (x0, x1))
    return torch.cdist(x0, x1).square()
