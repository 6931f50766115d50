"""Compile the Triton kernels to machine code, as the launchers would launch them, without a GPU.

The launchers run on tensors of the meta device, and the launch itself is replaced by a compilation
for a named architecture. `python -m tests.compiled.triton_kernels [80 90 100]` prints how many
registers and bytes of stack a thread of each kernel uses, and fails if a kernel spills that must
not. The kernels have no arrays of their own: their stack holds what did not fit into registers.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from flowkern.ops import AffineElement, KnotMap, ScaleMap, SplineElement
from flowkern.ops.affine_coupling import SCALE_MAPS
from flowkern.ops.affine_coupling import triton as affine
from flowkern.ops.masked_autoregressive import triton as masked
from flowkern.ops.probability_path import PATHS
from flowkern.ops.probability_path import triton as path
from flowkern.ops.rational_quadratic_spline import TAILS
from flowkern.ops.rational_quadratic_spline import triton as spline

ARCHITECTURES = (80, 90, 100)
ROWS, FEATURES = 4096, 32
_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
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
# (path, whether t and noise are given, dtype)
PATH_LAUNCHES = [
    *((name, False, dtype) for name in PATHS for dtype in (torch.float32, torch.float64)),
    ("conditional", True, torch.float32),
]
# The most bytes of stack. In kernels of the masked transform ptxas gives up a few registers to let
# one more block run on a multiprocessor.
NONE, FEW, ANY = 0, 32, math.inf


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
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def compiled(launch, arguments, architecture):
    """The binary of the one kernel that launch(*arguments) launches."""
    binaries = []

    def run(kernel, *arguments, grid, warmup, **options):
        binaries.append(compile_launch(kernel, arguments, options, architecture))

    with mock.patch.object(JITFunction, "run", run):
        launch(*arguments)
    (binary,) = binaries
    return binary


def resources(binary):
    """(registers, bytes of stack) per thread of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))


def _tensors(per_feature, index, dtype):
    """The cotangents, x and params, and the index of half of x's features or None."""
    width = 2 * FEATURES if index else FEATURES
    x = torch.empty(ROWS, width, dtype=dtype, device="meta")
    params = torch.empty(ROWS, FEATURES, per_feature, dtype=dtype, device="meta")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grads = torch.empty_like(x), torch.empty(ROWS, dtype=wide, device="meta")
    places = torch.empty(FEATURES, dtype=torch.int64, device="meta") if index else None
    return grads, (x, params), places


def _masked(element, parameters, inverse, dtype):
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


def _path(given, dtype):
    """x, t or None, noise or None, the seed."""
    x = torch.empty(ROWS, FEATURES, dtype=dtype, device="meta")
    seed = torch.empty((), dtype=torch.int64, device="meta")
    return x, x[:, 0].contiguous(), x if given else None, seed


def _directions(name, module, grads, tensors, arguments, most):
    yield f"{name}", module._launch_forward, (*tensors, *arguments), most
    yield f"{name}, backward", module._launch_backward, (*grads, *tensors, *arguments), most


def launches():
    """(name, launcher, its arguments, the most bytes of stack) of every variant."""
    for kind, inverse, index, dtype in AFFINES:
        grads, tensors, places = _tensors(1 if kind == "additive" else 2, index, dtype)
        arguments = (places, inverse, False, *ScaleMap(kind).numbers())
        name = f"affine {kind} {dtype}" + " inverse" * inverse + " index" * index
        yield from _directions(name, affine, grads, tensors, arguments, NONE)
    for bins, tails, kind, inverse, index, dtype in SPLINES:
        code, extra = TAILS[tails]
        grads, tensors, places = _tensors(3 * bins + extra, index, dtype)
        bound = torch.empty(FEATURES, dtype=grads[1].dtype, device="meta") if index else None
        box = (-3.0, 3.0, -3.0, 3.0)
        arguments = (places, bound, inverse, code, *box, *KnotMap(kind).numbers())
        name = f"spline K={bins} {tails} {kind} {dtype}" + " inverse" * inverse + " index" * index
        most = ANY if bins > 16 or dtype == torch.float64 else NONE
        yield from _directions(name, spline, grads, tensors, arguments, most)
    for element, parameters, inverse, dtype in MASKED:
        x, logabsdet, rest = _masked(element, parameters, inverse, dtype)
        name = f"masked P={parameters} {dtype}" + " inverse" * inverse
        most = ANY if dtype == torch.float64 else FEW
        yield name, masked._launch_forward, (x, *rest), most
        yield f"{name}, backward", masked._launch_backward, (x, logabsdet, x, x, True, *rest), most
    for kind, given, dtype in PATH_LAUNCHES:
        x, t, *rest = _path(given, dtype)
        name, rest = f"path {kind} {dtype}" + " given" * given, (*rest, PATHS[kind], 0.5)
        yield name, path._launch_forward, (x, x, t if given else None, *rest), NONE
        yield f"{name}, backward", path._launch_backward, (x, x, True, x, x, t, *rest), NONE


def main(architectures):
    """Print a row per kernel; the number of kernels that spill and must not."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 leaves nothing to compile: unset it")
    wrong = 0
    print(f"{'sm':>4} {'registers':>9} {'stack':>5}  kernel (Triton {triton.__version__})")
    for architecture in architectures:
        for name, launch, arguments, most in launches():
            registers, stack = resources(compiled(launch, arguments, architecture))
            spills = stack > most
            wrong += spills
            print(f"{architecture:>4} {registers:>9} {stack:>5}  {name}" + "  SPILLS" * spills)
    return wrong


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or ARCHITECTURES) > 0)
