"""Compile the Triton kernels to machine code, as the launchers would launch them, without a GPU.

The launchers run on tensors of the meta device, and the launch itself is replaced by a compilation
for a named architecture. The kernels have no arrays of their own: their stack holds what did not fit
into registers.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import flowkern
from flowkern.ops import AffineElement, KnotMap, ScaleMap, SplineElement
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._affine_coupling import triton as affine
from flowkern.ops._masked_autoregressive import triton as masked
from flowkern.ops._masked_autoregressive.reference import NO_TERMS
from flowkern.ops._neural_ode import triton as solver
from flowkern.ops._neural_ode.tableau import tableau
from flowkern.ops._probability_path import PATHS
from flowkern.ops._probability_path import triton as path
from flowkern.ops._rational_quadratic_spline import TAILS
from flowkern.ops._rational_quadratic_spline import triton as spline
from flowkern.ops._runge_kutta_stage import triton as stage
from tests.gpu.compiled.resources import Resources, occupancy

ARCHITECTURES = ("80", "90", "100", "gfx942")
ROWS, FEATURES = 4096, 32
_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}

# Every branch of the kernels that is taken at compile time, each at least once:
# (scale map, inverse, index, dtype)
AFFINES = [
    *((kind, bool(number % 2), False, torch.float32) for number, kind in enumerate(SCALE_MAPS)),
    ("exp", False, True, torch.float32),
    ("tanh", False, False, torch.float64),
    ("softplus", False, False, torch.bfloat16),
]
# (bins, tails, knot map, inverse, index and one bound per feature, dtype)
SPLINES = [
    (1, "identity", "softplus", False, False, torch.float32),
    (8, "identity", "softplus", False, True, torch.float32),
    (8, "identity", "softplus", True, False, torch.float32),
    (8, "circular", "softplus", True, True, torch.float32),
    (8, "none", "softclip", False, False, torch.float32),
    (16, "identity", "softplus", False, False, torch.float32),
    (16, "circular", "softclip", True, True, torch.float32),
    (16, "none", "softplus", True, False, torch.float32),
    (64, "identity", "softplus", False, False, torch.float32),
    (8, "identity", "softplus", False, False, torch.float64),
    (8, "identity", "softplus", False, False, torch.bfloat16),
]
# (element, parameters per feature, inverse, dtype)
MASKED = [
    (AffineElement("additive"), 1, False, torch.float32),
    (AffineElement("softplus"), 2, True, torch.float64),
    (SplineElement(3.0), 23, True, torch.float32),
]
# (hidden layers, directions or 0 for a closed trace, numbers in φ(t), row_bias, kinetic, adjoint, dtype);
# None: no trace
SOLVES = [
    ((64, 64), 0, 1, False, False, False, torch.float32),
    ((32, 32, 32), 1, 6, True, True, True, torch.float32),
    ((64,), None, 0, False, False, False, torch.float64),
]
# (stages, weights for each row, dtype)
STAGES = [(1, False, torch.float32), (4, True, torch.float32), (8, False, torch.float64)]
# (path, whether t and noise are given, dtype)
PATH_LAUNCHES = [
    *((name, False, dtype) for name in PATHS for dtype in (torch.float32, torch.float64)),
    ("conditional", True, torch.float32),
]


def specialisation(parameter, value):
    """(type, whether divisible by 16) that Triton's launcher gives an argument of a kernel."""
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype], True
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    if parameter.do_not_specialize:
        return "i32", False
    return ("constexpr", False) if value == 1 else ("i32", value % 16 == 0)


def compile_launch(kernel, arguments, options, architecture):
    """The binary that Triton would run for these launch arguments on this architecture."""
    options = dict(options)
    signature, constants, attributes = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        name = parameter.name
        value = arguments[number] if number < len(arguments) else options.pop(name)
        signature[name], divisible = specialisation(parameter, value)
        if signature[name] == "constexpr":
            constants[name] = value
        if divisible:
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=_target(architecture), options=options)


def _target(architecture):
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture), 32)


def compiled(launch, arguments, architecture):
    """The binary of the one kernel that launch(*arguments) launches."""
    binaries = []

    def run(kernel, *arguments, grid, warmup, **options):
        binaries.append(compile_launch(kernel, arguments, options, architecture))

    with mock.patch.object(JITFunction, "run", run):
        launch(*arguments)
    (binary,) = binaries
    return binary


def resources(binary, architecture):
    """The `Resources` of a compiled kernel."""
    nvidia = "cubin" in binary.asm
    registers, stack, spilled = _of_cubin(binary) if nvidia else _of_amdgcn(binary)
    threads, shared = binary.metadata.num_warps * (32 if nvidia else 64), binary.metadata.shared
    full = occupancy(architecture, threads, registers, shared)
    return Resources(threads, registers, shared, stack, spilled, full)


def _of_amdgcn(binary):
    """Registers, stack and spilled bytes, as the assembler's notes tell them."""

    def note(name):
        return int(re.search(rf"\.{name}:\s+(\d+)", binary.asm["amdgcn"])[1])

    return note("vgpr_count"), note("private_segment_fixed_size"), 4 * note("vgpr_spill_count")


def _of_cubin(binary):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
    return registers, stack, stack


def _tensors(per_feature, index, dtype):
    """The cotangents, x and params, and the index of half of x's features or None."""
    width = 2 * FEATURES if index else FEATURES
    x = torch.empty(ROWS, width, dtype=dtype, device="meta")
    params = torch.empty(ROWS, FEATURES, per_feature, dtype=dtype, device="meta")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grads = torch.empty_like(x), torch.empty(ROWS, dtype=wide, device="meta")
    places = torch.empty(FEATURES, dtype=torch.int64, device="meta") if index else None
    return grads, (x, params), places


def _conditioner(element, parameters, inverse, dtype):
    """x and the cotangents, and what a residual conditioner has besides."""
    units = (FEATURES, 128, 128, 128, FEATURES * parameters)
    tensors = []
    for inputs, outputs in zip(units, units[1:]):
        empty = torch.empty(outputs, inputs, dtype=dtype, device="meta")
        tensors += [empty, empty[:, 0], *(empty[:, 0] for _ in range(3))]
    order = torch.empty(sum(units[:-1]), dtype=torch.int64, device="meta")
    ends = torch.empty(len(units) - 1, FEATURES + 1, dtype=torch.int64, device="meta")
    spec = ((2, 1, 5, 0), (1.0,) * 4, (-1, -1, 0, -1), inverse, *element.numbers())
    x = torch.empty(ROWS, FEATURES, dtype=dtype, device="meta")
    return x, x[:, 0], (tensors, order, ends, *spec)


def _terms(x, tensors, inputs=10):
    """Those of a context that every layer has."""
    context, kinds = x.new_empty(ROWS, inputs), (2,) * (len(tensors) // 5)
    each = [t for w in tensors[::5] for t in (context, w.new_empty(len(w), inputs), w[:, 0])]
    return each, kinds, (1.0,) * len(kinds)


def _directions(name, module, grads, tensors, arguments):
    yield f"forward, {name}", module._launch_forward, (*tensors, *arguments)
    yield f"backward, {name}", module._launch_backward, (*grads, *tensors, *arguments)


def _affines():
    """(name, launcher, its arguments) of every variant of the affine coupling."""
    for kind, inverse, index, dtype in AFFINES:
        grads, tensors, places = _tensors(1 if kind == "additive" else 2, index, dtype)
        arguments = (places, inverse, False, *ScaleMap(kind).numbers())
        name = f"{kind}, {dtype}" + ", inverse" * inverse + ", index" * index
        yield from _directions(name, affine, grads, tensors, arguments)


def _splines():
    """The same of the spline."""
    for bins, tails, kind, inverse, index, dtype in SPLINES:
        code, extra = TAILS[tails]
        grads, tensors, places = _tensors(3 * bins + extra, index, dtype)
        bound = torch.empty(FEATURES, dtype=grads[1].dtype, device="meta") if index else None
        box = (-3.0, 3.0, -3.0, 3.0)
        arguments = (places, bound, inverse, code, *box, *KnotMap(kind).numbers())
        name = f"K={bins}, {tails}, {kind}, {dtype}" + ", inverse" * inverse + ", index" * index
        yield from _directions(name, spline, grads, tensors, arguments)


def _masked():
    """The same of the masked autoregressive transform."""
    for element, parameters, inverse, dtype in MASKED:
        x, logabsdet, rest = _conditioner(element, parameters, inverse, dtype)
        name = f"P={parameters}, {dtype}" + ", inverse" * inverse
        yield f"forward, {name}", masked._launch_forward, (x, *rest, *NO_TERMS)
        yield f"forward, {name}, context", masked._launch_forward, (x, *rest, *_terms(x, rest[0]))
        yield f"backward, {name}", masked._launch_backward, (x, logabsdet, x, x, True, *rest)


def _field(hidden, directions, phi, row_bias, kinetic, dtype, features=8, steps=16):
    """What the solve takes."""

    def empty(*shape):
        return torch.empty(*shape, dtype=dtype, device="meta")

    units, table = (features, *hidden, features), tableau("rk4")
    tensors = [empty(o, i) for i, o in zip(units, units[1:])] + [empty(o) for o in units[1:]]
    closed = empty(*hidden[::-1]) if directions == 0 else None
    noise = empty(directions, ROWS, features) if directions else None
    inputs = (
        empty(ROWS, features), empty(1), empty(1), empty(ROWS, hidden[0]) if row_bias else None,
        empty(hidden[0], phi) if phi else None, empty(phi // 2) if phi > 1 else None, closed, noise, tensors,
    )  # fmt: skip
    codes = [2] * len(hidden), [1.0] * len(hidden)
    return *inputs, *codes, *table.flat(), steps, 1, 1.0, kinetic, bool(directions)


def _solves():
    """The same of the neural ODE solve."""
    for hidden, directions, phi, row_bias, kinetic, adjoint, dtype in SOLVES:
        arguments = _field(hidden, directions, phi, row_bias, kinetic, dtype)
        ends, sums, kept = solver.native.outputs(*arguments[:2], 16, 1)
        trace = "" if directions is None else ", directions" if directions else ", closed"
        name = f"{len(hidden)} layers of {hidden[0]}{trace}, {dtype}" + ", row_bias" * row_bias
        yield f"forward, {name}", solver._launch_forward, arguments
        name += ", adjoint" * adjoint
        yield f"backward, {name}", solver._launch_backward, (ends, sums, ends, kept, adjoint, *arguments)


def _stages():
    """The same of the Runge–Kutta stage."""
    for stages, by_row, dtype in STAGES:
        y = torch.empty(ROWS, FEATURES, dtype=dtype, device="meta")
        weights = torch.empty(*(ROWS,) * by_row, stages, dtype=dtype, device="meta")
        name = f"s={stages}, {dtype}" + ", by row" * by_row
        yield f"stage, {name}", stage._launch_stage, (y, [y] * stages, weights)
        yield f"error, {name}", stage._launch_error, (y, y, [y] * stages, weights, 1e-3, 1e-6)


def _path(given, dtype):
    """x, t or None, noise or None, the seed."""
    x = torch.empty(ROWS, FEATURES, dtype=dtype, device="meta")
    seed = torch.empty((), dtype=torch.int64, device="meta")
    return x, x[:, 0].contiguous(), x if given else None, seed


def _paths():
    """The same of the probability paths."""
    for kind, given, dtype in PATH_LAUNCHES:
        x, t, *rest = _path(given, dtype)
        name, rest = f"{kind}, {dtype}" + ", given" * given, (*rest, PATHS[kind], 0.5)
        yield f"forward, {name}", path._launch_forward, (x, x, t if given else None, *rest)
        yield f"backward, {name}", path._launch_backward, (x, x, True, x, x, t, *rest)


LAUNCHES = {
    "affine_coupling": _affines,
    "rational_quadratic_spline": _splines,
    "masked_autoregressive": _masked,
    "neural_ode": _solves,
    "runge_kutta_stage": _stages,
    "probability_path": _paths,
}


def tables(architectures, ops):
    """(folder, architecture, {name: Resources}) of these ops' kernels."""
    for op in ops:
        for architecture in architectures:
            table = {
                name: resources(compiled(launch, arguments, architecture), architecture)
                for name, launch, arguments in LAUNCHES[op]()
            }
            yield Path(flowkern.__file__).parent / "ops" / f"_{op}", architecture, table
