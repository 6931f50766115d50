"""The faults that are planted in this op's kernels, see tests/gpu/sanitizers/planted.py."""

from tests.gpu.sanitizers.mutations import ADDRESS, SYNC, THREAD, Mutation, no_barrier, no_triton_barrier

# The fault is looked for in these cases.
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
MASKED_ON_CPU = (
    "masked-relu",
    "masked-skips",
    "masked-context",
    "masked-inputs_of_all",
    "masked-everything",
    "masked-coupling",
    "masked-k8",
)
TRITON = ("masked-two_features", "masked-everything", "masked-skips", "masked-inputs")


def _masked(fault, old, new, file="tile.cuh"):
    return Mutation(fault, f"csrc/masked_autoregressive/{file}", old, new, MASKED)


def _masked_on_cpu(fault, old, new, file="transform.h", **more):
    return Mutation(fault, f"csrc/masked_autoregressive/{file}", old, new, MASKED_ON_CPU, **more)


def _triton(fault, old, new, file="triton_layers.py"):
    return Mutation(f"Triton: {fault}", f"flowkern/ops/_masked_autoregressive/{file}", old, new, TRITON, "triton")


FAULTS = (
    _masked("no barrier after a layer of a step", *no_barrier(f"if (k < p.outputs) finish(k, r);\n      }});\n      {SYNC}\n    }}\n  }}\n\n  // Backward")),
    _masked("no barrier after a block's beginning", *no_barrier(f"layer(k).u, [](int) {{}});\n    {SYNC}")),
    _masked("a step sees a rank too few", "ranks(k - 1, low, rank + 1);", "ranks(k - 1, low, rank + 1 - FAULT);"),
    _masked("a group of threads takes the row of the next one", "at(to + r) = sum;", "at(to + r + FAULT) = sum;"),
    _masked("backward: a skip's cotangent with the wrong sign", "grad_skip + unit) += g;", "grad_skip + unit) += FAULT ? -g : g;"),
    _masked("backward: of two skips from one layer, one cotangent", "if (to.skip >= 0) at(", "if (FAULT && to.skip >= 0) at(layer(to.skip).grad_skip + unit) = S(0);\n    if (to.skip >= 0) at("),
    _masked("backward: a gate's cotangent without v", "tape(to.tape_gate, unit) *= g;", "tape(to.tape_gate, unit) = FAULT ? g : tape(to.tape_gate, unit) * g;"),
    _masked("backward of the inverse: a rank too few sends back", "columns = ranks(k + 1, rank, high);", "columns = ranks(k + 1, rank + FAULT, high);"),
    _masked("the context of the next sample", "base + n * term.context.row", "base + (n + FAULT) * term.context.row"),
    _masked("a context's last input is left out", "c < term.inputs", "c + FAULT < term.inputs"),
    _masked("a weight too many in each row", "column < spans[j].end", "column < spans[j].end + FAULT", "cuda.cu"),
    _masked("no barrier after a panel's spans are known", *no_barrier(f"{SYNC}\n  if (threadIdx.x == 0) p.memory.spans"), "cuda.cu"),
    _masked("weights begin inside the spans", "at += span_bytes()", "at += span_bytes() - 16 * FAULT", "cuda.cu"),
    _masked("a row of the tile too few", "problem.tile_rows = int(rows);", "problem.tile_rows = int(rows) - FAULT;", "cuda.cu"),
    _masked("a sample too many in the last tile", "n < p.call.rows", "n < p.call.rows + FAULT", "cuda.cu"),
    _masked("the log-dets of a group are left out", "for (int i = 1; i < tile.groups; ++i)", "for (int i = 1 + FAULT; i < tile.groups; ++i)", "cuda.cu"),
    _masked("no barrier after the log-dets are stored", *no_barrier(f"own;\n  {SYNC}"), "cuda.cu"),
    _masked_on_cpu("CPU: parameters of the next feature", ".z + (f - p.passive) * p.parameters)", ".z + (f - p.passive + FAULT) * p.parameters)", **ADDRESS),
    _masked_on_cpu("CPU: a panel's rows off by one", "m.columns * kPanelRows + lane", "m.columns * kPanelRows + lane + FAULT", "tile.h", **ADDRESS),
    _masked_on_cpu("CPU: a context's inputs off by one", "return context + c * R;", "return context + (c + FAULT) * R;", **ADDRESS),
    _masked_on_cpu("CPU: a context's weights without the last bias", "(term.inputs + 1) : 0", "(term.inputs + 1 - FAULT) : 0", "plan.h", **ADDRESS),
    _masked_on_cpu("CPU: the last rank of a block left out", "rank < p.first[b + 1];", "rank + FAULT < p.first[b + 1];", **ADDRESS),
    _masked_on_cpu("CPU: values read of one sample too many", "for (int n = 0; n < samples; ++n) to[n] =", "for (int n = 0; n < samples + FAULT; ++n) to[n] =", "tile.h", **ADDRESS),
    _masked_on_cpu("CPU: backward: a gate's gradient with the wrong sign", "store(of_gate + i, g_z *", "store(of_gate + i, T(S(FAULT ? -1 : 1)) * g_z *", **ADDRESS),
    _masked_on_cpu("CPU: backward: of two skips from one layer, one cotangent", "load(past + i) + g_z", "FAULT ? g_z : load(past + i) + g_z", **ADDRESS),
    Mutation("CPU: an additive map's parameter looked for one row before", "csrc/masked_autoregressive/element_simd.cpp", "return kind != kAdditive && p.element.scale_first();", "return (kind != kAdditive || FAULT) && p.element.scale_first();", ("masked-additive_scale_first",), **ADDRESS),
    _masked_on_cpu("CPU: one tile for all threads", "return scratch<S, 1>(p.memory * tiles.width);", "if (FAULT) { static S* all = scratch<S, 1>(p.memory * tiles.width); return all; } return scratch<S, 1>(p.memory * tiles.width);", "cpu.cpp", **THREAD),
    _triton("inputs of a product off by one", "plane, other), mask=there", "plane, other + FAULT), mask=there"),
    _triton("units of the same rank are not seen", "read &= rank[:, None] >=", "read &= rank[:, None] - FAULT >="),
    _triton("a context's inputs off by one", "net.each + (context + c) *", "net.each + (context + c + FAULT) *"),
    _triton("no barrier after the contexts' terms", *no_triton_barrier("start(net, tile, SPEC)\n            tl.debug_barrier()"), "triton_kernels.py"),
    _triton("no barrier before a layer is finished", *no_triton_barrier("WIDE, SPEC.terms, False, True, SPEC)\n        tl.debug_barrier()"), "triton_kernels.py"),
    _triton("log-dets stored of samples that there are not", "tile.n, sums, mask=tile.here", "tile.n, sums, mask=(tile.n >= 0) if FAULT else tile.here", "triton_kernels.py"),
    _triton("backward: a skip's cotangent with the wrong sign", "mask=skipped, other=0.0) + grad_z", "mask=skipped, other=0.0) + (1 - 2 * FAULT) * grad_z"),
    _triton("backward: of two skips from one layer, one cotangent", "tl.load(past, mask=skipped", "(1 - FAULT) * tl.load(past, mask=skipped"),
)  # fmt: skip
