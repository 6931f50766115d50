"""Compile all kernels without a GPU, print what each uses, and compare with the limits beside them.

    python -m tests.gpu.compiled                       CUDA and Triton, every architecture
    python -m tests.gpu.compiled triton gfx942 100     some of them
    python -m tests.gpu.compiled cuda neural_ode       those of one op

The exit code is 1 where a limit is exceeded, a kernel has none, or one fits no kernel; or where a kernel's
predicted share of the roofline has fallen (roofline.py).
"""

import contextlib
import io
import os
import sys

from tests.gpu.compiled import cuda_kernels, resources, roofline, triton_kernels

LIBRARIES = {"cuda": (cuda_kernels, cuda_kernels.SOURCES), "triton": (triton_kernels, triton_kernels.LAUNCHES)}


def main(words):
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 leaves nothing to compile: unset it")
    problems = []
    print(resources.HEADER)
    for name, (library, ops) in LIBRARIES.items():
        if name not in words and not LIBRARIES.keys().isdisjoint(words):
            continue
        wanted = [a for a in library.ARCHITECTURES if a in words] or library.ARCHITECTURES
        of_ops = [op for op in ops if op in words] or [*ops]
        for folder, architecture, table in library.tables(wanted, of_ops):
            title = f"{name}, {folder.name.lstrip('_')}, {architecture}"
            print(title, *resources.rows(table), sep="\n", flush=True)
            found = resources.beyond(resources.limits(folder), table)
            if (name, architecture) == ("cuda", "90a"):
                found += roofline.fallen(roofline.kept(folder), roofline.counted(folder.name, table))
            problems += [f"{title}: {problem}" for problem in found]
    print(*problems or ["All within their limits."], sep="\n")
    return bool(problems)


def printed(*words):
    """Whether there are problems, and what is printed."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        return main(words), text.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
