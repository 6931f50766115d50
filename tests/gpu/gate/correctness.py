"""Every op on every backend against the float64 reference, on fresh random inputs.

Each allocation is filled with NaN first, so that an element that is not written is noticed, and each
call is made twice, which must give the same bits.
"""

import contextlib
import itertools
import random

import torch

from tests import cases
from tests.gpu.gate.gate import BACKENDS

MODULES = cases.modules("gate")
# op: the backends that have kernels of it, and the groups of checks
OPS = {op: (BACKENDS, tuple(module.GROUPS)) for op, module in MODULES.items()}


def names(gate, results):
    return [
        f"{backend}/{op}/{group}"
        for op, (backends, groups) in OPS.items()
        for backend, group in itertools.product(backends, groups)
    ]


def run(name, gate):
    backend, op, group = name.split("/")
    seed = random.SystemRandom().randrange(2**31)
    checks = list(_few(op, gate) if group == "few" else MODULES[op].GROUPS[group](gate))
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


def _few(op, gate):
    """For the sanitizer: small and various."""
    few = getattr(MODULES[op], "few", None)
    return few(gate) if few else itertools.islice(MODULES[op].GROUPS["cases"](gate), 4)
