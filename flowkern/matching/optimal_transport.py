"""Pairings of two batches by optimal transport under the squared Euclidean distance."""

import math

import torch


def require_pot():
    """`ot.emd`, POT's solver; an error that says what to install where it is missing."""
    try:
        from ot import emd
    except ImportError as error:
        raise ImportError("coupling 'ot' needs the package POT: pip install pot") from error
    return emd


@torch.no_grad()
def exact_pairing(x0, x1):
    """The permutation p (N,) that minimises Σ_i |x0[p_i] − x1[i]|², by POT's network simplex.

    Between batches of equal weights an optimal plan is a permutation (Birkhoff), so every sample is
    used once. torchcfm draws N pairs from the same plan with replacement: that has the same
    expectation, but leaves out about a third of the samples, N/e, and repeats others.

    Args:
        x0, x1: (N, …), on any device; the plan is computed on the CPU in float64, in about N³ steps.

    Raises:
        ValueError: the shapes differ, or a sample is not finite.
        ImportError: POT is not installed.
    """
    cost = _squared_distances(x0, x1).cpu()
    if not cost.isfinite().all():
        raise ValueError("x0, x1: expected finite samples, whose squared distances are finite too")
    if len(cost) == 0:  # which crashes POT
        return torch.empty(0, dtype=torch.int64, device=x1.device)
    plan = require_pot()([], [], cost.numpy(), numItermax=10_000_000)
    return torch.from_numpy(plan.argmax(axis=0)).to(x1.device)


@torch.no_grad()
def sinkhorn_pairing(x0, x1, epsilon=None, generator=None):
    """An index (N,) into x0 for each x1[j], drawn from the entropic plan given j.

    The plan minimises Σ P_ij |x0_i − x1_j|² + ε Σ P_ij ln P_ij over P ≥ 0 with marginals 1/N. It is not
    the optimal plan but a blurred one, and reaches that only as ε → 0: x1 is used once each, x0
    about evenly, some of it twice or not at all. It stays on the tensors' device.

    Args:
        x0, x1: (N, …).
        epsilon: ε > 0. Default: 5 % of the mean cost.
        generator: for the draws.

    Raises:
        ValueError: the shapes differ, or epsilon is not above 0.

    Source: Cuturi, Sinkhorn distances: lightspeed computation of optimal transport (2013).
    """
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon: expected a number above 0, got {epsilon}")
    cost = _squared_distances(x0, x1)
    if len(cost) == 0:
        return torch.empty(0, dtype=torch.int64, device=x1.device)
    logits = sinkhorn_log_plan(cost, epsilon)
    return torch.multinomial(logits.softmax(dim=0).mT, 1, generator=generator).squeeze(1)


def sinkhorn_log_plan(cost, epsilon=None, iterations=100):
    """ln P (N, N) after so many steps of Sinkhorn's algorithm, by logarithms, so nothing underflows.

    The last step sets the column sums, which are exact; the row sums are as far off as the algorithm
    is from convergence.
    """
    if epsilon is None:
        epsilon = (0.05 * cost.mean()).clamp(min=torch.finfo(cost.dtype).tiny)  # 0 where all are the same
    logits, uniform = -cost / epsilon, -math.log(len(cost))
    of_row = of_column = torch.zeros_like(cost[:, 0])
    for _ in range(iterations):
        of_row = uniform - (logits + of_column).logsumexp(1)
        of_column = uniform - (logits + of_row.unsqueeze(1)).logsumexp(0)
    return logits + of_row.unsqueeze(1) + of_column


def _squared_distances(x0, x1):
    if x0.shape != x1.shape:
        raise ValueError(f"x0: expected shape {tuple(x1.shape)}, got {tuple(x0.shape)}")
    return torch.cdist(x0.flatten(1).double(), x1.flatten(1).double()).square()
