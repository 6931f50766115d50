"""The faults that are planted in this op's kernels, see tests/gpu/sanitizers/planted.py."""

from tests.gpu.sanitizers.mutations import ADDRESS, SYNC, THREAD, Mutation, no_barrier, no_triton_barrier

# The fault is looked for in these cases.
SOLVE = (
    "ode-one sample",
    "ode-exact two hidden",
    "ode-exact one hidden",
    "ode-noise",
    "ode-adjoint noise",
    "ode-workspace",
)
ODE_ON_CPU = ("ode-exact two hidden", "ode-noise", "ode-adjoint", "ode-checkpoints")
TRITON = ("ode-one sample", "ode-adjoint noise", "ode-adjoint one hidden", "ode-exact linear")


def _solve(fault, old, new, file="tile.cuh"):
    return Mutation(fault, f"csrc/neural_ode/{file}", old, new, SOLVE)


def _ode_on_cpu(fault, old, new, file="simd.cpp", **more):
    return Mutation(fault, f"csrc/neural_ode/{file}", old, new, ODE_ON_CPU, **more)


def _triton(fault, old, new, file="triton_field.py"):
    return Mutation(f"Triton: {fault}", f"flowkern/ops/_neural_ode/{file}", old, new, TRITON, "triton")


FAULTS = (
    _solve("no barrier after a product", *no_barrier(f"depth, u, samples, to);\n  {SYNC}"), "products.cuh"),
    _solve("a product begins one row on", "to + (row + i) * samples + n) = sum[i]", "to + (row + i + FAULT) * samples + n) = sum[i]", "products.cuh"),
    _solve("weights are packed without zeros between their rows", "row < rows && column < columns ? from", "row < rows && (FAULT || column < columns) ? from", "cuda.cu"),
    _solve("no barrier before the parts of a sum are added", *no_barrier(f"parts[threadIdx.x] = sum;\n    {SYNC}")),
    _solve("the last part of a sum is left out", "i < kOdeThreads; i += samples()", "i < kOdeThreads - FAULT * samples(); i += samples()"),
    _solve("samples beyond the last are written", "if (exists(i)) to[place", "if (FAULT || exists(i)) to[place"),
    _solve("samples beyond the last have cotangents", "if (exists(i)) at(to)[i] +=", "if (FAULT || exists(i)) at(to)[i] +="),
    _solve("a tile of a row too few", "(1 << shift) - 1) >> shift);", "(1 << shift) - 1) >> shift) - FAULT;", "layout.cuh"),
    _solve("sums begin inside the tiles", "p.slices = p.packed_size + p.blocks * tile", "p.slices = p.packed_size + (p.blocks - FAULT) * tile", "layout.cuh"),
    _solve("a block adds to the next one's sums", "p.slices + blockIdx.x * p.slice", "p.slices + (blockIdx.x + FAULT) * p.slice", "cuda.cu"),
    _solve("backward: the first derivative in place of the second", "at(below.w)[i], at(below.e)[i]", "at(below.w)[i], at(FAULT ? below.d : below.e)[i]"),
    _solve("backward: a frequency's gradient without the time", "fma(t, of_angle, slice", "fma(FAULT ? S(1) : t, of_angle, slice", "time.cuh"),
    _solve("no barrier before φ(t) is read", *no_barrier(f"phi[f]);\n  {SYNC}"), "time.cuh"),
    _solve("no barrier before the totals of all units are read", *no_barrier(f"  }}\n  {SYNC}\n  for (int q"), "time.cuh"),
    _solve("adjoint: the state goes on instead of back", "stage_back(n, i, y, S(0) - h,", "stage_back(n, i, y, FAULT ? h : S(0) - h,", "cuda.cu"),
    _ode_on_cpu("CPU: the next stage's slope", "of_k(j * apart + r, i)", "of_k((j + FAULT) * apart + r, i)", "tile.h", **ADDRESS),
    _ode_on_cpu("CPU: a sample behind the last", "(n < samples ? n : samples - 1)", "(n < samples ? n : samples - 1 + FAULT)", "tile.h", **ADDRESS),
    _ode_on_cpu("CPU: backward: ‖f‖² with the wrong sign", "of_f2(0, i) * T(S(2))", "of_f2(0, i) * T(S(FAULT ? -2 : 2))", "field.h", **ADDRESS),
    _ode_on_cpu("CPU: backward: a step's size without the times of its stages", "+= (S(step.n) + c) * of_time", "+= (S(step.n) + (FAULT ? S(0) : c)) * of_time", "field.h", **ADDRESS),
    _ode_on_cpu("CPU: adjoint: the state stepped the wrong way", "combine(y, S(0) - h, p.b,", "combine(y, FAULT ? h : S(0) - h, p.b,", **ADDRESS),
    _ode_on_cpu("CPU: one tile for all threads", "S* memory = scratch<S, 1>(size);", "S* memory = FAULT ? [&] { static S* all = scratch<S, 1>(size); return all; }() : scratch<S, 1>(size);", "cpu.cpp", **THREAD),
    _triton("the time of another stage", "after = n % net.steps + c", "after = n % net.steps + (1 - 2 * FAULT) * c"),
    _triton("a frequency's gradient without the time", "_add(at, t * of_angle", "_add(at, (1 if FAULT else t) * of_angle", "triton_gradients.py"),
    _triton("no barrier after a stage's state", *no_triton_barrier("values, mask=used)\n    tl.debug_barrier()"), "triton_kernels.py"),
    _triton("a row too many is written", "used = (row < count)[:, None]\n        values = tl.load(rows(base, row), mask=used, other=0.0)\n        tl.store(to", "used = (row < count + FAULT)[:, None]\n        values = tl.load(rows(base, row), mask=used, other=0.0)\n        tl.store(to", "triton_kernels.py"),
    _triton("adjoint: the state stepped the wrong way", "_combine(y, y, 1, -h", "_combine(y, y, 1, (2 * FAULT - 1) * h", "triton_kernels.py"),
    _triton("backward: ‖f‖² with the wrong sign", "grad + 2 * kinetic_bar", "grad + (2 - 4 * FAULT) * kinetic_bar", "triton_gradients.py"),
)  # fmt: skip
