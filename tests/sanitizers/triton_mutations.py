"""Plants faults in copies of the Triton kernels, one at a time, as mutations.py does in the C++ ones.

`python -m tests.sanitizers.triton_mutations [word …]`. The changed copy of the package runs a few cases in
Triton's interpreter, every access checked (tests/ops/triton_memory.py).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.emulation.build import ROOT
from tests.sanitizers.mutations import report, said


class Mutation(NamedTuple):
    """One place in a file of flowkern/ops that is written differently, and the cases that are run then."""

    fault: str
    file: str
    old: str
    new: str
    cases: tuple


def _affine(fault, old, new, file="affine_coupling/triton.py"):
    return Mutation(fault, file, old, new, ("affine-index", "affine-tanh", "affine-scale_first"))


def _spline(fault, old, new, file="rational_quadratic_spline/triton_element.py"):
    return Mutation(fault, file, old, new, ("spline-k3", "spline-index", "spline-one_row"))


def _path(fault, old, new):
    cases = ("path-variance_preserving given", "path-variance_preserving", "path-target")
    return Mutation(fault, "probability_path/triton.py", old, new, cases)


def _masked(fault, old, new, file="masked_autoregressive/triton_layers.py"):
    return Mutation(fault, file, old, new, ("masked-two_features", "masked-everything", "masked-skips", "masked-inputs"))


def _ode(fault, old, new, file="neural_ode/triton_field.py"):
    return Mutation(fault, file, old, new, ("ode-one sample", "ode-adjoint noise", "ode-adjoint one hidden", "ode-exact linear"))


def _stage(fault, old, new):
    return Mutation(fault, "runge_kutta_stage/triton.py", old, new, ("stage-(7, 3)", "stage-(7, 3) by row"))


MUTATIONS = (
    _affine("x read one column on", "d * x_d, mask=found, other=0.0).to(COMPUTE)\n        of_t", "(d + 1) * x_d, mask=found, other=0.0).to(COMPUTE)\n        of_t"),
    _affine("log-dets stored of a row too many", "tl.sum(total, 1), mask=rows < N", "tl.sum(total, 1), mask=rows <= N"),
    _affine("backward: the shift's gradient with the wrong sign", "grad_shift = -SHIFT_PREFACTOR * g", "grad_shift = SHIFT_PREFACTOR * g"),
    _affine("rows are copied one on", "D + d[None, :], values", "D + d[None, :] + 1, values", "_triton.py"),
    _affine("no barrier after the columns are copied", "threads of this block.\n    tl.debug_barrier()", "threads of this block.", "_triton.py"),
    _spline("the slope of the next knot", "(2 * SPEC.bins + place) * p_k", "(2 * SPEC.bins + place + 1) * p_k"),
    _spline("elements stored that there are not", "d, value, mask=found", "d, value, mask=d < D", "rational_quadratic_spline/triton.py"),
    _spline("backward: the left knot with the wrong sign", "gz, -gtheta / w, gw", "gz, gtheta / w, gw"),
    _path("the time of the next element's row", "e < total, e // D\n        if t", "e < total, (e + 1) // D\n        if t"),
    _path("backward: an element too many", "here, n = e < total, e // D\n        time", "here, n = e <= total, e // D\n        time"),
    _path("u_t: x0's weight with the wrong sign", "u_a, u_b = -rate * x_b", "u_a, u_b = rate * x_b"),
    _path("backward: x0's part of grad_t with the wrong sign", "s_a, s_b = -rate * u_b", "s_a, s_b = rate * u_b"),
    _masked("inputs of a product one on", "plane, other), mask=there", "plane, other + 1), mask=there"),
    _masked("units of the same rank are not seen", "read &= rank[:, None] >=", "read &= rank[:, None] >"),
    _masked("a context's inputs one on", "net.each + (context + c) *", "net.each + (context + c + 1) *"),
    _masked("no barrier after the contexts' terms", "start(net, tile, SPEC)\n            tl.debug_barrier()", "start(net, tile, SPEC)", "masked_autoregressive/triton_kernels.py"),
    _masked("no barrier before a layer is finished", "WIDE, SPEC.terms, False, True, SPEC)\n        tl.debug_barrier()", "WIDE, SPEC.terms, False, True, SPEC)", "masked_autoregressive/triton_kernels.py"),
    _masked("log-dets stored of samples that there are not", "tile.n, sums, mask=tile.here", "tile.n, sums, mask=tile.n >= 0", "masked_autoregressive/triton_kernels.py"),
    _masked("backward: a skip's cotangent with the wrong sign", "mask=skipped, other=0.0) + grad_z", "mask=skipped, other=0.0) - grad_z"),
    _masked("backward: of two skips from one layer, one cotangent", "tl.load(past, mask=skipped, other=0.0) + grad_z", "grad_z"),
    _ode("the time of another stage", "after = n % net.steps + c", "after = n % net.steps - c"),
    _ode("a frequency's gradient without the time", "_add(at, t * of_angle", "_add(at, of_angle", "neural_ode/triton_gradients.py"),
    _ode("no barrier after a stage's state", "values, mask=used)\n    tl.debug_barrier()", "values, mask=used)", "neural_ode/triton_kernels.py"),
    _ode("a row too many is written", "used = (row < count)[:, None]\n        values = tl.load(rows(base, row), mask=used, other=0.0)\n        tl.store(to", "used = (row <= count)[:, None]\n        values = tl.load(rows(base, row), mask=used, other=0.0)\n        tl.store(to", "neural_ode/triton_kernels.py"),
    _ode("adjoint: the state stepped the wrong way", "_combine(y, y, 1, -h", "_combine(y, y, 1, h", "neural_ode/triton_kernels.py"),
    _ode("backward: ‖f‖² with the wrong sign", "grad + 2 * kinetic_bar", "grad - 2 * kinetic_bar", "neural_ode/triton_gradients.py"),
    _stage("the weight of the next slope", "w + 2 * w_j", "w + 3 * w_j"),
    _stage("an element too many", "here = at < N.to(tl.int64) * D", "here = at <= N.to(tl.int64) * D"),
    _stage("sums stored of a row too many", "tl.sum(total, 1), mask=rows < N", "tl.sum(total, 1), mask=rows <= N"),
    _stage("the sum with the wrong sign", "mask=here, other=0.0) + total", "mask=here, other=0.0) - total"),
)  # fmt: skip


def planted(mutation, folder):
    """The package with the fault in it, and the tests beside it."""
    ops = folder / "flowkern" / "ops"
    shutil.copytree(ROOT / "flowkern", ops.parent)
    (folder / "tests").symlink_to(ROOT / "tests")
    file = ops / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.fault}: not one place in {mutation.file}"
    file.write_text(text.replace(mutation.old, mutation.new))


def caught_by(mutation):
    """What the run says of the fault, or None."""
    with tempfile.TemporaryDirectory() as folder:
        planted(mutation, Path(folder))
        command = [sys.executable, "-m", "tests.sanitizers.run", "triton", "", *mutation.cases]
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
    return said(done.stderr) if done.returncode else None


def main(*words):
    return report(MUTATIONS, caught_by, words, "Triton: ")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
