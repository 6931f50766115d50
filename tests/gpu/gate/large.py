"""Calls with more than 2^31 elements, compared with the float64 reference at some of their rows.

A dry run takes the same calls with few rows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

import flowkern
from flowkern.ops import probability_path, runge_kutta_error, runge_kutta_stage
from tests import tolerances
from tests.cases import coupling
from tests.cases import masked_autoregressive as masked_autoregressive_cases
from tests.cases import neural_ode as neural_ode_cases

MOST = 2**31
# (features of x, transformed ones) of coupling calls with so many elements of x or of params
COUPLINGS = {"x": (4099, 2), "params": (46, 46)}
ERROR = 1e-4  # of the largest value, in float32; a wrong index makes errors of its order


class Call(NamedTuple):
    """An op other than a coupling: function(*tensors) -> outputs; tensors and outputs have N rows.

    shapes: of a row of each tensor. copies: how many times the memory of the first of them a call takes.
    grads: so many of the tensors have gradients.
    """

    function: Callable
    shapes: tuple
    copies: int
    grads: int = 0


def _masked(inverse):
    case = masked_autoregressive_cases.Case("large", 32, (2,), batch=1)
    return lambda x: case(x, case.tensors(x.dtype, device=x.device)[1], inverse)


def _solve(y):
    case = neural_ode_cases.Case(64, (1,), ("tanh",), batch=1, method="euler", steps=1, time=None, times=(0.0, 0.3))
    tensors, _ = case.tensors(y.dtype, device=y.device)
    solution = case.solve(tensors | {"y": y}, None)
    return solution.y[-1], solution.logabsdet[-1]


def _path(x0, x1, noise, t):
    return probability_path(x0, x1, t.sigmoid(), path="variance_preserving", sigma=0.3, noise=noise)[1:]


def _stage(y, k, weights):
    return runge_kutta_stage(y, [k], weights), runge_kutta_error(y, k, [k], weights, 0.1, 0.01)


CALLS = {
    "masked_autoregressive": (Call(_masked(False), ((32,),), 5, 1), Call(_masked(True), ((32,),), 5, 1)),
    "neural_ode": (Call(_solve, ((64,),), 9, 1),),
    "probability_path": (Call(_path, ((64,), (64,), (64,), ()), 8, 2),),
    "runge_kutta_stage": (Call(_stage, ((3,), (3,), (1,)), 4),),
}


def checks(op, gate):
    """Checks, as functions of the backend and a seed."""
    for call in CALLS.get(op, ()):
        yield lambda backend, seed, call=call: check_call(op, call, backend, seed, gate)
    if op in CALLS:
        return
    for what, (width, features) in COUPLINGS.items():
        select = "all" if width == features else "index"
        case = replace(coupling.TYPICAL[op], name=f"large {what}", width=width, features=features, select=select)
        for inverse in (False, True):
            yield lambda backend, seed, c=case, i=inverse: check_coupling(c, backend, seed, gate, i)


def check_call(op, call, backend, seed, gate):
    width = call.shapes[0][0]
    rows = _rows(op, gate, width, call.copies * width)
    torch.manual_seed(seed)
    with torch.device(gate.device):
        tensors = [torch.randn(rows, *shape) for shape in call.shapes]
    got = _evaluate(call, tensors, backend)
    some = _some(rows, width, gate)
    want = _evaluate(call, [t.detach()[some].double() for t in tensors], "reference")
    for number, (g, w) in enumerate(zip(got, want)):
        error = (g[some] - w).abs().max() / (1 + w.abs().max())
        assert error <= ERROR, f"large {op}, {rows} rows: result {number} is wrong by {error:.3g}"


def _evaluate(call, tensors, backend):
    """The outputs, and gradients for which the outputs are the cotangents too."""
    leaves = [t.requires_grad_() for t in tensors[: call.grads]]
    with flowkern.backend(backend):
        outputs = call.function(*tensors)
        found = [output.detach() for output in outputs]
        return found + ([*torch.autograd.grad(outputs, leaves, found)] if leaves else [])


def check_coupling(case, backend, seed, gate, inverse):
    parameters = case.features * case.per_feature
    widest = max(case.width, parameters)
    rows = _rows(f"{case.op} {case.name}", gate, widest, 4 * case.width + 2 * parameters + 2)
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
    some = _some(rows, widest, gate)
    x, params, *grads = (t.detach()[some] for t in (x, params, *grads))
    want = coupling.expected(case, x, params, inverse=inverse, grads=grads)
    units = coupling.roundings(case, x, params, want, inverse=inverse, grads=grads)
    got = coupling.Result(*(t.detach()[some] for t in got))
    tolerances.assert_result(got, want, units, case.op, f"{case.op} {case.name}, {rows} rows")


def _some(rows, width, gate):
    """Rows at both ends, about element 2^31, and at random."""
    edge = MOST // width
    some = torch.tensor([0, 1, rows - 2, rows - 1, *(min(edge + i, rows - 1) for i in (-1, 0, 1))])
    return torch.cat((some, torch.randint(rows, (500,)))).to(gate.device)


def _rows(name, gate, width, numbers):
    """Rows of `width` with more than 2^31 elements; an error if `numbers` floats for each are too many."""
    if gate.dry_run:
        return 37
    rows = MOST // width + 5
    needed, (free, _) = 4 * rows * numbers, torch.cuda.mem_get_info()
    if 1.1 * needed > free:
        raise RuntimeError(f"large {name}: needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
    return rows
