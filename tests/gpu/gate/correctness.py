"""Every op on every backend against the float64 reference, on fresh random inputs.

Each allocation is filled with NaN first, so that an element that is not written is noticed, and each
call is made twice, which must give the same bits.
"""

import contextlib
import functools
import itertools
import random
from dataclasses import replace

import torch

from tests.cases import coupling
from tests.cases import masked_autoregressive as masked_autoregressive_cases
from tests.cases import neural_ode as neural_ode_cases
from tests.cases import probability_path as probability_path_cases
from tests.cases import runge_kutta_stage as runge_kutta_stage_cases
from tests.gpu.gate import large
from tests.gpu.gate.gate import BACKENDS

GROUPS = ("named", "odd sizes", "half precision", "spread", "large")
# op: the backends that have kernels of it, and the groups of checks
OPS = {
    **dict.fromkeys(coupling.NAMED, (BACKENDS, GROUPS)),
    "masked_autoregressive": (BACKENDS, ("conditioners", "large")),
    **dict.fromkeys(("neural_ode", "probability_path", "runge_kutta_stage"), (BACKENDS, ("cases", "large"))),
}
WIDE = (torch.float64, torch.float32)
# (rows, features of x, transformed ones), about the edges of warps, blocks, tiles and segments
ODD = (
    (1, 1, 1), (2, 3, 2), (31, 7, 7), (33, 1, 1), (127, 33, 16), (129, 5, 5), (257, 64, 31),
    (1025, 3, 3), (4099, 32, 32), (65537, 2, 1), (100003, 7, 3), (2, 1201, 600), (3, 600, 600),
)  # fmt: skip
HALVES = (
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float64),
)  # fmt: skip


def names(gate, results):
    return [
        f"{backend}/{op}/{group}"
        for op, (backends, groups) in OPS.items()
        for backend, group in itertools.product(backends, groups)
    ]


def run(name, gate):
    backend, op, group = name.split("/")
    seed = random.SystemRandom().randrange(2**31)
    checks = list({
        "named": _named, "odd sizes": _odd, "half precision": _halves, "spread": _spread,
        "large": large.checks, "few": _few, "conditioners": _conditioners, "cases": _cases,
    }[group](op, gate))  # fmt: skip
    failures = []
    # Memory that was filled would hide from initcheck what no kernel wrote.
    poison = contextlib.nullcontext() if group == "few" else _poisoned()
    with gate.on(backend) as chosen, poison:
        for number, check in enumerate(checks):
            try:
                check(chosen, seed + number)
            except (AssertionError, RuntimeError, torch.OutOfMemoryError) as error:
                failures.append(f"{type(error).__name__}: {error}"[:500])
                if "CUDA error" in str(error):  # nothing works in this process from here on
                    break
    return {"checks": len(checks), "seed": seed, "failures": failures}


@contextlib.contextmanager
def _poisoned():
    """Inside, new memory holds NaN (integers: the largest)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def _both_ways(case, gate, dtype, params_dtype=None):
    """Checks of the two directions, as functions of the backend and a seed."""
    for inverse in (False, True):

        def check(backend, seed, inverse=inverse):
            x, params = case.tensors(dtype, params_dtype=params_dtype, inverse=inverse, seed=seed, device=gate.device)
            coupling.check_at(case, backend, x, params, inverse=inverse)
            twice = [coupling.evaluate(case, x, params, backend=backend, inverse=inverse) for _ in "12"]
            for quantity, first, second in zip(twice[0]._fields, *twice):
                same = torch.equal(first.nan_to_num(7), second.nan_to_num(7))
                assert same, f"{case.op} {case.name}: {quantity} differs from call to call"

        yield check


def _named(op, gate):
    chosen = list(coupling.NAMED[op].values())
    for case, dtype in itertools.product(chosen[:3] if gate.dry_run else chosen, WIDE):
        yield from _both_ways(_small(case) if gate.dry_run else case, gate, dtype)


def _odd(op, gate):
    for rows, width, features in ODD[:4] if gate.dry_run else ODD:
        select = "all" if width == features else "index"
        case = replace(coupling.TYPICAL[op], batch=(rows,), width=width, features=features, select=select)
        for dtype in WIDE:
            yield from _both_ways(case, gate, dtype)


def _halves(op, gate):
    for dtypes in HALVES[:1] if gate.dry_run else HALVES:
        case = replace(coupling.TYPICAL[op], batch=(19 if gate.dry_run else 4099,))
        yield from _both_ways(case, gate, *dtypes)


def _spread(op, gate):
    """Raw parameters far from the usual: narrow bins, steep slopes, huge and tiny scales."""
    case = replace(coupling.TYPICAL[op], batch=(19 if gate.dry_run else 20000,), spread=6.0)
    yield from _both_ways(case, gate, torch.float32)


def _few(op, gate):
    """For the sanitizer: small and various."""
    if op not in coupling.NAMED:
        group = _conditioners if op == "masked_autoregressive" else _cases
        yield from itertools.islice(group(op, gate), 4)
        return
    typical = coupling.TYPICAL[op]
    chosen = [typical, *itertools.islice(coupling.NAMED[op].values(), 3)]
    chosen.append(replace(typical, batch=(3,), width=1201, features=600))
    for case in chosen:
        yield from _both_ways(case, gate, torch.float32)


def _conditioners(op, gate):
    """Of the masked autoregressive transform, whose programs and blocks take several tiles where rows are many."""
    named = masked_autoregressive_cases.CASES
    chosen = [named["relu"], named["k8"]] if gate.dry_run else list(named.values())
    for rows in (33,) if gate.dry_run else (31, 33, 4099, 40001):
        chosen.append(replace(named["everything"], batch=rows))
    for case, dtype, inverse in itertools.product(chosen, WIDE, (False, True)):
        yield functools.partial(_conditioner, case, gate, dtype, inverse)


def _conditioner(case, gate, dtype, inverse, backend, seed):
    """Compare one of them with the reference, and with itself."""
    masked = masked_autoregressive_cases
    masked.check(case, backend, dtype, inverse=inverse, seed=seed, device=gate.device)
    x, tensors = case.tensors(dtype, seed, gate.device)
    twice = [masked.evaluate(case, x, tensors, backend=backend, inverse=inverse) for _ in "12"]
    for (quantity, first), (_, second) in zip(*map(masked.flat, twice)):
        same = torch.equal(first.nan_to_num(7), second.nan_to_num(7))
        assert same, f"{case.name}: {quantity} differs from call to call"


def _with(chosen, **changed):
    return [replace(case, **changed) for case in chosen]


def _several(op, gate):
    """Cases of an op with a module of cases, about the edges of tiles and blocks too."""
    if op == "neural_ode":
        named = neural_ode_cases.CASES
        typical, deep = named["exact two hidden"], named["exact three hidden"]
        if gate.dry_run:
            return _with((typical, named["adjoint noise"]), batch=3, steps=1, times=(0.0, 0.3))
        # Sums over many samples lose more than the few roundings that are allowed.
        sizes = [*itertools.product((1, 63, 1023), ((1,), (64, 64), (256, 256))), (4101, (1,)), (4101, (5, 3))]
        odd = [replace(typical, batch=n, hidden=h, activations=("silu",) * len(h)) for n, h in sizes]
        wide = replace(typical, features=1, hidden=(9000,), activations=("tanh",), steps=1)
        return [*named.values(), *odd, replace(deep, hidden=(33, 128, 65), batch=257), wide]
    if op == "probability_path":
        named = [*probability_path_cases.CASES.values()]
        return named[:3] if gate.dry_run else [*named, *_with(named[:16], batch=100003)]
    named = [*runge_kutta_stage_cases.CASES.values()]
    if gate.dry_run:
        return named[:5]
    shapes = itertools.product(((100003, 7), (1025, 3), (3, 70001)), (False, True))
    return [*named, *(runge_kutta_stage_cases.Case(shape, 7, by_row) for shape, by_row in shapes)]


def _cases(op, gate):
    module = {
        "neural_ode": neural_ode_cases, "probability_path": probability_path_cases,
        "runge_kutta_stage": runge_kutta_stage_cases,
    }[op]  # fmt: skip
    for case, dtype in itertools.product(_several(op, gate), WIDE):
        yield functools.partial(_case, module, case, gate, dtype)


def _case(module, case, gate, dtype, backend, seed):
    """Compare one of them with the reference, and with itself."""
    module.check(case, backend, dtype, seed, gate.device)
    first, second = (module.results(case, backend, dtype, seed, gate.device) for _ in "12")
    for number, (one, two) in enumerate(zip(first, second)):
        same = torch.equal(one.nan_to_num(7), two.nan_to_num(7))
        assert same, f"{case}: result {number} differs from call to call"


def _small(case):
    return replace(case, batch=(5,)) if case.batch else case
