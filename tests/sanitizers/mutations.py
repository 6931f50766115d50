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

# The op that a case is of, by the first word of its name.
OPS = {
    "affine": "affine_coupling", "spline": "rational_quadratic_spline", "masked": "masked_autoregressive",
    "ode": "neural_ode", "stage": "runge_kutta_stage", "path": "probability_path",
}  # fmt: skip
# The fault is looked for in these cases.
AFFINE = ("affine-scale_first", "affine-whole_vectors", "affine-wide", "affine-rows-257", "affine-index", "affine-sliced")
SPLINE = ("spline-k8", "spline-k256-wide", "spline-wide-k3", "spline-index", "spline-sliced", "spline-circular")
SOLVE = ("ode-one sample", "ode-exact two hidden", "ode-exact one hidden", "ode-noise", "ode-adjoint noise", "ode-workspace")
STAGE = ("stage-rows-257", "stage-not finite", "stage-(2, 1100) by row", "stage-(5, 8) by row")
MASKED = ("masked-everything", "masked-skips", "masked-random", "masked-residual", "masked-k5_circular", "masked-rows_63", "masked-large-tiles", "masked-inputs")
PATH = ("path-target", "path-variance_preserving", "path-schroedinger_bridge given", "path-conditional given", "path-long rows")
MASKED_ON_CPU = ("masked-relu", "masked-skips", "masked-context", "masked-inputs_of_all", "masked-everything", "masked-coupling", "masked-k8")
ODE_ON_CPU = ("ode-exact two hidden", "ode-noise", "ode-adjoint", "ode-checkpoints")
STAGE_ON_CPU = ("stage-(7, 3) by row", "stage-(2, 513) by row", "stage-(70,)", "stage-8 stages")
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


def _solve(fault, old, new, file="neural_ode_tile.cuh"):
    return Mutation(fault, f"neural_ode/{file}", old, new, SOLVE)


def _stage(fault, old, new):
    return Mutation(fault, "runge_kutta_stage/runge_kutta_stage_cuda.cu", old, new, STAGE)


def _masked(fault, old, new, file="masked_autoregressive_tile.cuh"):
    return Mutation(fault, f"masked_autoregressive/{file}", old, new, MASKED)


def _common(fault, old, new, file="cuda.cuh", cases=BOTH, **more):
    return Mutation(fault, f"common/{file}", old, new, cases, **more)


def _path(fault, old, new, file="probability_path_cuda.cu", **more):
    return Mutation(fault, f"probability_path/{file}", old, new, PATH, **more)


def _masked_on_cpu(fault, old, new, file="masked_autoregressive_simd.cpp", **more):
    return Mutation(fault, f"masked_autoregressive/{file}", old, new, MASKED_ON_CPU, **more)


def _ode_on_cpu(fault, old, new, file="neural_ode_simd.cpp", **more):
    return Mutation(fault, f"neural_ode/{file}", old, new, ODE_ON_CPU, **more)


def _stage_on_cpu(fault, old, new, **more):
    return Mutation(fault, "runge_kutta_stage/runge_kutta_stage_simd.cpp", old, new, STAGE_ON_CPU, **more)


_SYNC = "__syncthreads();"
_ADDRESS, _THREAD = {"kind": "address"}, {"kind": "thread"}
MUTATIONS = (
    _affine("log-det stored one element on", "l[threadIdx.x + i * blockDim.x] =", "l[threadIdx.x + 1 + i * blockDim.x] ="),
    _affine("x read one column on", "at.row * e.row + at.column * e.feature", "at.row * e.row + (at.column + 1) * e.feature"),
    _affine("a byte of shared memory too few", "* plan.rows * plan.features, stream", "* plan.rows * plan.features - 1, stream"),
    _affine("no barrier after the columns are copied", f"int(p.width), rows);\n  {_SYNC}", "int(p.width), rows);"),
    _affine("no barrier before the log-dets are summed", f"{_SYNC}\n      total +=", "total +="),
    _affine("no barrier after the log-dets are summed", f"plan.lanes);\n      {_SYNC}", "plan.lanes);"),
    _affine("backward: g_logabsdet with the wrong sign", "f.q * centred, g_logabsdet * f.rate)", "f.q * centred, -g_logabsdet * f.rate)", "affine_coupling_math.h"),
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
    _masked("no barrier after a layer of a step", f"if (k < p.outputs) finish(k, r);\n      }});\n      {_SYNC}\n    }}\n  }}\n\n  // Backward", "if (k < p.outputs) finish(k, r);\n      });\n    }\n  }\n\n  // Backward"),
    _masked("no barrier after a block's beginning", f"layer(k).u, [](int) {{}});\n    {_SYNC}", "layer(k).u, [](int) {});"),
    _masked("a step sees a rank too few", "ranks(k - 1, low, rank + 1);", "ranks(k - 1, low, rank);"),
    _masked("a group of threads takes the row of the next one", "at(to + r) = sum;", "at(to + r + 1) = sum;"),
    _masked("backward: a skip's cotangent with the wrong sign", "grad_skip + unit) += g;", "grad_skip + unit) -= g;"),
    _masked("backward: of two skips from one layer, one cotangent", "grad_skip + unit) += g;", "grad_skip + unit) = g;"),
    _masked("backward: a gate's cotangent without v", "tape(to.tape_gate, unit) *= g;", "tape(to.tape_gate, unit) = g;"),
    _masked("backward of the inverse: a rank too few sends back", "columns = ranks(k + 1, rank, high);", "columns = ranks(k + 1, rank + 1, high);"),
    _masked("the context of the next sample", "base + n * term.context.row", "base + (n + 1) * term.context.row"),
    _masked("a context's last input is left out", "c < term.inputs", "c + 1 < term.inputs"),
    _masked("a weight too many in each row", "column < spans[j].end", "column <= spans[j].end", "masked_autoregressive_cuda.cu"),
    _masked("no barrier after a panel's spans are known", f"{_SYNC}\n  if (threadIdx.x == 0) p.memory.spans", "if (threadIdx.x == 0) p.memory.spans", "masked_autoregressive_cuda.cu"),
    _masked("weights begin inside the spans", "at += span_bytes()", "at += span_bytes() - 16", "masked_autoregressive_cuda.cu"),
    _masked("a row of the tile too few", "problem.tile_rows = int(rows);", "problem.tile_rows = int(rows) - 1;", "masked_autoregressive_cuda.cu"),
    _masked("a sample too many in the last tile", "n < p.call.rows", "n <= p.call.rows", "masked_autoregressive_cuda.cu"),
    _masked("the log-dets of a group are left out", "for (int i = 1; i < tile.groups; ++i)", "for (int i = 2; i < tile.groups; ++i)", "masked_autoregressive_cuda.cu"),
    _masked("no barrier after the log-dets are stored", f"own;\n  {_SYNC}", "own;", "masked_autoregressive_cuda.cu"),
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
    _solve("no barrier after a product", f"depth, u, samples, to);\n  {_SYNC}", "depth, u, samples, to);", "neural_ode_products.cuh"),
    _solve("a product begins one row on", "to + (row + i) * samples + n) = sum[i]", "to + (row + i + 1) * samples + n) = sum[i]", "neural_ode_products.cuh"),
    _solve("weights are packed without zeros between their rows", "row < rows && column < columns ? from", "row < rows ? from", "neural_ode_cuda.cu"),
    _solve("no barrier before the parts of a sum are added", f"parts[threadIdx.x] = sum;\n    {_SYNC}", "parts[threadIdx.x] = sum;"),
    _solve("the last part of a sum is left out", "i < kOdeThreads; i += samples()", "i < kOdeThreads - samples(); i += samples()"),
    _solve("samples beyond the last are written", "if (exists(i)) to[place", "to[place"),
    _solve("samples beyond the last have cotangents", "if (exists(i)) at(to)[i] +=", "at(to)[i] +="),
    _solve("a tile of a row too few", "(1 << shift) - 1) >> shift);", "(1 << shift) - 1) >> shift) - 1;", "neural_ode_layout.cuh"),
    _solve("sums begin inside the tiles", "p.slices = p.packed_size + p.blocks * tile", "p.slices = p.packed_size + (p.blocks - 1) * tile", "neural_ode_layout.cuh"),
    _solve("a block adds to the next one's sums", "p.slices + blockIdx.x * p.slice", "p.slices + (blockIdx.x + 1) * p.slice", "neural_ode_cuda.cu"),
    _solve("backward: the first derivative in place of the second", "at(below.w)[i], at(below.e)[i]", "at(below.w)[i], at(below.d)[i]"),
    _solve("backward: a frequency's gradient without the time", "fma(t, of_angle, slice", "fma(S(1), of_angle, slice", "neural_ode_time.cuh"),
    _solve("no barrier before φ(t) is read", f"phi[f]);\n  {_SYNC}", "phi[f]);", "neural_ode_time.cuh"),
    _solve("no barrier before the totals of all units are read", f"  }}\n  {_SYNC}\n  for (int q", "  }\n  for (int q", "neural_ode_time.cuh"),
    _solve("adjoint: the state goes on instead of back", "stage_back(n, i, y, S(0) - h,", "stage_back(n, i, y, h,", "neural_ode_cuda.cu"),
    _stage("an element too many", "if (at < total) p.out[at] =", "if (at <= total) p.out[at] ="),
    _stage("all rows have the first one's weights", "c.weights_row ? at / c.width : 0", "0"),
    _stage("no barrier before the squares are summed", f"}}\n      {_SYNC}\n      total +=", "}\n      total +="),
    _stage("a state that is not finite goes unnoticed", " + (after - after);", ";"),
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
    _masked_on_cpu("CPU: parameters of the next feature", ".z + f * p.parameters)", ".z + (f + 1) * p.parameters)", **_ADDRESS),
    _masked_on_cpu("CPU: a panel's rows one on", "m.columns * kPanelRows + lane", "m.columns * kPanelRows + lane + 1", "masked_autoregressive_tile.h", **_ADDRESS),
    _masked_on_cpu("CPU: a context's inputs one on", "return context + c * R;", "return context + (c + 1) * R;", **_ADDRESS),
    _masked_on_cpu("CPU: a context's weights without the last bias", "(layer.term.inputs + 1) : 0", "layer.term.inputs : 0", "masked_autoregressive_plan.h", **_ADDRESS),
    _masked_on_cpu("CPU: the last rank of a block left out", "rank < p.first[b + 1];", "rank + 1 < p.first[b + 1];", **_ADDRESS),
    _masked_on_cpu("CPU: values read of one sample too many", "for (int n = 0; n < samples; ++n) to[n] =", "for (int n = 0; n <= samples; ++n) to[n] =", "masked_autoregressive_tile.h", **_ADDRESS),
    _masked_on_cpu("CPU: backward: a gate's gradient with the wrong sign", "store(of_gate + i, g_z *", "store(of_gate + i, T(S(-1)) * g_z *", **_ADDRESS),
    _masked_on_cpu("CPU: backward: of two skips from one layer, one cotangent", "load(past + i) + g_z", "g_z", **_ADDRESS),
    _masked_on_cpu("CPU: one tile for all threads", "return scratch<S, 1>(p.memory * tiles.width);", "static S* memory = scratch<S, 1>(p.memory * tiles.width); return memory;", "masked_autoregressive_cpu.cpp", **_THREAD),
    _common("CPU: a matrix's rows one on", "columns * kPanelRows + lane;", "columns * kPanelRows + lane + 1;", "panel_product.h", ODE_ON_CPU, **_ADDRESS),
    _ode_on_cpu("CPU: the next stage's slope", "of_k(j * apart + r, i)", "of_k((j + 1) * apart + r, i)", "neural_ode_tile.h", **_ADDRESS),
    _ode_on_cpu("CPU: a sample behind the last", "(n < samples ? n : samples - 1)", "(n < samples ? n : samples)", "neural_ode_tile.h", **_ADDRESS),
    _ode_on_cpu("CPU: backward: ‖f‖² with the wrong sign", "of_f2(0, i) * T(S(2))", "of_f2(0, i) * T(S(-2))", "neural_ode_field.h", **_ADDRESS),
    _ode_on_cpu("CPU: backward: a step's size without the times of its stages", "+= (S(step.n) + c) * of_time", "+= S(step.n) * of_time", "neural_ode_field.h", **_ADDRESS),
    _ode_on_cpu("CPU: adjoint: the state stepped the wrong way", "combine(y, S(0) - h, p.b,", "combine(y, h, p.b,", **_ADDRESS),
    _ode_on_cpu("CPU: one tile for all threads", "S* memory = scratch", "static S* memory = scratch", "neural_ode_cpu.cpp", **_THREAD),
    _stage_on_cpu("CPU: weights of the next row", "c.weights[row * c.weights_row", "c.weights[(row + 1) * c.weights_row", **_ADDRESS),
    _stage_on_cpu("CPU: slopes one element on", "k[j] = c.k[j] + first;", "k[j] = c.k[j] + first + 1;", **_ADDRESS),
    _stage_on_cpu("CPU: the sum with the wrong sign", "out[i] = y[i] + sum", "out[i] = y[i] - sum", **_ADDRESS),
    _stage_on_cpu("CPU: one buffer for all threads", "  Buffer<S> squares;", "  static Buffer<S> squares;", **_THREAD),
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
    """With the fault in the ops that have cases to run."""
    ops = {OPS[case.partition("-")[0]] for case in mutation.cases}
    if mutation.kind == "checked":
        return emulation.built(emulation.CHECKED, emulation.kernels(csrc, ops), csrc)
    return build.library(mutation.kind, build.runnable()[-1], csrc, ops)


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
