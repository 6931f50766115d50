"""Checks of the couplings on a GPU, see tests/gpu/gate."""

import functools
import itertools
from dataclasses import replace

import torch

import flowkern
from tests import tolerances
from tests.cases import coupling
from tests.gpu.gate import checks, large

# (rows, features of x, transformed ones), about the edges of warps, blocks, tiles and segments
ODD = (
    (1, 1, 1), (2, 3, 2), (31, 7, 7), (33, 1, 1), (127, 33, 16), (129, 5, 5), (257, 64, 31),
    (1025, 3, 3), (4099, 32, 32), (65537, 2, 1), (100003, 7, 3), (2, 1201, 600), (3, 600, 600),
)  # fmt: skip
HALVES = (
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float64),
)  # fmt: skip
# (features of x, transformed ones) of coupling calls with so many elements of x or of params
COUPLINGS = {"x": (4099, 2), "params": (46, 46)}


def groups(op):
    """{group: function(gate) -> checks}."""
    every = {"named": _named, "odd sizes": _odd, "half precision": _halves, "spread": _spread, "large": _large}
    return {group: functools.partial(function, op) for group, function in every.items()}


def _both_ways(case, gate, dtype, params_dtype=None):
    """Checks of the two directions, as functions of the backend and a seed."""
    for inverse in (False, True):

        def check(backend, seed, inverse=inverse):
            x, params = case.tensors(dtype, params_dtype=params_dtype, inverse=inverse, seed=seed, device=gate.device)
            coupling.check_at(case, backend, x, params, inverse=inverse)
            checks.same_twice(case, lambda: coupling.evaluate(case, x, params, backend=backend, inverse=inverse))

        yield check


def _named(op, gate):
    chosen = list(coupling.NAMED[op].values())
    for case, dtype in itertools.product(chosen[:3] if gate.dry_run else chosen, checks.WIDE):
        yield from _both_ways(_small(case) if gate.dry_run else case, gate, dtype)


def _odd(op, gate):
    for rows, width, features in ODD[:4] if gate.dry_run else ODD:
        select = "all" if width == features else "index"
        case = replace(coupling.TYPICAL[op], batch=(rows,), width=width, features=features, select=select)
        for dtype in checks.WIDE:
            yield from _both_ways(case, gate, dtype)


def _halves(op, gate):
    for dtypes in HALVES[:1] if gate.dry_run else HALVES:
        case = replace(coupling.TYPICAL[op], batch=(19 if gate.dry_run else 4099,))
        yield from _both_ways(case, gate, *dtypes)


def _spread(op, gate):
    """Raw parameters far from the usual: narrow bins, steep slopes, huge and tiny scales."""
    case = replace(coupling.TYPICAL[op], batch=(19 if gate.dry_run else 20000,), spread=6.0)
    yield from _both_ways(case, gate, torch.float32)


def smoke(op, gate):
    """The large one has the features of `bench.gpu.own`, so that Triton compiles once for both."""
    odd = replace(coupling.TYPICAL[op], batch=(129,))
    large = replace(odd, name="large", batch=(2**14,), width=64, features=64, select="all")
    return checks.smoke(odd, large, gate)


def _large(op, gate):
    for what, (width, features) in COUPLINGS.items():
        select = "all" if width == features else "index"
        case = replace(coupling.TYPICAL[op], name=f"large {what}", width=width, features=features, select=select)
        for inverse in (False, True):
            yield lambda backend, seed, c=case, i=inverse: _check_large(c, backend, seed, gate, i)


def _check_large(case, backend, seed, gate, inverse):
    parameters = case.features * case.per_feature
    widest = max(case.width, parameters)
    rows = large.rows_of(f"{case.op} {case.name}", gate, widest, 4 * case.width + 2 * parameters + 2)
    torch.manual_seed(seed)
    with torch.device(gate.device):
        x, grad_y = (torch.randn(rows, case.width) for _ in range(2))
        params = torch.randn(rows, case.features, case.per_feature)
        grad_logabsdet = torch.randn(rows)
    x, params = x.requires_grad_(), params.requires_grad_()
    grads = grad_y, grad_logabsdet
    with flowkern.backend(backend):
        outputs = case(x, params, inverse=inverse)
        got = (*outputs, *torch.autograd.grad(outputs, (x, params), grads))
    some = large.some_of(rows, widest, gate)
    x, params, *grads = (t.detach()[some] for t in (x, params, *grads))
    want = coupling.expected(case, x, params, inverse=inverse, grads=grads)
    units = coupling.roundings(case, x, params, want, inverse=inverse, grads=grads)
    got = coupling.Result(*(t.detach()[some] for t in got))
    tolerances.assert_result(got, want, units, coupling.tolerances_of(case), f"{case.op} {case.name}, {rows} rows")


def _small(case):
    return replace(case, batch=(5,)) if case.batch else case
