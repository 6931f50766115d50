"""Every kind of fault, planted in a small kernel (faults.cu), is reported with kernel, block, thread."""

import re
import subprocess

import pytest

from tests.gpu.emulation import build, faults
from tests.gpu.sanitizers.build import command, environment

pytestmark = pytest.mark.timeout(900)  # the first test that runs builds the library

# The block and the thread that come upon it first where all run in order, and what is said of them.
FAULTS = {
    "global_read": ((1, 63), "out of bounds: reads 4 bytes, .* 4 bytes beyond the end of in"),
    "global_write": ((0, 0), "out of bounds: writes 4 bytes, .* beyond the beginning of out"),
    "input_written": ((0, 0), "writes at byte 0 of in, an input"),
    "dynamic_shared": ((0, 63), "out of bounds: .* beyond the end of shared memory"),
    "static_shared": ((0, 63), "undefined behaviour: .* an object that is too small"),
    "static_shared_pointer": ((0, 63), "out of bounds: .* beyond the end of shared memory .*tile"),
    "static_shared_index": ((0, 40), "undefined behaviour: an index outside of its array"),
    "local_index": ((0, 7), "undefined behaviour: an index outside of its array"),
    "overflow": ((0, 63), "undefined behaviour: signed overflow"),
    "shift": ((0, 31), "undefined behaviour: a shift by too many bits"),
    "misaligned": ((0, 0), "undefined behaviour: .*misaligned pointer"),
    "conversion": ((0, 9), "undefined behaviour: a number that the type"),
    "barrier_after_exit": ((0, 0), r"waits at __syncthreads .* but thread \(50, 0, 0\) has exited"),
    "barrier_in_a_branch": ((0, 0), r"waits at __syncthreads .* thread \(32, 0, 0\) has exited"),
    "two_barriers": ((0, 0), r"waits at .* but thread \(1, 0, 0\) waits at __syncthreads"),
    "shuffle_from_exited": ((0, 6), "__shfl_xor_sync .* lane 5, which has exited"),
    "shuffle_not_reached": ((0, 0), r"waits at .* but thread \(32, 0, 0\) waits at __shfl_down_sync"),
    "shuffle_outside_of_mask": ((0, 3), "__shfl_sync .* lane 20, which its mask does not name"),
    "mask_without_itself": ((0, 8), "__ballot_sync .* does not name its own lane"),
    "shared_not_written": ((0, 43), "uninitialised: reads at byte 80 of shared memory"),
    "left_by_another_block": ((1, 0), "uninitialised: reads at byte 0 of shared memory .*first"),
    "output_not_written": ((0, 0), "uninitialised: reads at byte 0 of out"),
    "read_without_barrier": ((0, 0), "uninitialised: reads at byte 128 of shared memory"),
    "rewritten_without_barrier": ((0, 32), r"race: reads at byte 124 .* thread \(31, 0, 0\) wrote"),
    "both_write": ((0, 1), r"race: writes at byte 0 of .*flags, which thread \(0, 0, 0\) wrote"),
    "read_without_syncwarp": ((0, 0), r"race: reads at byte 4 of .* thread \(1, 0, 0\) wrote"),
    "written_after_read": ((0, 1), "race: writes at byte 0 of .* another thread read"),
    "tile_too_small": ((0, 0), r"race: reads at byte 32 .* thread \(8, 0, 0\) wrote"),
    "syncwarp_between_warps": ((0, 0), r"race: reads at byte 128 .* thread \(32, 0, 0\) wrote"),
    "global_race": ((0, 32), r"race: writes at byte 128 of out, which thread \(0, 0, 0\) wrote"),
    "race_of_blocks": ((1, 0), "race: writes at byte 0 of out, which another block"),
    "atomic_and_plain": ((0, 63), "race: reads at byte 0 of .*sum, which thread"),
}
# Likewise by the address sanitizer.
ADDRESS = {
    "global_read": ((1, 63), "heap-buffer-overflow"),
    "global_write": ((0, 0), "heap-buffer-overflow"),
    "dynamic_shared": ((0, 63), "use-after-poison"),
    "static_shared_pointer": ((0, 63), "use-after-poison"),
    "local_index": ((0, 7), "stack-buffer-overflow"),
    "local_pointer": ((0, 7), "stack-buffer-overflow"),
}


def named(name, block, thread):
    where = rf"block \({block}, 0, 0\), thread \({thread}, 0, 0\): "
    return rf"kernel faults::{name}<true>\(float const\*, float\*\), {where}"


def test_every_kernel_is_tested():
    planted = re.findall(r"FAULT\((\w+)\)[,}]", (build.HERE / "faults.cu").read_text())
    assert {*planted} == {*FAULTS, *ADDRESS, "right"}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_reported(name):
    where, what = FAULTS[name]
    report, _ = faults.run(name, wrong=True)
    assert re.match(named(name, *where) + what, report), report
    for order in faults.ORDERS[1:]:
        report, _ = faults.run(name, wrong=True, order=order)
        assert re.match(named(name, r"\d", r"\d+"), report), report


@pytest.mark.parametrize("name", [*FAULTS, "local_pointer", "right"])
def test_right_twin_passes(name):
    """In every order of threads and blocks, with the same result."""
    reports, results = zip(*(faults.run(name, wrong=False, order=order) for order in faults.ORDERS))
    assert not any(reports)
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", ADDRESS)
def test_planted_fault_is_reported_by_the_address_sanitizer(name):
    (where, what), script = ADDRESS[name], ("-m", "tests.gpu.emulation.faults", name)
    build.built(build.ADDRESS, faults.SOURCES)
    arguments = command("address", *script)
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.returncode != 0 and f"ERROR: AddressSanitizer: {what}" in done.stderr
    assert re.search(named(name, *where), done.stderr), done.stderr


def test_right_kernel_passes_the_address_sanitizer():
    script = ("-m", "tests.gpu.emulation.faults", "right")
    arguments = command("address", *script)
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "AddressSanitizer:" not in done.stderr, done.stderr
