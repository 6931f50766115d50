"""The faults that are planted in this op's kernels, see tests/gpu/sanitizers/planted.py."""

from tests.gpu.sanitizers.mutations import ADDRESS, SYNC, THREAD, Mutation, no_barrier

# The fault is looked for in these cases.
AFFINE = (
    "affine-scale_first",
    "affine-whole_vectors",
    "affine-wide",
    "affine-rows-257",
    "affine-index",
    "affine-sliced",
)
TRITON = ("affine-index", "affine-tanh", "affine-scale_first")


def _affine(fault, old, new, file="cuda.cu", **more):
    return Mutation(fault, f"csrc/affine_coupling/{file}", old, new, AFFINE, **more)


def _triton(fault, old, new):
    return Mutation(f"Triton: {fault}", "flowkern/ops/_affine_coupling/triton.py", old, new, TRITON, "triton")


FAULTS = (
    _affine("log-det stored one element on", "l[threadIdx.x + i * blockDim.x] =", "l[threadIdx.x + FAULT + i * blockDim.x] ="),
    _affine("x read one column on", "at.row * e.row + at.column * e.feature", "at.row * e.row + (at.column + FAULT) * e.feature"),
    _affine("a byte of shared memory too few", "* plan.rows * plan.features, stream", "* plan.rows * plan.features - FAULT, stream"),
    _affine("no barrier after the columns are copied", *no_barrier(f"int(p.width), rows);\n  {SYNC}")),
    _affine("no barrier before the log-dets are summed", *no_barrier(f"{SYNC}\n      total +=")),
    _affine("no barrier after the log-dets are summed", *no_barrier(f"plan.lanes);\n      {SYNC}")),
    _affine("backward: g_logabsdet with the wrong sign", "f.q * centred, g_logabsdet * f.rate)", "f.q * centred, (FAULT ? zero - g_logabsdet : g_logabsdet) * f.rate)", "math.h"),
    _affine("backward: g_shift with the wrong sign", "{g_x, (inverse ? zero - g_x : g_out)", "{g_x, (inverse ? (FAULT ? g_x : zero - g_x) : g_out)", "math.h"),
    _affine("CPU: the wrong one of two parameters", "return load_pairs(pairs.raw, r, i, raw, shift)", "return FAULT ? load_pairs(pairs.raw, r, i, shift, raw) : load_pairs(pairs.raw, r, i, raw, shift)", "simd.cpp", **ADDRESS),
    _affine("CPU: one buffer for all threads", "Buffer<S> x_buffer, y_buffer, l;", "static Buffer<S> all; Buffer<S> own, y_buffer, l; Buffer<S>& x_buffer = FAULT ? all : own;", "simd.cpp", **THREAD),
    _triton("x read one column on", "d * x_d, mask=found, other=0.0).to(COMPUTE)\n        of_t", "(d + FAULT) * x_d, mask=found, other=0.0).to(COMPUTE)\n        of_t"),
    _triton("log-dets stored of a row too many", "tl.sum(total, 1), mask=rows < N", "tl.sum(total, 1), mask=rows < N + FAULT"),
    _triton("backward: the shift's gradient with the wrong sign", "grad_shift = -SHIFT_PREFACTOR * g", "grad_shift = (2 * FAULT - 1) * SHIFT_PREFACTOR * g"),
)  # fmt: skip
