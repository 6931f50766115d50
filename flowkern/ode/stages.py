"""The stages of a step, by a tableau without its zeros."""

import functools
from typing import NamedTuple

import torch

from flowkern.ops import runge_kutta_stage


class Stages(NamedTuple):
    """What each stage after the first, the step and the error combine, and with which weights.

    Attributes:
        rows: for each stage after the first the numbers of the stages before it that it needs.
        step, error: likewise for the new state and for the error (of adaptive methods).
        coefficients: their weights: of each row, of `step` and of `error`.
        sizes: how many weights each of these has.
        ends: whether the new state is that at which the last stage is evaluated.
    """

    rows: tuple
    step: tuple
    error: tuple
    coefficients: tuple
    sizes: tuple
    ends: bool


def of(method):
    """The `Stages` of a tableau."""
    combinations = (*method.a[1:], method.b, method.b_error or ())
    used = [tuple(j for j, weight in enumerate(row) if weight != 0) for row in combinations]
    coefficients = tuple(tuple(row[j] for j in u) for row, u in zip(combinations, used))
    ends = (*method.a[-1], 0.0) == method.b
    return Stages(tuple(used[:-2]), used[-2], used[-1], coefficients, tuple(map(len, used)), ends)


def coefficients(method, dtype, device):
    """All weights in one tensor, made once: where CUDA graphs are captured, nothing may be copied."""
    make = _coefficients.__wrapped__ if torch.compiler.is_compiling() else _coefficients
    return make(method, dtype, device)


@functools.cache
def _coefficients(method, dtype, device):
    weights = [weight for row in of(method).coefficients for weight in row]
    with torch.inference_mode(False):  # they are kept, also for calls that need gradients
        return torch.tensor(weights, dtype=dtype, device=device)


def combined(y, k, used, weights):
    """y + Σ w_j k_j over the stages that are used."""
    if len(used) == 1 and weights.dim() == 1:  # there is nothing to fuse
        return torch.addcmul(y, k[used[0]], weights[0])
    return runge_kutta_stage(y, [k[j] for j in used], weights)


def evaluate(func, y, first, times, stages, weights):
    """All stages k from the first, and the state after the step."""
    k, state = [first], y
    for used, t, w in zip(stages.rows, times, weights):
        state = combined(y, k, used, w)
        k.append(func(t, state))
    return k, state if stages.ends else combined(y, k, stages.step, weights[-2])
