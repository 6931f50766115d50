"""The faults that are planted in this op's kernels, see tests/gpu/sanitizers/planted.py."""

from tests.gpu.sanitizers.mutations import ADDRESS, THREAD, Mutation

# The fault is looked for in these cases.
PATH = (
    "path-target",
    "path-variance_preserving",
    "path-schroedinger_bridge given",
    "path-conditional given",
    "path-long rows",
)
TRITON = ("path-variance_preserving given", "path-variance_preserving", "path-target")


def _path(fault, old, new, file="cuda.cu", **more):
    return Mutation(fault, f"csrc/probability_path/{file}", old, new, PATH, **more)


def _triton(fault, old, new):
    return Mutation(f"Triton: {fault}", "flowkern/ops/_probability_path/triton.py", old, new, TRITON, "triton")


FAULTS = (
    _path("a time read one row on", "p.given_t[row_of(e,", "p.given_t[FAULT + row_of(e,"),
    _path("the last element is not masked", "if (element < total) body", "if (element < total + FAULT) body"),
    _path("noise of the next counter", "draw_noise(key_of(*p.seed), block, i, noise)", "draw_noise(key_of(*p.seed), block, i + FAULT, noise)"),
    _path("u_t: x0's weight with the wrong sign", "{zero - rate * sine, rate * cosine, zero}", "{FAULT ? rate * sine : zero - rate * sine, rate * cosine, zero}", "math.h"),
    _path("backward: the noise's part of grad_t with the wrong sign", "{minus, one, s * half}", "{minus, one, FAULT ? zero - s * half : s * half}", "math.h"),
    _path("CPU: times of the next row", "int64_t row = at.first / p.features,", "int64_t row = at.first / p.features + FAULT,", "simd.cpp", **ADDRESS),
    _path("CPU: a streamed value twice what it is", "if (streams) stream(to, value)", "if (streams) stream(to, FAULT ? value + value : value)", "simd.cpp", **ADDRESS),
    _path("CPU: one buffer of noise for all threads", "noise_buffer{}, t_buffer, x_buffer, u_buffer;", "own_noise{}, t_buffer, x_buffer, u_buffer; static Buffer<S> all; Buffer<S>& noise_buffer = FAULT ? all : own_noise;", "simd.cpp", **THREAD),
    _triton("the time of the next element's row", "e < total, e // D\n        if t", "e < total, (e + FAULT) // D\n        if t"),
    _triton("backward: an element too many", "here, n = e < total, e // D\n        time", "here, n = e < total + FAULT, e // D\n        time"),
    _triton("u_t: x0's weight with the wrong sign", "u_a, u_b = -rate * x_b", "u_a, u_b = (2 * FAULT - 1) * rate * x_b"),
    _triton("backward: x0's part of grad_t with the wrong sign", "s_a, s_b = -rate * u_b", "s_a, s_b = (2 * FAULT - 1) * rate * u_b"),
)  # fmt: skip
