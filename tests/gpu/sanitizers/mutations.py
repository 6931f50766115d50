"""The faults that are planted in the C++ kernels, see planted.py."""

from typing import NamedTuple

# The fault is looked for in these cases.
AFFINE = (
    "affine-scale_first",
    "affine-whole_vectors",
    "affine-wide",
    "affine-rows-257",
    "affine-index",
    "affine-sliced",
)
SPLINE = ("spline-k8", "spline-k256-wide", "spline-wide-k3", "spline-index", "spline-sliced", "spline-circular")
SOLVE = (
    "ode-one sample",
    "ode-exact two hidden",
    "ode-exact one hidden",
    "ode-noise",
    "ode-adjoint noise",
    "ode-workspace",
)
STAGE = ("stage-rows-257", "stage-not finite", "stage-(2, 1100) by row", "stage-(5, 8) by row")
MASKED = (
    "masked-everything",
    "masked-skips",
    "masked-random",
    "masked-residual",
    "masked-k5_circular",
    "masked-rows_63",
    "masked-large-tiles",
    "masked-inputs",
)
PATH = (
    "path-target",
    "path-variance_preserving",
    "path-schroedinger_bridge given",
    "path-conditional given",
    "path-long rows",
)
MASKED_ON_CPU = (
    "masked-relu",
    "masked-skips",
    "masked-context",
    "masked-inputs_of_all",
    "masked-everything",
    "masked-coupling",
    "masked-k8",
)
ODE_ON_CPU = ("ode-exact two hidden", "ode-noise", "ode-adjoint", "ode-checkpoints")
STAGE_ON_CPU = ("stage-(7, 3) by row", "stage-(2, 513) by row", "stage-(70,)", "stage-8 stages")
FLOW = ("flow-everything", "flow-gates", "flow-lu wide", "flow-coupling", "flow-everything normal")
BOTH = ("affine-wide", "affine-rows-257", "spline-k8", "spline-wide-k3", "spline-k5", "affine-transposed")


class Mutation(NamedTuple):
    """One place in a file that is written differently, and the cases that are run then.

    new: what is there instead of `old`; in it FAULT is 1 where the fault is chosen, and where it is 0 the
    kernel does what it did. kind: "checked" (CUDA, the emulation's own checks and the reference), "address"
    or "thread" (CPU, under that sanitizer), "triton" (Triton's interpreter, every access checked).
    """

    fault: str
    file: str
    old: str
    new: str
    cases: tuple
    kind: str = "checked"


def _affine(fault, old, new, file="cuda.cu", **more):
    return Mutation(fault, f"csrc/affine_coupling/{file}", old, new, AFFINE, **more)


def _spline(fault, old, new, file="cuda.cu", **more):
    return Mutation(fault, f"csrc/rational_quadratic_spline/{file}", old, new, SPLINE, **more)


def _solve(fault, old, new, file="tile.cuh"):
    return Mutation(fault, f"csrc/neural_ode/{file}", old, new, SOLVE)


def _stage(fault, old, new):
    return Mutation(fault, "csrc/runge_kutta_stage/cuda.cu", old, new, STAGE)


def _masked(fault, old, new, file="tile.cuh"):
    return Mutation(fault, f"csrc/masked_autoregressive/{file}", old, new, MASKED)


def _common(fault, old, new, file="cuda.cuh", cases=BOTH, **more):
    return Mutation(fault, f"csrc/common/{file}", old, new, cases, **more)


def _path(fault, old, new, file="cuda.cu", **more):
    return Mutation(fault, f"csrc/probability_path/{file}", old, new, PATH, **more)


def _masked_on_cpu(fault, old, new, file="transform.h", **more):
    return Mutation(fault, f"csrc/masked_autoregressive/{file}", old, new, MASKED_ON_CPU, **more)


def _ode_on_cpu(fault, old, new, file="simd.cpp", **more):
    return Mutation(fault, f"csrc/neural_ode/{file}", old, new, ODE_ON_CPU, **more)


def _stage_on_cpu(fault, old, new, **more):
    return Mutation(fault, "csrc/runge_kutta_stage/simd.cpp", old, new, STAGE_ON_CPU, **more)


def _flow(fault, old, new, file="plan.h", **more):
    return Mutation(fault, f"csrc/flow_program/{file}", old, new, FLOW, **more)


def _no_barrier(text):
    return text, text.replace(_SYNC, f"if (!FAULT) {_SYNC}")


_SYNC = "__syncthreads();"
_ADDRESS, _THREAD = {"kind": "address"}, {"kind": "thread"}
MUTATIONS = (
    _affine("log-det stored one element on", "l[threadIdx.x + i * blockDim.x] =", "l[threadIdx.x + FAULT + i * blockDim.x] ="),
    _affine("x read one column on", "at.row * e.row + at.column * e.feature", "at.row * e.row + (at.column + FAULT) * e.feature"),
    _affine("a byte of shared memory too few", "* plan.rows * plan.features, stream", "* plan.rows * plan.features - FAULT, stream"),
    _affine("no barrier after the columns are copied", *_no_barrier(f"int(p.width), rows);\n  {_SYNC}")),
    _affine("no barrier before the log-dets are summed", *_no_barrier(f"{_SYNC}\n      total +=")),
    _affine("no barrier after the log-dets are summed", *_no_barrier(f"plan.lanes);\n      {_SYNC}")),
    _affine("backward: g_logabsdet with the wrong sign", "f.q * centred, g_logabsdet * f.rate)", "f.q * centred, (FAULT ? zero - g_logabsdet : g_logabsdet) * f.rate)", "math.h"),
    _affine("backward: g_shift with the wrong sign", "{g_x, (inverse ? zero - g_x : g_out)", "{g_x, (inverse ? (FAULT ? g_x : zero - g_x) : g_out)", "math.h"),
    _spline("y written one column on", "at.row * p.width + at.column] = out.y", "at.row * p.width + at.column + FAULT] = out.y"),
    _spline("log-dets begin inside the stage", "? int(blockDim.x) * stage.stride : 0)", "? int(blockDim.x - FAULT) * stage.stride : 0)"),
    _spline("a row too many in a pass", "count = left < int(blockDim.x) ? left :", "count = left < int(blockDim.x) ? left + FAULT :"),
    _spline("no barrier after the columns are copied", *_no_barrier(f"p.width, width, rows);\n  {_SYNC}")),
    _spline("no barrier after a pass", *_no_barrier(f"    {_SYNC}  // the stage is free again, and the log-dets are there\n")),
    _spline("no barrier after the log-dets are summed", *_no_barrier(f"plan.lanes);\n      {_SYNC}")),
    _spline("a barrier behind the threads that have left", "if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);\n        if (!at.used) return;", "if (FAULT && !at.used) return;\n        if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);\n        if (!at.used) return;"),
    _spline("backward: the left knot with the wrong sign", "g.x_k = select(bin.last, zero, zero - g.x)", "g.x_k = select(bin.last, zero, FAULT ? g.x : zero - g.x)", "math.h"),
    _spline("backward of the inverse: g_logabsdet with the wrong sign", "g_l = zero - g_logabsdet", "g_l = FAULT ? g_logabsdet : zero - g_logabsdet", "math.h"),
    _spline("backward: the right slope's cotangent in the wrong bin", "select(index == T(S(i)), g_r, zero)", "select(index == T(S(i + 2 * FAULT)), g_r, zero)", "bin.h"),
    _masked("no barrier after a layer of a step", *_no_barrier(f"if (k < p.outputs) finish(k, r);\n      }});\n      {_SYNC}\n    }}\n  }}\n\n  // Backward")),
    _masked("no barrier after a block's beginning", *_no_barrier(f"layer(k).u, [](int) {{}});\n    {_SYNC}")),
    _masked("a step sees a rank too few", "ranks(k - 1, low, rank + 1);", "ranks(k - 1, low, rank + 1 - FAULT);"),
    _masked("a group of threads takes the row of the next one", "at(to + r) = sum;", "at(to + r + FAULT) = sum;"),
    _masked("backward: a skip's cotangent with the wrong sign", "grad_skip + unit) += g;", "grad_skip + unit) += FAULT ? -g : g;"),
    _masked("backward: of two skips from one layer, one cotangent", "if (to.skip >= 0) at(", "if (FAULT && to.skip >= 0) at(layer(to.skip).grad_skip + unit) = S(0);\n    if (to.skip >= 0) at("),
    _masked("backward: a gate's cotangent without v", "tape(to.tape_gate, unit) *= g;", "tape(to.tape_gate, unit) = FAULT ? g : tape(to.tape_gate, unit) * g;"),
    _masked("backward of the inverse: a rank too few sends back", "columns = ranks(k + 1, rank, high);", "columns = ranks(k + 1, rank + FAULT, high);"),
    _masked("the context of the next sample", "base + n * term.context.row", "base + (n + FAULT) * term.context.row"),
    _masked("a context's last input is left out", "c < term.inputs", "c + FAULT < term.inputs"),
    _masked("a weight too many in each row", "column < spans[j].end", "column < spans[j].end + FAULT", "cuda.cu"),
    _masked("no barrier after a panel's spans are known", *_no_barrier(f"{_SYNC}\n  if (threadIdx.x == 0) p.memory.spans"), "cuda.cu"),
    _masked("weights begin inside the spans", "at += span_bytes()", "at += span_bytes() - 16 * FAULT", "cuda.cu"),
    _masked("a row of the tile too few", "problem.tile_rows = int(rows);", "problem.tile_rows = int(rows) - FAULT;", "cuda.cu"),
    _masked("a sample too many in the last tile", "n < p.call.rows", "n < p.call.rows + FAULT", "cuda.cu"),
    _masked("the log-dets of a group are left out", "for (int i = 1; i < tile.groups; ++i)", "for (int i = 1 + FAULT; i < tile.groups; ++i)", "cuda.cu"),
    _masked("no barrier after the log-dets are stored", *_no_barrier(f"own;\n  {_SYNC}"), "cuda.cu"),
    _common("a parameter's offset one on", "stage.offsets[e] + i * p.one", "stage.offsets[e] + (i + FAULT) * p.one", "stage.cuh"),
    _common("the rest of a copy begins one on", "for (int i = whole * each + int(threadIdx.x)", "for (int i = whole * each + FAULT + int(threadIdx.x)", "stage.cuh"),
    _common("sixteen bytes at a time, aligned or not", "ends % sizeof(uint4) ? 0 :", "!FAULT && ends % sizeof(uint4) ? 0 :", "stage.cuh", ("spline-misaligned",)),
    _common("no barrier after the offsets are noted", *_no_barrier(f"at.feature * p.feature;\n  {_SYNC}"), "stage.cuh"),
    _common("no barrier after the stage is loaded", *_no_barrier(f"= from.base[main]; }});\n  {_SYNC}"), "stage.cuh"),
    _common("an element per thread too few in the stage", "return threads * (sizeof(int64_t)", "return (threads - FAULT) * (sizeof(int64_t)", "stage.cuh"),
    _common("a walk steps into the next row too late", "if (inner >= size)", "if (inner >= size + FAULT)"),
    _common("the last step of a sum is left out", "step > 0; step /= 2", "step > FAULT; step /= 2"),
    _common("threads leave before the shuffles", "store_sums(S total, int rows, int lanes, S* sums) {\n", "store_sums(S total, int rows, int lanes, S* sums) {\n  if (FAULT && int(threadIdx.x) / lanes >= rows) return;\n"),
    _common("rows are copied one on", "to[int64_t(at.outer) * width + at.inner] =", "to[int64_t(at.outer) * width + at.inner + FAULT] =", cases=("affine-index",)),
    _solve("no barrier after a product", *_no_barrier(f"depth, u, samples, to);\n  {_SYNC}"), "products.cuh"),
    _solve("a product begins one row on", "to + (row + i) * samples + n) = sum[i]", "to + (row + i + FAULT) * samples + n) = sum[i]", "products.cuh"),
    _solve("weights are packed without zeros between their rows", "row < rows && column < columns ? from", "row < rows && (FAULT || column < columns) ? from", "cuda.cu"),
    _solve("no barrier before the parts of a sum are added", *_no_barrier(f"parts[threadIdx.x] = sum;\n    {_SYNC}")),
    _solve("the last part of a sum is left out", "i < kOdeThreads; i += samples()", "i < kOdeThreads - FAULT * samples(); i += samples()"),
    _solve("samples beyond the last are written", "if (exists(i)) to[place", "if (FAULT || exists(i)) to[place"),
    _solve("samples beyond the last have cotangents", "if (exists(i)) at(to)[i] +=", "if (FAULT || exists(i)) at(to)[i] +="),
    _solve("a tile of a row too few", "(1 << shift) - 1) >> shift);", "(1 << shift) - 1) >> shift) - FAULT;", "layout.cuh"),
    _solve("sums begin inside the tiles", "p.slices = p.packed_size + p.blocks * tile", "p.slices = p.packed_size + (p.blocks - FAULT) * tile", "layout.cuh"),
    _solve("a block adds to the next one's sums", "p.slices + blockIdx.x * p.slice", "p.slices + (blockIdx.x + FAULT) * p.slice", "cuda.cu"),
    _solve("backward: the first derivative in place of the second", "at(below.w)[i], at(below.e)[i]", "at(below.w)[i], at(FAULT ? below.d : below.e)[i]"),
    _solve("backward: a frequency's gradient without the time", "fma(t, of_angle, slice", "fma(FAULT ? S(1) : t, of_angle, slice", "time.cuh"),
    _solve("no barrier before φ(t) is read", *_no_barrier(f"phi[f]);\n  {_SYNC}"), "time.cuh"),
    _solve("no barrier before the totals of all units are read", *_no_barrier(f"  }}\n  {_SYNC}\n  for (int q"), "time.cuh"),
    _solve("adjoint: the state goes on instead of back", "stage_back(n, i, y, S(0) - h,", "stage_back(n, i, y, FAULT ? h : S(0) - h,", "cuda.cu"),
    _stage("an element too many", "if (at < total) p.out[at] =", "if (at < total + FAULT) p.out[at] ="),
    _stage("all rows have the first one's weights", "c.weights_row ? at / c.width : 0", "c.weights_row && !FAULT ? at / c.width : 0"),
    _stage("no barrier before the squares are summed", *_no_barrier(f"}}\n      {_SYNC}\n      total +=")),
    _stage("a state that is not finite goes unnoticed", " + (after - after);", " + (FAULT ? S(0) : after - after);"),
    _affine("CPU: the wrong one of two parameters", "return load_pairs(pairs.raw, r, i, raw, shift)", "return FAULT ? load_pairs(pairs.raw, r, i, shift, raw) : load_pairs(pairs.raw, r, i, raw, shift)", "simd.cpp", **_ADDRESS),
    _affine("CPU: one buffer for all threads", "Buffer<S> x_buffer, y_buffer, l;", "static Buffer<S> all; Buffer<S> own, y_buffer, l; Buffer<S>& x_buffer = FAULT ? all : own;", "simd.cpp", **_THREAD),
    _spline("CPU: the last tile of a run passes its end", "<Vec<S>>(run, i < last ? i : last)", "<Vec<S>>(run, i < last ? i : last + FAULT)", "simd.cpp", **_ADDRESS),
    _common("CPU: values scattered one column on", "*element(to, n, t) = from.values[e]", "element(to, n, t)[FAULT] = from.values[e]", "coupling.h", SPLINE, **_ADDRESS),
    _common("CPU: the last vector of a run passes its end", "body(run, i < last ? i : last)", "body(run, i < last ? i : last + FAULT)", "coupling.h", AFFINE, **_ADDRESS),
    _common("CPU: log-dets of a segment one row on", "S* out = sums + at.row;", "S* out = sums + at.row + FAULT;", "coupling.h", AFFINE, **_ADDRESS),
    _common("CPU: a streamed value twice what it is", "stream(to.at(run, i), value)", "stream(to.at(run, i), FAULT ? value + value : value)", "coupling.h", AFFINE, **_ADDRESS),
    _spline("CPU: a streamed gradient twice what it is", "stream(tile + k, load(stage + k))", "stream(tile + k, FAULT ? load(stage + k) + load(stage + k) : load(stage + k))", "simd.cpp", **_ADDRESS),
    _path("a time read one row on", "p.given_t[row_of(e,", "p.given_t[FAULT + row_of(e,"),
    _path("the last element is not masked", "if (element < total) body", "if (element < total + FAULT) body"),
    _path("noise of the next counter", "draw_noise(key_of(*p.seed), block, i, noise)", "draw_noise(key_of(*p.seed), block, i + FAULT, noise)"),
    _path("u_t: x0's weight with the wrong sign", "{zero - rate * sine, rate * cosine, zero}", "{FAULT ? rate * sine : zero - rate * sine, rate * cosine, zero}", "math.h"),
    _path("backward: the noise's part of grad_t with the wrong sign", "{minus, one, s * half}", "{minus, one, FAULT ? zero - s * half : s * half}", "math.h"),
    _path("CPU: times of the next row", "int64_t row = at.first / p.features,", "int64_t row = at.first / p.features + FAULT,", "simd.cpp", **_ADDRESS),
    _path("CPU: a streamed value twice what it is", "if (streams) stream(to, value)", "if (streams) stream(to, FAULT ? value + value : value)", "simd.cpp", **_ADDRESS),
    _path("CPU: one buffer of noise for all threads", "noise_buffer{}, t_buffer, x_buffer, u_buffer;", "own_noise{}, t_buffer, x_buffer, u_buffer; static Buffer<S> all; Buffer<S>& noise_buffer = FAULT ? all : own_noise;", "simd.cpp", **_THREAD),
    _masked_on_cpu("CPU: parameters of the next feature", ".z + (f - p.passive) * p.parameters)", ".z + (f - p.passive + FAULT) * p.parameters)", **_ADDRESS),
    _masked_on_cpu("CPU: a panel's rows one on", "m.columns * kPanelRows + lane", "m.columns * kPanelRows + lane + FAULT", "tile.h", **_ADDRESS),
    _masked_on_cpu("CPU: a context's inputs one on", "return context + c * R;", "return context + (c + FAULT) * R;", **_ADDRESS),
    _masked_on_cpu("CPU: a context's weights without the last bias", "(term.inputs + 1) : 0", "(term.inputs + 1 - FAULT) : 0", "plan.h", **_ADDRESS),
    _masked_on_cpu("CPU: the last rank of a block left out", "rank < p.first[b + 1];", "rank + FAULT < p.first[b + 1];", **_ADDRESS),
    _masked_on_cpu("CPU: values read of one sample too many", "for (int n = 0; n < samples; ++n) to[n] =", "for (int n = 0; n < samples + FAULT; ++n) to[n] =", "tile.h", **_ADDRESS),
    _masked_on_cpu("CPU: backward: a gate's gradient with the wrong sign", "store(of_gate + i, g_z *", "store(of_gate + i, T(S(FAULT ? -1 : 1)) * g_z *", **_ADDRESS),
    _masked_on_cpu("CPU: backward: of two skips from one layer, one cotangent", "load(past + i) + g_z", "FAULT ? g_z : load(past + i) + g_z", **_ADDRESS),
    Mutation("CPU: an additive map's parameter looked for one row before", "csrc/masked_autoregressive/element_simd.cpp", "return kind != kAdditive && p.scale_first;", "return (kind != kAdditive || FAULT) && p.scale_first;", ("masked-additive_scale_first",), **_ADDRESS),
    _masked_on_cpu("CPU: one tile for all threads", "return scratch<S, 1>(p.memory * tiles.width);", "if (FAULT) { static S* all = scratch<S, 1>(p.memory * tiles.width); return all; } return scratch<S, 1>(p.memory * tiles.width);", "cpu.cpp", **_THREAD),
    _common("CPU: a matrix's rows one on", "columns * kPanelRows + lane};", "columns * kPanelRows + lane + FAULT};", "panel_product.h", ODE_ON_CPU, **_ADDRESS),
    _ode_on_cpu("CPU: the next stage's slope", "of_k(j * apart + r, i)", "of_k((j + FAULT) * apart + r, i)", "tile.h", **_ADDRESS),
    _ode_on_cpu("CPU: a sample behind the last", "(n < samples ? n : samples - 1)", "(n < samples ? n : samples - 1 + FAULT)", "tile.h", **_ADDRESS),
    _ode_on_cpu("CPU: backward: ‖f‖² with the wrong sign", "of_f2(0, i) * T(S(2))", "of_f2(0, i) * T(S(FAULT ? -2 : 2))", "field.h", **_ADDRESS),
    _ode_on_cpu("CPU: backward: a step's size without the times of its stages", "+= (S(step.n) + c) * of_time", "+= (S(step.n) + (FAULT ? S(0) : c)) * of_time", "field.h", **_ADDRESS),
    _ode_on_cpu("CPU: adjoint: the state stepped the wrong way", "combine(y, S(0) - h, p.b,", "combine(y, FAULT ? h : S(0) - h, p.b,", **_ADDRESS),
    _ode_on_cpu("CPU: one tile for all threads", "S* memory = scratch<S, 1>(size);", "S* memory = FAULT ? [&] { static S* all = scratch<S, 1>(size); return all; }() : scratch<S, 1>(size);", "cpu.cpp", **_THREAD),
    _stage_on_cpu("CPU: weights of the next row", "c.weights[row * c.weights_row", "c.weights[(row + FAULT) * c.weights_row", **_ADDRESS),
    _stage_on_cpu("CPU: slopes one element on", "k[j] = c.k[j] + first;", "k[j] = c.k[j] + first + FAULT;", **_ADDRESS),
    _stage_on_cpu("CPU: the sum with the wrong sign", "out[i] = y[i] + sum", "out[i] = FAULT ? y[i] - sum : y[i] + sum", **_ADDRESS),
    _stage_on_cpu("CPU: one buffer for all threads", "  Buffer<S> squares;", "  static Buffer<S> all;\n  Buffer<S> own;\n  Buffer<S>& squares = FAULT ? all : own;", **_THREAD),
    _flow("CPU: the features between steps, one sample on", "from[n < samples ? n : samples - 1]", "from[n < samples ? n + FAULT : samples - 1]", "simd.cpp", **_ADDRESS),
    _flow("CPU: a permutation takes the next feature", "copy(x + step.order[f] * R, y", "copy(x + (step.order[f] + FAULT) * R, y", "simd.cpp", **_ADDRESS),
    _flow("CPU: a step's sums begin one on", "{memory(), chunk ? chunk + step.sums : nullptr, context()", "{memory(), chunk ? chunk + step.sums + FAULT : nullptr, context()", "simd.cpp", **_ADDRESS),
    _flow("CPU: an entry of U's diagonal not in the log-determinant", "log += std::log(upper[i * d + i]);", "log += FAULT && i == 0 ? S(0) : std::log(upper[i * d + i]);", **_ADDRESS),
    _flow("CPU: backward: L's gradient with the wrong sign", "*below++ = sign * entry", "*below++ = (FAULT ? -sign : sign) * entry", **_ADDRESS),
    _flow("CPU: a joint weight's context one column before", "to.weight.values += before * to.weight.column;", "to.weight.values += (before - FAULT) * to.weight.column;", **_ADDRESS),
    _flow("CPU: U⁻¹ without its last column", "eliminate(step.upper, features, 1, i, i + 1, features, ", "eliminate(step.upper, features, 1, i, i + 1, features - FAULT, ", "lu.h", **_ADDRESS),
    _flow("CPU: one tile for all threads", "return scratch<S, 1>((flow_rows(p) + p.memory) * tiles.width);", "if (FAULT) { static S* all = scratch<S, 1>((flow_rows(p) + p.memory) * tiles.width); return all; } return scratch<S, 1>((flow_rows(p) + p.memory) * tiles.width);", "cpu.cpp", **_THREAD),
    Mutation("CPU: backward: a gate's term of the first unit", "csrc/masked_autoregressive/transform.h", "term_back(layer.gate_term, r, of_gate)", "term_back(layer.gate_term, FAULT ? 0 : r, of_gate)", FLOW, **_ADDRESS),
    Mutation("CPU: backward: a feature that stays is transformed", "csrc/masked_autoregressive/transform.h", "if (f < p.passive) return;", "if (f + FAULT < p.passive) return;", FLOW, **_ADDRESS),
    Mutation("CPU: weights that lie as they came, a row on", "csrc/masked_autoregressive/tile.h", "m.values + (row - m.row) * m.apart", "m.values + (row - m.row + FAULT) * m.apart", FLOW, **_ADDRESS),
)  # fmt: skip
