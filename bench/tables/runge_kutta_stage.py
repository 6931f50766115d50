"""Tables of the Runge-Kutta stages: 64 features, one set of weights; sums of 4 (rk4) and of 6 stages (dopri5).

"stage" is the state y + Σ_j w_j k_j, "error" the norm of a step's error. By hand are the expressions of
torchdiffeq: one matrix product with the stages, which are kept in one tensor and need no gathering.
"""

import itertools

import torch

from bench import ops
from bench.harness import Candidate, Table
from flowkern.ops import runge_kutta_error, runge_kutta_stage

FEATURES, STREAMING, RTOL, ATOL = 64, 65536, 1e-3, 1e-6
WORKS = {"stage": (4, 6), "error": (6,)}


QUICK = {"batches": (1, 64), "compiled": ()}


def on_gpu(dry_run, compiled):
    return {"batches": (3,) if dry_run else (64, 2048, 2**18), "compiled": compiled}


def tables(batches=(64, 2048, STREAMING), compiled=("compile",)):
    """One Table for each work, number of stages and batch size."""
    for batch, work in itertools.product(batches, WORKS):
        for stages in WORKS[work]:
            moved = 4 * batch * ((stages + 2) * FEATURES + (work == "error"))
            sets = ops.STREAMING_BYTES // moved + 2 if batch == STREAMING else 1
            yield Table(
                f"runge_kutta_{work}-{stages}-{batch}",
                f"runge_kutta_{work}, {stages} stages, N={batch}, {ops.memory(moved, sets)}",
                lambda batch=batch, stages=stages, sets=sets: [_inputs(batch, stages) for _ in range(sets)],
                (*ops.chosen(_candidates(work), compiled), ops.limit(moved)),
            )


def _inputs(batch, stages):
    """y, y1, k as one tensor (N, D, s), its stages one by one, and weights."""
    y, y1, *k = torch.randn(stages + 2, batch, FEATURES).unbind()
    return [y, y1, torch.stack(k, -1), torch.randn(stages), *k]


def _candidates(work):
    fused, by_hand = {"stage": (_stage, _stage_by_hand), "error": (_error, _error_by_hand)}[work]
    plain = lambda dtype: by_hand  # noqa: E731
    yield Candidate("flowkern", lambda inputs: fused, plain)
    yield Candidate("eager", lambda inputs: by_hand, plain)
    yield Candidate("compile(eager)", lambda inputs: ops.compile_(by_hand), plain)


def _stage(y, y1, together, weights, *k):
    return (runge_kutta_stage(y, k, weights),)


def _error(y, y1, together, weights, *k):
    return (runge_kutta_error(y, y1, k, weights, RTOL, ATOL),)


def _stage_by_hand(y, y1, together, weights, *k):
    return (y + together.matmul(weights),)


def _error_by_hand(y, y1, together, weights, *k):
    tolerance = ATOL + RTOL * torch.maximum(y.abs(), y1.abs())
    return ((together.matmul(weights) / tolerance).square().sum(-1),)
