"""The faults that are planted in this op's kernels, see tests/gpu/sanitizers/planted.py."""

from tests.gpu.sanitizers.mutations import ADDRESS, SYNC, Mutation, no_barrier

# The fault is looked for in these cases.
SPLINE = ("spline-k8", "spline-k256-wide", "spline-wide-k3", "spline-index", "spline-sliced", "spline-circular")
TRITON = ("spline-k3", "spline-index", "spline-one_row")


def _spline(fault, old, new, file="cuda.cu", **more):
    return Mutation(fault, f"csrc/rational_quadratic_spline/{file}", old, new, SPLINE, **more)


def _triton(fault, old, new, file="triton_element.py"):
    return Mutation(f"Triton: {fault}", f"flowkern/ops/_rational_quadratic_spline/{file}", old, new, TRITON, "triton")


FAULTS = (
    _spline("y written one column on", "at.row * p.width + at.column] = out.y", "at.row * p.width + at.column + FAULT] = out.y"),
    _spline("log-dets begin inside the stage", "? int(blockDim.x) * stage.stride : 0)", "? int(blockDim.x - FAULT) * stage.stride : 0)"),
    _spline("a row too many in a pass", "count = left < int(blockDim.x) ? left :", "count = left < int(blockDim.x) ? left + FAULT :"),
    _spline("no barrier after the columns are copied", *no_barrier(f"p.width, width, rows);\n  {SYNC}")),
    _spline("no barrier after a pass", *no_barrier(f"    {SYNC}  // the stage is free again, and the log-dets are there\n")),
    _spline("no barrier after the log-dets are summed", *no_barrier(f"plan.lanes);\n      {SYNC}")),
    _spline("a barrier behind the threads that have left", "if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);\n        if (!at.used) return;", "if (FAULT && !at.used) return;\n        if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);\n        if (!at.used) return;"),
    _spline("backward: the left knot with the wrong sign", "g.x_k = select(bin.last, zero, zero - g.x)", "g.x_k = select(bin.last, zero, FAULT ? g.x : zero - g.x)", "math.h"),
    _spline("backward of the inverse: g_logabsdet with the wrong sign", "g_l = zero - g_logabsdet", "g_l = FAULT ? g_logabsdet : zero - g_logabsdet", "math.h"),
    _spline("backward: the right slope's cotangent in the wrong bin", "select(index == T(S(i)), g_r, zero)", "select(index == T(S(i + 2 * FAULT)), g_r, zero)", "bin.h"),
    _spline("CPU: the last tile of a run passes its end", "<Vec<S>>(run, i < last ? i : last)", "<Vec<S>>(run, i < last ? i : last + FAULT)", "simd.cpp", **ADDRESS),
    _spline("CPU: a streamed gradient twice what it is", "stream(tile + k, load(stage + k))", "stream(tile + k, FAULT ? load(stage + k) + load(stage + k) : load(stage + k))", "simd.cpp", **ADDRESS),
    _triton("the slope of the next knot", "(2 * SPEC.bins + place) * p_k", "(2 * SPEC.bins + place + FAULT) * p_k"),
    _triton("elements stored that there are not", "d, value, mask=found", "d, value, mask=(d < D) if FAULT else found", "triton.py"),
    _triton("backward: the left knot with the wrong sign", "gz, -gtheta / w, gw", "gz, (2 * FAULT - 1) * gtheta / w, gw"),
)  # fmt: skip
