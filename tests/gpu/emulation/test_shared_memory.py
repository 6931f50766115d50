"""How much shared memory a kernel may have, which CUDA keeps for all threads of a process."""

import subprocess

from tests.gpu.emulation import build


def _program():
    source = build.HERE / "shared_memory.cpp"
    options = (*build.COMMON[:1], "-O1", "-pthread", "-D__CUDACC__", "-DFLOWKERN_ISA=cuda", "-DFLOWKERN_SANITIZED")
    folders = (build.HERE / "cuda", build.ROOT / "csrc")
    command = [*options, *(f"-I{folder}" for folder in folders), source]
    inputs = [command, source, *build.headers(source, folders)]
    return build.kept("shared_memory", inputs, lambda folder: build.run(*command, "-o", folder / "shared_memory"))


def test_threads_that_launch_one_kernel_do_not_lower_its_shared_memory():
    """Each of two devices is asked once, and what it answers is checked."""
    done = subprocess.run([_program()], check=True, capture_output=True, text=True)
    counts, error = done.stdout.splitlines()
    refused, maxima_set, lowered = map(int, counts.split())
    assert (refused, maxima_set, lowered) == (0, 2, 0)
    assert error == ("flowkern: the CUDA kernel kernel may not have more shared memory: invalid configuration argument")
