"""What a compiled kernel uses of a multiprocessor, how full that lets it be, and what it may use.

The limits of an op's kernels lie beside them, in `limits.json`: {pattern of names: limits}, where the
first pattern that fits a kernel counts. "occupancy" is the least, all others are the most.
"""

import fnmatch
import json
from typing import NamedTuple


class Resources(NamedTuple):
    """Of one kernel: registers and bytes of stack per thread, the rest per block."""

    threads: int
    registers: int
    shared: int  # bytes, as launched
    stack: int
    spilled: int  # bytes moved to and from the stack for want of registers
    occupancy: float  # share of the threads that a multiprocessor can hold


class Processor(NamedTuple):
    """A multiprocessor (AMD: compute unit) and the steps in which it hands out registers and memory."""

    warp: int  # threads
    warps: int  # most of them
    blocks: int
    registers: int  # for each lane of a warp, of all schedulers
    register_step: int
    shared: int  # bytes
    shared_step: int
    shared_reserved: int  # bytes of each block
    parts: int  # warps are dealt out to so many schedulers, each with its share of the registers


PROCESSORS = {
    "80": Processor(32, 64, 32, 2048, 8, 164 * 1024, 128, 1024, 4),
    "90": Processor(32, 64, 32, 2048, 8, 228 * 1024, 128, 1024, 4),
    "100": Processor(32, 64, 32, 2048, 8, 228 * 1024, 128, 1024, 4),
    "gfx942": Processor(64, 32, 32, 2048, 8, 64 * 1024, 512, 0, 4),
}


def occupancy(architecture, threads, registers, shared):
    """Warps that fit on a multiprocessor at once, as a share of the most it can hold."""
    p = PROCESSORS[architecture.removesuffix("a")]
    warps = -(-threads // p.warp)
    in_registers = p.registers // p.parts // _rounded(max(registers, 1), p.register_step) * p.parts
    bytes_of_block = _rounded(shared + p.shared_reserved, p.shared_step)
    blocks = min(p.blocks, p.warps // warps, in_registers // warps)
    blocks = min(blocks, p.shared // bytes_of_block) if bytes_of_block else blocks
    return blocks * warps / p.warps


def _rounded(value, step):
    return -(-value // step) * step


def limits(folder):
    """{pattern: limits} of the kernels in an op's folder."""
    return json.loads((folder / "limits.json").read_text())


def beyond(limits, table):
    """What of {kernel: Resources} exceeds the limits, or has none; and the patterns that fit nothing."""
    problems, unused = [], set(limits)
    for kernel, used in table.items():
        pattern = next((p for p in limits if fnmatch.fnmatchcase(kernel, p)), None)
        unused.discard(pattern)
        if pattern is None:
            problems.append(f"{kernel}: no limit")
            continue
        for name, limit in limits[pattern].items():
            value = getattr(used, name)
            if value < limit if name == "occupancy" else value > limit:
                problems.append(f"{kernel}: {name} {value:g}, limit {limit:g}")
    return problems + [f"{pattern}: fits no kernel" for pattern in sorted(unused)]


def rows(table):
    """Lines of text, one for each kernel."""
    for kernel, used in table.items():
        numbers = "".join(f"{number:>10}" for number in used[:-1])
        yield f"  {kernel:<68}{numbers}{used.occupancy:>10.0%}"


HEADER = "  " + f"{'kernel':<68}" + "".join(f"{name:>10}" for name in Resources._fields)
