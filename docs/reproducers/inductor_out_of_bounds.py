"""A real NVP of zuko whose compiled backward writes behind a buffer (torch 2.13, CPU): python inductor_out_of_bounds.py

The step runs in a process whose allocator (glibc's debugging one) checks the byte behind each block when it is freed.
"""

import os
import subprocess
import sys

DEBUG = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "2"}


def step(compiled):
    import torch
    import zuko

    torch.manual_seed(0)
    flow = zuko.flows.NICE(64, transforms=8, hidden_features=(128,) * 5)
    x = torch.randn(512, 64)

    def loss(x):
        return -flow().log_prob(x).mean()

    (torch.compile(loss, dynamic=False) if compiled else loss)(x).backward()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        step(sys.argv[1] == "compiled")
    else:
        for kind in ("eager", "compiled"):
            done = subprocess.run(
                [sys.executable, __file__, kind], env=os.environ | DEBUG, capture_output=True, text=True
            )
            print(kind, "exits with", done.returncode, done.stderr.strip().splitlines()[-1:])
