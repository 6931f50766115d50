"""The faults that are planted in this op's kernels, see tests/gpu/sanitizers/planted.py."""

from tests.gpu.sanitizers.mutations import ADDRESS, THREAD, Mutation

# The fault is looked for in these cases.
FLOW = ("flow-everything", "flow-linear", "flow-gates", "flow-lu wide", "flow-coupling", "flow-everything normal")


def _flow(fault, old, new, file="plan.h", **more):
    return Mutation(fault, f"csrc/flow_program/{file}", old, new, FLOW, **more)


FAULTS = (
    _flow("CPU: all steps keep their values in one place", "int64_t(step.kept) * R", "int64_t(FAULT ? 0 : step.kept) * R", "simd.cpp", **ADDRESS),
    _flow("CPU: the features between steps, one sample on", "from[n < samples ? n : samples - 1]", "from[n < samples ? n + FAULT : samples - 1]", "simd.cpp", **ADDRESS),
    _flow("CPU: a permutation takes the next feature", "copy(x + step.order[f] * R, y", "copy(x + (step.order[f] + FAULT) * R, y", "simd.cpp", **ADDRESS),
    _flow("CPU: a step's sums begin off by one", "S* sums = chunk ? chunk + step.sums : nullptr;", "S* sums = chunk ? chunk + step.sums + FAULT : nullptr;", "simd.cpp", **ADDRESS),
    _flow("CPU: an entry of U's diagonal not in the log-determinant", "log += std::log(upper[i * d + i]);", "log += FAULT && i == 0 ? S(0) : std::log(upper[i * d + i]);", **ADDRESS),
    _flow("CPU: backward: L's gradient with the wrong sign", "*below++ = sign * entry", "*below++ = (FAULT ? -sign : sign) * entry", **ADDRESS),
    _flow("CPU: a joint weight's context one column before", "to.weight.values += before * to.weight.column;", "to.weight.values += (before - FAULT) * to.weight.column;", **ADDRESS),
    _flow("CPU: U⁻¹ without its last column", "eliminate(step.upper, features, 1, i, i + 1, features, ", "eliminate(step.upper, features, 1, i, i + 1, features - FAULT, ", "lu.h", **ADDRESS),
    _flow("CPU: backward: a rotation's gradient of the other direction", "step.transposed ? matrix", "(step.transposed != FAULT) ? matrix", "matrix.h", **ADDRESS),
    _flow("CPU: one tile for all threads", "return scratch<S, 1>((flow_rows(p) + p.memory) * tiles.width);", "if (FAULT) { static S* all = scratch<S, 1>((flow_rows(p) + p.memory) * tiles.width); return all; } return scratch<S, 1>((flow_rows(p) + p.memory) * tiles.width);", "cpu.cpp", **THREAD),
    Mutation("CPU: backward: a gate's term of the first unit", "csrc/masked_autoregressive/transform.h", "term_back(layer.gate_term, r, of_gate)", "term_back(layer.gate_term, FAULT ? 0 : r, of_gate)", FLOW, **ADDRESS),
    Mutation("CPU: backward: a feature that stays is transformed", "csrc/masked_autoregressive/transform.h", "if (f < p.passive) return;", "if (f + FAULT < p.passive) return;", FLOW, **ADDRESS),
    Mutation("CPU: weights that lie as they came, a row on", "csrc/masked_autoregressive/tile.h", "m.values + (row - m.row) * m.apart", "m.values + (row - m.row + FAULT) * m.apart", FLOW, **ADDRESS),
)  # fmt: skip
