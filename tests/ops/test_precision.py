"""What the precision that a user sets for float32 products leaves as it is."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowkern.ops import FieldLayer, neural_ode
from flowkern.ops._masked_autoregressive import gradients
from flowkern.ops._precision import mm

WAYS = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
}


class Products(TorchDispatchMode):
    """What precision each matrix product is asked for in, and of which dtype."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.asked.append((torch.backends.cuda.matmul.fp32_precision, args[0].dtype))
        return function(*args, **kwargs or {})


def _state():
    try:
        asked = torch.get_float32_matmul_precision()
    except RuntimeError:
        asked = "differs"
    return asked, torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


def _weight_gradients():
    """Of two layers, from a tape."""
    x, weights = torch.randn(7, 2), (torch.randn(3, 2), torch.randn(4, 3))
    tensors = [t for weight in weights for t in (weight, None, None, None, None)]
    needs, ranks = [t is not None for t in tensors], torch.zeros(5, dtype=torch.int64)
    tape = torch.randn(gradients.tape_rows(tensors), 7)
    return gradients.of_tensors(x, tape, needs, ranks, tensors)


@pytest.fixture
def settings():
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("way", WAYS)
def test_weight_gradients_stay_float32_where_tf32_is_allowed(way, settings):
    """And the user's settings stay as they are."""
    WAYS[way]()
    before = _state()
    with Products() as products:
        torch.mm(torch.ones(1, 1), torch.ones(1, 1))
        grads = _weight_gradients()
    assert products.asked == [("tf32", torch.float32)] + 2 * [("ieee", torch.float32)]
    assert sum(grad is not None for grad in grads) == 2 and _state() == before
    with pytest.raises(RuntimeError):
        mm(torch.ones(1, 2), torch.ones(1, 2))
    threads = [threading.Thread(target=lambda: [_weight_gradients() for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _state() == before


def test_the_closed_form_of_a_trace_is_no_product_in_float32():
    layers = [FieldLayer(torch.randn(5, 2), None, "tanh"), FieldLayer(torch.randn(4, 5), None, "tanh")]
    layers.append(FieldLayer(torch.randn(2, 4), None))
    with Products() as products:
        neural_ode(torch.randn(3, 2), layers, torch.tensor([0.0, 1.0]), steps=1, trace="exact")
    assert {dtype for _, dtype in products.asked} == {torch.float64}


def test_compiled_code_takes_the_product_as_one_op():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    torch.library.opcheck(torch.ops.flowkern.float32_mm, (a, b))
    compiled = torch.compile(mm, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(a, b), torch.mm(a, b))
