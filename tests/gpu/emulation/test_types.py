"""What CUDA defines: sixteen-bit floats as torch has them, what lanes exchange, launches."""

import ctypes
import struct

import pytest
import torch

from tests.gpu.emulation import faults

NARROW = {"half": torch.float16, "bfloat16": torch.bfloat16}

pytestmark = pytest.mark.timeout(900)


def _call(name, *tensors):
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    getattr(faults.library(), name)(*pointers, len(tensors[0]))


def _floats(dtype):
    """All values of the type, those halfway between two, and others of every exponent."""
    each = torch.arange(-(2**15), 2**15).short().view(dtype).float()
    bits = torch.randint(-(2**31), 2**31, (100_000,)).int()
    return torch.cat((each, each.nextafter(each * 2), (each + each.roll(1)) / 2, bits.view(torch.float32)))


@pytest.mark.parametrize("name", NARROW)
def test_conversions(name):
    values = _floats(NARROW[name])
    out, bits = torch.empty_like(values), torch.empty(len(values), dtype=torch.int16)
    _call(f"{name}_round_trip", values, out, bits)
    want = values.to(NARROW[name])
    torch.testing.assert_close(out, want.float(), rtol=0, atol=0, equal_nan=True)
    numbers = ~values.isnan()
    assert torch.equal(bits[numbers], want.view(torch.int16)[numbers])


@pytest.mark.parametrize("name", NARROW)
def test_arithmetic(name):
    """Each operation is that of float, rounded."""
    a, b = torch.randn(2, 10_000)
    out = torch.empty_like(a)
    _call(f"{name}_combine", a, b, out)
    x, y = (t.to(NARROW[name]) for t in (a, b))
    torch.testing.assert_close(out, (x * y - x / y + -y).float(), rtol=0, atol=0)


def _expected(block):
    """What the kernel `right` computes, from its definition, lane by lane."""
    given = [float(64 * block + i) for i in range(64)]
    tiles = [given[i : i + 16] for i in range(0, 64, 16)]
    value = [sum(tiles[i // 16]) + tiles[i // 16][3] for i in range(64)]
    up = [value[i - 1] if i % 32 else value[i] for i in range(64)]
    down = [value[i + 2] if i % 8 < 6 else value[i] for i in range(64)]
    value = [v + u + d for v, u, d in zip(value, up, down)]
    of_warp = [sum(range(0, 32)), sum(range(32, 64))]
    constant = 63 + 7 + 16 + 1 + value[0] - value[32]
    return [v + constant + of_warp[i // 32] for i, v in enumerate(value)]


def test_what_lanes_exchange():
    report, result = faults.run("right", wrong=False)
    assert report is None
    assert [*struct.unpack("128f", result)] == _expected(0) + _expected(1)


@pytest.mark.parametrize(
    "dynamic, allowed, error",
    [(12288, 12288, 0), (12289, 12288, 9), (58112, 58112, 0), (1, 58113, 9)],
    ids=["48 KiB", "more than allowed", "227 KiB", "more than there is"],
)
def test_launches(dynamic, allowed, error):
    """Three dimensions, and as much shared memory as the kernel may have."""
    out = torch.full((2, 8, 2, 4), -1.0)
    pointer = ctypes.c_void_p(out.data_ptr())
    assert faults.library().run_dimensions(dynamic, allowed, pointer) == error
    if error:
        assert (out == -1).all()
    else:
        block, z, y, x = torch.meshgrid(*map(torch.arange, out.shape), indexing="ij")
        assert torch.equal(out, (x + 10 * y + 100 * z + 1000 * block).float())
