"""What only a machine with two GPUs can show: kernels run on the device of their tensors."""

import pytest
import torch

import flowkern
from tests.cases import kernels, modules

TWO = torch.cuda.is_available() and torch.cuda.device_count() > 1


@pytest.mark.skipif(not TWO, reason="there are not two GPUs")
@pytest.mark.parametrize("op", modules("emulated"))
def test_kernels_run_on_the_device_of_their_tensors(op):
    case = next(iter(modules()[op].CASES.values()))
    for name in ("cuda", "triton"):
        if name in kernels(op) and flowkern.backends.unavailable(name) is None:
            modules()[op].check(case, name, torch.float32, device="cuda:1")
