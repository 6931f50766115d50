"""Plants faults in copies of the kernels, one at a time, and tells what catches each.

`python -m tests.sanitizers.mutations [word …]` prints a table, of all faults or of those that a word
occurs in, and fails if one is not caught.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.emulation import build as emulation
from tests.sanitizers import build

# The fault is looked for in these cases.
AFFINE = ("affine-scale_first", "affine-whole_vectors", "affine-wide", "affine-rows-257", "affine-index", "affine-sliced")
SPLINE = ("spline-k8", "spline-k256-wide", "spline-wide-k3", "spline-index", "spline-sliced", "spline-circular")
PATH = ("path-target", "path-variance_preserving", "path-schroedinger_bridge given", "path-conditional given", "path-long rows")
MASKED = ("masked-relu", "masked-context", "masked-everything", "masked-coupling", "masked-k8")
ODE = ("ode-exact two hidden", "ode-noise", "ode-adjoint", "ode-checkpoints")
STAGE = ("stage-(7, 3) by row", "stage-(2, 513) by row", "stage-(70,)", "stage-8 stages")
BOTH = ("affine-wide", "affine-rows-257", "spline-k8", "spline-wide-k3", "spline-k5", "affine-transposed")


class Mutation(NamedTuple):
    """One place in a file of csrc that is written differently, and the cases that are run then.

    kind: "checked" (CUDA, the emulation's own checks and the reference), "address" or "thread" (CPU,
    under that sanitizer).
    """

    fault: str
    file: str
    old: str
    new: str
    cases: tuple
    kind: str = "checked"


def _affine(fault, old, new, file="affine_coupling_cuda.cu", **more):
    return Mutation(fault, f"affine_coupling/{file}", old, new, AFFINE, **more)


def _spline(fault, old, new, file="rational_quadratic_spline_cuda.cu", **more):
    return Mutation(fault, f"rational_quadratic_spline/{file}", old, new, SPLINE, **more)


def _common(fault, old, new, file="cuda.cuh", cases=BOTH, **more):
    return Mutation(fault, f"common/{file}", old, new, cases, **more)


def _path(fault, old, new, file="probability_path_cuda.cu", **more):
    return Mutation(fault, f"probability_path/{file}", old, new, PATH, **more)


def _masked(fault, old, new, file="masked_autoregressive_simd.cpp", **more):
    return Mutation(fault, f"masked_autoregressive/{file}", old, new, MASKED, **more)


def _ode(fault, old, new, file="neural_ode_simd.cpp", **more):
    return Mutation(fault, f"neural_ode/{file}", old, new, ODE, **more)


def _stage(fault, old, new, **more):
    return Mutation(fault, "runge_kutta_stage/runge_kutta_stage_simd.cpp", old, new, STAGE, **more)


_SYNC = "__syncthreads();"
_ADDRESS, _THREAD = {"kind": "address"}, {"kind": "thread"}
MUTATIONS = (
    _affine("log-det stored one element on", "l[threadIdx.x + i * blockDim.x] =", "l[threadIdx.x + 1 + i * blockDim.x] ="),
    _affine("x read one column on", "at.row * e.row + at.column * e.feature", "at.row * e.row + (at.column + 1) * e.feature"),
    _affine("a byte of shared memory too few", "* plan.rows * plan.features, stream", "* plan.rows * plan.features - 1, stream"),
    _affine("no barrier after the columns are copied", f"int(p.width), rows);\n  {_SYNC}", "int(p.width), rows);"),
    _affine("no barrier before the log-dets are summed", f"{_SYNC}\n      total +=", "total +="),
    _affine("no barrier after the log-dets are summed", f"plan.lanes);\n      {_SYNC}", "plan.lanes);"),
    _affine("backward: g_logabsdet with the wrong sign", "f.q * centred, g_logabsdet)", "f.q * centred, -g_logabsdet)", "affine_coupling_math.h"),
    _affine("backward: g_shift with the wrong sign", "{g_x, (inverse ? zero - g_x : g_out)", "{g_x, (inverse ? g_x : g_out)", "affine_coupling_math.h"),
    _spline("y written one column on", "at.row * p.width + at.column] = out.y", "at.row * p.width + at.column + 1] = out.y"),
    _spline("log-dets begin inside the stage", "? int(blockDim.x) * stage.stride : 0)", "? int(blockDim.x - 1) * stage.stride : 0)"),
    _spline("a row too many in a pass", "count = left < int(blockDim.x) ? left :", "count = left < int(blockDim.x) ? left + 1 :"),
    _spline("no barrier after the columns are copied", f"p.width, width, rows);\n  {_SYNC}", "p.width, width, rows);"),
    _spline("no barrier after a pass", f"    {_SYNC}  // the stage is free again, and the log-dets are there\n", ""),
    _spline("no barrier after the log-dets are summed", f"plan.lanes);\n      {_SYNC}", "plan.lanes);"),
    _spline("a barrier behind the threads that have left", "if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);\n        if (!at.used) return;", "if (!at.used) return;\n        if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);"),
    _spline("backward: the left knot with the wrong sign", "g.x_k = select(bin.last, zero, zero - g.x)", "g.x_k = select(bin.last, zero, g.x)", "rational_quadratic_spline_math.h"),
    _spline("backward of the inverse: g_logabsdet with the wrong sign", "g_l = zero - g_logabsdet", "g_l = g_logabsdet", "rational_quadratic_spline_math.h"),
    _spline("backward: the right slope's cotangent in the wrong bin", "select(index == T(S(i)), g_r, zero)", "select(index == T(S(i + 2)), g_r, zero)", "rational_quadratic_spline_bin.h"),
    _common("a parameter's offset one on", "stage.offsets[e] + i * p.one", "stage.offsets[e] + (i + 1) * p.one", "stage.cuh"),
    _common("the rest of a copy begins one on", "for (int i = whole * each + int(threadIdx.x)", "for (int i = whole * each + 1 + int(threadIdx.x)", "stage.cuh"),
    _common("sixteen bytes at a time, aligned or not", "ends % sizeof(uint4) ? 0 :", "ends == 1 ? 0 :", "stage.cuh", ("spline-misaligned",)),
    _common("no barrier after the offsets are noted", f"at.feature * p.feature;\n  {_SYNC}", "at.feature * p.feature;", "stage.cuh"),
    _common("no barrier after the stage is loaded", f"= from.base[main]; }});\n  {_SYNC}", "= from.base[main]; });", "stage.cuh"),
    _common("an element per thread too few in the stage", "return threads * (sizeof(int64_t)", "return (threads - 1) * (sizeof(int64_t)", "stage.cuh"),
    _common("a walk steps into the next row too late", "if (inner >= size)", "if (inner > size)"),
    _common("the last step of a sum is left out", "step > 0; step /= 2", "step > 1; step /= 2"),
    _common("threads leave before the shuffles", "store_sums(S total, int rows, int lanes, S* sums) {\n", "store_sums(S total, int rows, int lanes, S* sums) {\n  if (int(threadIdx.x) / lanes >= rows) return;\n"),
    _common("rows are copied one on", "to[int64_t(at.outer) * width + at.inner] =", "to[int64_t(at.outer) * width + at.inner + 1] =", cases=("affine-index",)),
    _affine("CPU: the wrong one of two parameters", "return load_pairs(pairs.raw, r, i, raw, shift)", "return load_pairs(pairs.raw, r, i, shift, raw)", "affine_coupling_simd.cpp", **_ADDRESS),
    _affine("CPU: one buffer for all threads", "Buffer<S> x_buffer, y_buffer, l;", "static Buffer<S> x_buffer, y_buffer, l;", "affine_coupling_simd.cpp", **_THREAD),
    _spline("CPU: the last tile of a run passes its end", "<Vec<S>>(run, i < last ? i : last)", "<Vec<S>>(run, i < last ? i : last + 1)", "rational_quadratic_spline_simd.cpp", **_ADDRESS),
    _common("CPU: values scattered one column on", "*element(to, n, t) = from.values[e]", "element(to, n, t)[1] = from.values[e]", "coupling.h", SPLINE, **_ADDRESS),
    _common("CPU: the last vector of a run passes its end", "body(run, i < last ? i : last)", "body(run, i < last ? i : last + 1)", "coupling.h", AFFINE, **_ADDRESS),
    _common("CPU: log-dets of a segment one row on", "S* out = sums + at.row;", "S* out = sums + at.row + 1;", "coupling.h", AFFINE, **_ADDRESS),
    _common("CPU: a streamed value twice what it is", "stream(to.at(run, i), value)", "stream(to.at(run, i), value + value)", "coupling.h", AFFINE, **_ADDRESS),
    _spline("CPU: a streamed gradient twice what it is", "stream(tile + k, load(stage + k))", "stream(tile + k, load(stage + k) + load(stage + k))", "rational_quadratic_spline_simd.cpp", **_ADDRESS),
    _path("a time read one row on", "p.given_t[row_of(e,", "p.given_t[1 + row_of(e,"),
    _path("the last element is not masked", "if (element < total) body", "if (element <= total) body"),
    _path("noise of the next counter", "draw_noise(key_of(*p.seed), block, i, noise)", "draw_noise(key_of(*p.seed), block, i + 1, noise)"),
    _path("u_t: x0's weight with the wrong sign", "{zero - rate * sine, rate * cosine, zero}", "{rate * sine, rate * cosine, zero}", "probability_path_math.h"),
    _path("backward: the noise's part of grad_t with the wrong sign", "{minus, one, s * half}", "{minus, one, zero - s * half}", "probability_path_math.h"),
    _path("CPU: times of the next row", "int64_t row = at.first / p.features,", "int64_t row = at.first / p.features + 1,", "probability_path_simd.cpp", **_ADDRESS),
    _path("CPU: a streamed value twice what it is", "if (streams) stream(to, value)", "if (streams) stream(to, value + value)", "probability_path_simd.cpp", **_ADDRESS),
    _path("CPU: one buffer of noise for all threads", "noise_buffer{}, t_buffer, x_buffer, u_buffer;", "t_buffer, x_buffer, u_buffer; static Buffer<S> noise_buffer;", "probability_path_simd.cpp", **_THREAD),
    _masked("CPU: parameters of the next feature", ".z + f * p.parameters)", ".z + (f + 1) * p.parameters)", **_ADDRESS),
    _masked("CPU: a panel's rows one on", "m.columns * kPanel + lane", "m.columns * kPanel + lane + 1", **_ADDRESS),
    _masked("CPU: the last rank of a block left out", "rank < p.first[b + 1];", "rank + 1 < p.first[b + 1];", **_ADDRESS),
    _masked("CPU: values read of one sample too many", "for (int n = 0; n < samples; ++n) to[n] =", "for (int n = 0; n <= samples; ++n) to[n] =", **_ADDRESS),
    _masked("CPU: backward: a gate's gradient with the wrong sign", "store(of_gate + i, g_z *", "store(of_gate + i, T(S(-1)) * g_z *", **_ADDRESS),
    _masked("CPU: one tile for all threads", "S* memory = scratch", "static S* memory = scratch", "masked_autoregressive_cpu.cpp", **_THREAD),
    _ode("CPU: the next stage's slope", "at(k + j * apart + r)", "at(k + (j + 1) * apart + r)", **_ADDRESS),
    _ode("CPU: a sample behind the last", "(n < samples ? n : samples - 1)", "(n < samples ? n : samples)", **_ADDRESS),
    _ode("CPU: backward: ‖f‖² with the wrong sign", "load(at(cot + 1) + i) * T(S(2))", "load(at(cot + 1) + i) * T(S(-2))", **_ADDRESS),
    _ode("CPU: adjoint: the state stepped the wrong way", "combine(y, S(0) - h, p.b,", "combine(y, h, p.b,", **_ADDRESS),
    _ode("CPU: one tile for all threads", "S* memory = scratch", "static S* memory = scratch", "neural_ode_cpu.cpp", **_THREAD),
    _stage("CPU: weights of the next row", "c.weights[row * c.weights_row", "c.weights[(row + 1) * c.weights_row", **_ADDRESS),
    _stage("CPU: slopes one element on", "k[j] = c.k[j] + first;", "k[j] = c.k[j] + first + 1;", **_ADDRESS),
    _stage("CPU: the sum with the wrong sign", "out[i] = y[i] + sum", "out[i] = y[i] - sum", **_ADDRESS),
    _stage("CPU: one buffer for all threads", "  Buffer<S> squares;", "  static Buffer<S> squares;", **_THREAD),
)  # fmt: skip


def planted(mutation, folder):
    """A copy of csrc with the fault in it."""
    csrc = Path(folder) / "csrc"
    shutil.copytree(emulation.ROOT / "csrc", csrc)
    file = csrc / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.fault}: not one place in {mutation.file}"
    file.write_text(text.replace(mutation.old, mutation.new))
    return csrc


def library(mutation, csrc):
    if mutation.kind == "checked":
        return emulation.built(emulation.CHECKED, emulation.kernels(csrc), csrc)
    return build.library(mutation.kind, build.runnable()[-1], csrc)


def caught_by(mutation):
    """What the run says of the fault, or None."""
    with tempfile.TemporaryDirectory() as folder:
        path = library(mutation, planted(mutation, folder))
    kind = "emulated" if mutation.kind == "checked" else "cpu"
    script = ("-m", "tests.sanitizers.run", kind, path, *mutation.cases)
    command = [sys.executable, *script]
    if mutation.kind != "checked":
        command = build.command(mutation.kind, *script)
    done = subprocess.run(
        command, env=build.environment(), capture_output=True, text=True, timeout=300
    )
    return said(done.stderr) if done.returncode else None


def said(text):
    """The line that names the fault, without what differs from run to run."""
    for pattern in (
        r"AddressSanitizer: (?!CHECK)\S+", r"ThreadSanitizer: (?:data race|\S+)", r"runtime error: .*",
        r"RuntimeError: kernel (.*)", r"IndexError: (.*)", r"AssertionError: (.*)",
    ):  # fmt: skip
        found = re.search(pattern, text)
        if found:
            return found[found.lastindex or 0]
    return text[-300:]


def main(*words):
    starts = build.thread_sanitizer_starts()
    return report([m for m in MUTATIONS if starts or m.kind != "thread"], caught_by, words)


def report(mutations, caught_by, words, device=""):
    """Print what caught each that a word occurs in; how many nothing caught."""
    chosen = [m for m in mutations if not words or any(word in str(m) for word in words)]
    missed = 0
    with ThreadPoolExecutor(2) as pool:
        for mutation, what in zip(chosen, pool.map(caught_by, chosen)):
            missed += what is None
            op = Path(mutation.file).parent.name.replace("_", " ") or "common"
            print(f"{op}: {device}{mutation.fault} -> {what or 'NOT CAUGHT'}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
