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
from tests import cases
from tests.gpu.compiled.resources import Resources, occupancy

ARCHITECTURES = ("80", "90", "100", "gfx942")
_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


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


LAUNCHES = {op: module.launches for op, module in cases.modules("triton_launches").items()}


def tables(architectures, ops):
    """(folder, architecture, {name: Resources}) of these ops' kernels."""
    for op in ops:
        for architecture in architectures:
            table = {
                name: resources(compiled(launch, arguments, architecture), architecture)
                for name, launch, arguments in LAUNCHES[op]()
            }
            yield Path(flowkern.__file__).parent / "ops" / f"_{op}", architecture, table
