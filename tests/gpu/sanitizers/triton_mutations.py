"""The faults that are planted in the Triton kernels, see planted.py."""

from tests.gpu.sanitizers.mutations import Mutation


def _mutation(fault, file, old, new, cases):
    return Mutation(f"Triton: {fault}", f"flowkern/ops/_{file}", old, new, cases, "triton")


def _affine(fault, old, new, file="affine_coupling/triton.py"):
    return _mutation(fault, file, old, new, ("affine-index", "affine-tanh", "affine-scale_first"))


def _spline(fault, old, new, file="rational_quadratic_spline/triton_element.py"):
    return _mutation(fault, file, old, new, ("spline-k3", "spline-index", "spline-one_row"))


def _path(fault, old, new):
    cases = ("path-variance_preserving given", "path-variance_preserving", "path-target")
    return _mutation(fault, "probability_path/triton.py", old, new, cases)


def _masked(fault, old, new, file="masked_autoregressive/triton_layers.py"):
    return _mutation(
        fault, file, old, new, ("masked-two_features", "masked-everything", "masked-skips", "masked-inputs")
    )


def _ode(fault, old, new, file="neural_ode/triton_field.py"):
    return _mutation(
        fault, file, old, new, ("ode-one sample", "ode-adjoint noise", "ode-adjoint one hidden", "ode-exact linear")
    )


def _stage(fault, old, new):
    return _mutation(fault, "runge_kutta_stage/triton.py", old, new, ("stage-(7, 3)", "stage-(7, 3) by row"))


def _no_barrier(text):
    return text, text.replace("tl.debug_barrier()", "if not FAULT: tl.debug_barrier()")


MUTATIONS = (
    _affine("x read one column on", "d * x_d, mask=found, other=0.0).to(COMPUTE)\n        of_t", "(d + FAULT) * x_d, mask=found, other=0.0).to(COMPUTE)\n        of_t"),
    _affine("log-dets stored of a row too many", "tl.sum(total, 1), mask=rows < N", "tl.sum(total, 1), mask=rows < N + FAULT"),
    _affine("backward: the shift's gradient with the wrong sign", "grad_shift = -SHIFT_PREFACTOR * g", "grad_shift = (2 * FAULT - 1) * SHIFT_PREFACTOR * g"),
    _affine("rows are copied one on", "D + d[None, :], values", "D + d[None, :] + FAULT, values", "triton.py"),
    _affine("no barrier after the columns are copied", *_no_barrier("threads of this block.\n    tl.debug_barrier()"), "triton.py"),
    _spline("the slope of the next knot", "(2 * SPEC.bins + place) * p_k", "(2 * SPEC.bins + place + FAULT) * p_k"),
    _spline("elements stored that there are not", "d, value, mask=found", "d, value, mask=(d < D) if FAULT else found", "rational_quadratic_spline/triton.py"),
    _spline("backward: the left knot with the wrong sign", "gz, -gtheta / w, gw", "gz, (2 * FAULT - 1) * gtheta / w, gw"),
    _path("the time of the next element's row", "e < total, e // D\n        if t", "e < total, (e + FAULT) // D\n        if t"),
    _path("backward: an element too many", "here, n = e < total, e // D\n        time", "here, n = e < total + FAULT, e // D\n        time"),
    _path("u_t: x0's weight with the wrong sign", "u_a, u_b = -rate * x_b", "u_a, u_b = (2 * FAULT - 1) * rate * x_b"),
    _path("backward: x0's part of grad_t with the wrong sign", "s_a, s_b = -rate * u_b", "s_a, s_b = (2 * FAULT - 1) * rate * u_b"),
    _masked("inputs of a product one on", "plane, other), mask=there", "plane, other + FAULT), mask=there"),
    _masked("units of the same rank are not seen", "read &= rank[:, None] >=", "read &= rank[:, None] - FAULT >="),
    _masked("a context's inputs one on", "net.each + (context + c) *", "net.each + (context + c + FAULT) *"),
    _masked("no barrier after the contexts' terms", *_no_barrier("start(net, tile, SPEC)\n            tl.debug_barrier()"), "masked_autoregressive/triton_kernels.py"),
    _masked("no barrier before a layer is finished", *_no_barrier("WIDE, SPEC.terms, False, True, SPEC)\n        tl.debug_barrier()"), "masked_autoregressive/triton_kernels.py"),
    _masked("log-dets stored of samples that there are not", "tile.n, sums, mask=tile.here", "tile.n, sums, mask=(tile.n >= 0) if FAULT else tile.here", "masked_autoregressive/triton_kernels.py"),
    _masked("backward: a skip's cotangent with the wrong sign", "mask=skipped, other=0.0) + grad_z", "mask=skipped, other=0.0) + (1 - 2 * FAULT) * grad_z"),
    _masked("backward: of two skips from one layer, one cotangent", "tl.load(past, mask=skipped", "(1 - FAULT) * tl.load(past, mask=skipped"),
    _ode("the time of another stage", "after = n % net.steps + c", "after = n % net.steps + (1 - 2 * FAULT) * c"),
    _ode("a frequency's gradient without the time", "_add(at, t * of_angle", "_add(at, (1 if FAULT else t) * of_angle", "neural_ode/triton_gradients.py"),
    _ode("no barrier after a stage's state", *_no_barrier("values, mask=used)\n    tl.debug_barrier()"), "neural_ode/triton_kernels.py"),
    _ode("a row too many is written", "used = (row < count)[:, None]\n        values = tl.load(rows(base, row), mask=used, other=0.0)\n        tl.store(to", "used = (row < count + FAULT)[:, None]\n        values = tl.load(rows(base, row), mask=used, other=0.0)\n        tl.store(to", "neural_ode/triton_kernels.py"),
    _ode("adjoint: the state stepped the wrong way", "_combine(y, y, 1, -h", "_combine(y, y, 1, (2 * FAULT - 1) * h", "neural_ode/triton_kernels.py"),
    _ode("backward: ‖f‖² with the wrong sign", "grad + 2 * kinetic_bar", "grad + (2 - 4 * FAULT) * kinetic_bar", "neural_ode/triton_gradients.py"),
    _stage("the weight of the next slope", "w + 2 * w_j", "w + (2 + FAULT) * w_j"),
    _stage("an element too many", "here = at < N.to(tl.int64) * D", "here = at < N.to(tl.int64) * D + FAULT"),
    _stage("sums stored of a row too many", "tl.sum(total, 1), mask=rows < N", "tl.sum(total, 1), mask=rows < N + FAULT"),
    _stage("the sum with the wrong sign", "mask=here, other=0.0) + total", "mask=here, other=0.0) + (1 - 2 * FAULT) * total"),
)  # fmt: skip
