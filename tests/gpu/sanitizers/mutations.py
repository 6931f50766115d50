"""What a planted fault is, and those in what all ops share; an op's are in tests/cases, see planted.py."""

from typing import NamedTuple

SYNC = "__syncthreads();"
ADDRESS, THREAD = {"kind": "address"}, {"kind": "thread"}


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


def no_barrier(text):
    """The CUDA code, and the same without its barrier."""
    return text, text.replace(SYNC, f"if (!FAULT) {SYNC}")


def no_triton_barrier(text):
    """The same of Triton."""
    return text, text.replace("tl.debug_barrier()", "if not FAULT: tl.debug_barrier()")


BOTH = ("affine-wide", "affine-rows-257", "spline-k8", "spline-wide-k3", "spline-k5", "affine-transposed")
AFFINE = (
    "affine-scale_first",
    "affine-whole_vectors",
    "affine-wide",
    "affine-rows-257",
    "affine-index",
    "affine-sliced",
)
SPLINE = ("spline-k8", "spline-k256-wide", "spline-wide-k3", "spline-index", "spline-sliced", "spline-circular")
ODE_ON_CPU = ("ode-exact two hidden", "ode-noise", "ode-adjoint", "ode-checkpoints")


def _common(fault, old, new, file="cuda.cuh", cases=BOTH, **more):
    return Mutation(fault, f"csrc/common/{file}", old, new, cases, **more)


def _triton(fault, old, new):
    cases = ("affine-index", "affine-tanh", "affine-scale_first")
    return Mutation(f"Triton: {fault}", "flowkern/ops/_triton.py", old, new, cases, "triton")


COMMON = (
    _common("a parameter's offset off by one", "stage.offsets[e] + i * p.one", "stage.offsets[e] + (i + FAULT) * p.one", "stage.cuh"),
    _common("the rest of a copy begins off by one", "for (int i = whole * each + int(threadIdx.x)", "for (int i = whole * each + FAULT + int(threadIdx.x)", "stage.cuh"),
    _common("sixteen bytes at a time, aligned or not", "ends % sizeof(uint4) ? 0 :", "!FAULT && ends % sizeof(uint4) ? 0 :", "stage.cuh", ("spline-misaligned",)),
    _common("no barrier after the offsets are noted", *no_barrier(f"at.feature * p.feature;\n  {SYNC}"), "stage.cuh"),
    _common("no barrier after the stage is loaded", *no_barrier(f"= from.base[main]; }});\n  {SYNC}"), "stage.cuh"),
    _common("an element per thread too few in the stage", "return threads * (sizeof(int64_t)", "return (threads - FAULT) * (sizeof(int64_t)", "stage.cuh"),
    _common("a walk steps into the next row too late", "if (inner >= size)", "if (inner >= size + FAULT)"),
    _common("the last step of a sum is left out", "step > 0; step /= 2", "step > FAULT; step /= 2"),
    _common("threads leave before the shuffles", "store_sums(S total, int rows, int lanes, S* sums) {\n", "store_sums(S total, int rows, int lanes, S* sums) {\n  if (FAULT && int(threadIdx.x) / lanes >= rows) return;\n"),
    _common("rows are copied off by one", "to[int64_t(at.outer) * width + at.inner] =", "to[int64_t(at.outer) * width + at.inner + FAULT] =", cases=("affine-index",)),
    _common("CPU: values scattered one column on", "*element(to, n, t) = from.values[e]", "element(to, n, t)[FAULT] = from.values[e]", "coupling.h", SPLINE, **ADDRESS),
    _common("CPU: the last vector of a run passes its end", "body(run, i < last ? i : last)", "body(run, i < last ? i : last + FAULT)", "coupling.h", AFFINE, **ADDRESS),
    _common("CPU: log-dets of a segment one row on", "S* out = sums + at.row;", "S* out = sums + at.row + FAULT;", "coupling.h", AFFINE, **ADDRESS),
    _common("CPU: a streamed value twice what it is", "stream(to.at(run, i), value)", "stream(to.at(run, i), FAULT ? value + value : value)", "coupling.h", AFFINE, **ADDRESS),
    _common("CPU: a matrix's rows off by one", "columns * kPanelRows + lane};", "columns * kPanelRows + lane + FAULT};", "panel_product.h", ODE_ON_CPU, **ADDRESS),
    _triton("rows are copied off by one", "D + d[None, :], values", "D + d[None, :] + FAULT, values"),
    _triton("no barrier after the columns are copied", *no_triton_barrier("threads of this block.\n    tl.debug_barrier()")),
)  # fmt: skip
