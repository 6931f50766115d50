"""The faults that are planted in this op's kernels, see tests/gpu/sanitizers/planted.py."""

from tests.gpu.sanitizers.mutations import ADDRESS, SYNC, THREAD, Mutation, no_barrier

# The fault is looked for in these cases.
STAGE = ("stage-rows-257", "stage-not finite", "stage-(2, 1100) by row", "stage-(5, 8) by row")
STAGE_ON_CPU = ("stage-(7, 3) by row", "stage-(2, 513) by row", "stage-(70,)", "stage-8 stages")
TRITON = ("stage-(7, 3)", "stage-(7, 3) by row")


def _stage(fault, old, new):
    return Mutation(fault, "csrc/runge_kutta_stage/cuda.cu", old, new, STAGE)


def _stage_on_cpu(fault, old, new, **more):
    return Mutation(fault, "csrc/runge_kutta_stage/simd.cpp", old, new, STAGE_ON_CPU, **more)


def _triton(fault, old, new):
    return Mutation(f"Triton: {fault}", "flowkern/ops/_runge_kutta_stage/triton.py", old, new, TRITON, "triton")


FAULTS = (
    _stage("an element too many", "if (at < total) p.out[at] =", "if (at < total + FAULT) p.out[at] ="),
    _stage("all rows have the first one's weights", "c.weights_row ? at / c.width : 0", "c.weights_row && !FAULT ? at / c.width : 0"),
    _stage("no barrier before the squares are summed", *no_barrier(f"}}\n      {SYNC}\n      total +=")),
    _stage("a state that is not finite goes unnoticed", " + (after - after);", " + (FAULT ? S(0) : after - after);"),
    _stage_on_cpu("CPU: weights of the next row", "c.weights[row * c.weights_row", "c.weights[(row + FAULT) * c.weights_row", **ADDRESS),
    _stage_on_cpu("CPU: slopes one element on", "k[j] = c.k[j] + first;", "k[j] = c.k[j] + first + FAULT;", **ADDRESS),
    _stage_on_cpu("CPU: the sum with the wrong sign", "out[i] = y[i] + sum", "out[i] = FAULT ? y[i] - sum : y[i] + sum", **ADDRESS),
    _stage_on_cpu("CPU: one buffer for all threads", "  Buffer<S> squares;", "  static Buffer<S> all;\n  Buffer<S> own;\n  Buffer<S>& squares = FAULT ? all : own;", **THREAD),
    _triton("the weight of the next slope", "w + 2 * w_j", "w + (2 + FAULT) * w_j"),
    _triton("an element too many", "here = at < N.to(tl.int64) * D", "here = at < N.to(tl.int64) * D + FAULT"),
    _triton("sums stored of a row too many", "tl.sum(total, 1), mask=rows < N", "tl.sum(total, 1), mask=rows < N + FAULT"),
    _triton("the sum with the wrong sign", "mask=here, other=0.0) + total", "mask=here, other=0.0) + (1 - 2 * FAULT) * total"),
)  # fmt: skip
