"""Constants on a device, which captured CUDA graphs read by address."""

import pytest
import torch

from flowkern.ops._tables import on_device

CPU = torch.device("cpu")


def test_no_table_is_freed_by_later_ones():
    first = on_device((-1.0,), torch.float32, CPU)
    for i in range(1000):
        on_device((i,), torch.int32, CPU)
    assert on_device((-1.0,), torch.float32, CPU).data_ptr() == first.data_ptr()


def test_a_table_first_needed_inside_a_capture_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call it once before the capture"):
        on_device((1.0, 2.0), torch.float32, torch.device("cuda", 0))


def test_a_table_made_in_inference_mode_serves_later_gradients():
    with torch.inference_mode():
        table = on_device((0.125,), torch.float64, CPU)
    assert not table.is_inference()
