"""Named calls of the probability path, and their comparison with the float64 reference."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

import flowkern
from flowkern.ops import probability_path
from flowkern.ops._probability_path import PATHS
from tests.cases import coupling
from tests.cases.tensors import generator_of, moved
from tests.tolerances import assert_within, errors

LABEL = "path"
# Most units. Measured worst over all cases and quantities on cpu: 0.94 and 6.8. In float64 the
# reference has no better arithmetic at hand, and its own angle 2πv is as wrong as the kernel's sine.
TOLERANCES = {torch.float32: 2, torch.float64: 16}
SEED = -123456789012345678


@dataclass(frozen=True)
class Case:
    """One call; `given` says whether t and noise are passed or drawn."""

    path: str = "conditional"
    sigma: float = 0.3
    batch: int = 63
    shape: tuple = (5,)
    given: bool = False

    def tensors(self, dtype=torch.float32, seed=0, device="cpu"):
        """x0, x1, t and noise, both None where they are drawn."""
        generator = generator_of(seed)
        x0, x1, noise = (
            torch.randn(self.batch, *self.shape, generator=generator, dtype=dtype).to(device) for _ in range(3)
        )
        t = torch.rand(self.batch, generator=generator, dtype=dtype).to(device)
        return x0, x1, *((t, noise) if self.given else (None, None))

    def __call__(self, x0, x1, t, noise, seed=SEED):
        return probability_path(x0, x1, t, path=self.path, sigma=self.sigma, noise=noise, seed=seed)


CASES = {
    **{
        f"{path}{' exact' * (sigma == 0)}{' given' * given}": Case(path, sigma, given=given)
        for path in PATHS
        for sigma in (0.0, 0.3)
        for given in (False, True)
    },
    "empty": Case(batch=0),
    "one element": Case(batch=1, shape=(1,)),
    "one feature": Case("schroedinger_bridge", batch=1023, shape=(1,)),
    "two features": Case("variance_preserving", batch=1023, shape=(2,)),
    "whole blocks": Case("target", batch=6, shape=(64,)),
    "long rows": Case(batch=3, shape=(1023,)),
    "images": Case("schroedinger_bridge", batch=5, shape=(3, 4, 5)),
}
# More blocks than one, of 512 elements each.
EDGES = {"rows-257": Case("target", batch=257, shape=(3,))}


class Result(NamedTuple):
    """What the op computes, and the gradients of <cotangents, (x_t, u_t)>."""

    t: torch.Tensor
    x_t: torch.Tensor
    u_t: torch.Tensor
    grad_x0: torch.Tensor
    grad_x1: torch.Tensor
    grad_t: torch.Tensor


def evaluate(case, x0, x1, t, noise, grads, backend):
    """The `Result` on `backend`; a gradient that is None is returned as zeros."""
    leaves = [v.detach().requires_grad_() for v in (x0, x1, *(() if t is None else (t,)))]
    with flowkern.backend(backend):
        t_out, x_t, u_t = case(*leaves[:2], None if t is None else leaves[2], noise)
        total = (grads[0] * x_t).sum() + (grads[1] * u_t).sum()
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    found = [torch.zeros_like(v) if g is None else g for v, g in zip(leaves, found)]
    grad_t = found[2] if len(found) > 2 else x0.new_zeros(0)
    return Result(*(v.detach() for v in (t_out, x_t, u_t)), *found[:2], grad_t)


def results(case, backend, dtype, seed=0, device="cpu"):
    """All results of a backend."""
    return evaluate(case, *_inputs(case, dtype, seed, device), backend)


def _inputs(case, dtype, seed, device):
    """What `evaluate` takes between the case and the backend."""
    inputs = case.tensors(dtype, seed, device)
    generator = generator_of(seed + 1)
    grads = [torch.randn(inputs[0].shape, generator=generator, dtype=dtype).to(device) for _ in range(2)]
    return *inputs, grads


def check(case, backend, dtype, seed=0, device="cpu"):
    """Raise AssertionError unless `backend` agrees with the float64 reference on `case`.

    A unit of an element is what the reference makes of it in `dtype` when x0, x1 and the cotangents
    move by one rounding, and one rounding of the result; the largest of a row counts.
    """
    *inputs, grads = _inputs(case, dtype, seed, device)
    got = evaluate(case, *inputs, grads, backend)
    wide = [None if v is None else v.double() for v in inputs]
    want = evaluate(case, *wide, [g.double() for g in grads], "reference")
    rounding = _roundings(case, inputs, grads, want)
    assert torch.equal(got.t, want.t.to(dtype)), f"{case} on {backend}, {dtype}: t"
    for quantity, g, w, r in list(zip(got._fields, got, want, rounding))[1:]:
        assert g.shape == w.shape and g.dtype == dtype
        units = errors(*(v.reshape(*v.shape[:1], math.prod(v.shape[1:])) for v in (g, w, r)), by_row=True)
        worst = units.max().item() if units.numel() else 0.0
        assert_within(worst, TOLERANCES[dtype], f"{case} on {backend}, {dtype}: {quantity}")


def _roundings(case, inputs, grads, want):
    strays = [torch.zeros_like(w) for w in want]
    copies = [moved(v, coupling.SAMPLES, seed) for seed, v in enumerate((*inputs[:2], *grads))]
    for x0, x1, *others in zip(*copies):
        result = evaluate(case, x0, x1, *inputs[2:], others, "reference")
        strays = [torch.maximum(s, (r.double() - w).abs()) for s, r, w in zip(strays, result, want)]
    return strays
