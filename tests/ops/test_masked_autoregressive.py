"""The masked autoregressive transform: equal to its float64 reference on every backend."""

import pytest
import torch

from tests.masked_autoregressive_cases import CASES, check


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_reference(backend, name, dtype, inverse):
    check(CASES[name], backend, dtype, inverse=inverse)
