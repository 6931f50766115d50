"""Launch parameters of the Triton kernels that were tuned on a GPU; elsewhere a sound default.

launch_parameters.json holds {GPU: {kernel: [elements of a tile, warps]}}. `python -m tests.gpu.gate`
finds them. The CUDA kernels have none: their block sizes are compiled in.
"""

import functools
import json
from pathlib import Path

import torch

PATH = Path(__file__).with_name("launch_parameters.json")


def tuned(kernel, tensor, default):
    """(elements, warps) of `kernel` on the GPU that holds `tensor`, or `default`."""
    return _of_gpu(tensor.device).get(kernel, default) if tensor.is_cuda else default


@functools.cache
def _of_gpu(device):
    table = json.loads(PATH.read_text()).get(torch.cuda.get_device_name(device), {})
    return {kernel: tuple(values) for kernel, values in table.items()}
