"""Laws of the masked conditioner."""

import copy
import time

import pytest
import torch
from torch import nn

from flowkern.nn import MADE
from flowkern.ops import Activation, AffineElement, masked_autoregressive
from flowkern.ops._activation import NAMES


def build(features, context=0, order=None, **options):
    """A MADE of two outputs per feature in float64, with random parameters."""
    torch.manual_seed(0)
    made = MADE(features, 2 * features, context, order=order, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


SHAPES = {
    "default": {},
    "residual": {"hidden_features": (7, 7), "residual": True},
    "narrow": {"hidden_features": (2, 9)},
    "one unit": {"hidden_features": (1,)},
    "no hidden layer": {"hidden_features": ()},
}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("order", [None, [3, 0, 2, 1], [0, 5, 5, 0], [1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_depend_on_lower_orders_only(shape, order, context):
    made = build(4, context, order, activation="tanh", **SHAPES[shape])
    x, c = torch.randn(4).double(), torch.randn(context).double()
    inputs = (x, c) if context else (x,)
    jacobians = torch.autograd.functional.jacobian(made, inputs)
    order = torch.tensor(order or range(4))
    reads = jacobians[0].view(4, 2, 4) != 0
    assert not (reads & (order.view(4, 1, 1) <= order)).any()
    if shape not in ("narrow", "one unit"):  # these have not a unit for each degree
        assert torch.equal(reads.all(1), order.unsqueeze(-1) > order)
        assert not context or (jacobians[1] != 0).all()


@pytest.mark.parametrize("activation", [*NAMES, Activation("leaky_relu", 0.2)])
@pytest.mark.parametrize("residual", [False, True])
def test_layers_are_the_network(activation, residual):
    """The op, given `layers`, uses the parameters that `forward` returns."""
    made = build(3, 2, hidden_features=(5, 5), activation=activation, residual=residual)
    x, c = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    shift, raw_scale = made(x, c).unflatten(-1, (3, 2)).unbind(-1)
    y, logabsdet = masked_autoregressive(x, made.layers(c), made.degrees, AffineElement("exp"))
    torch.testing.assert_close(y, raw_scale.exp() * x + shift, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logabsdet, raw_scale.sum(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 6, 7, 13])
@pytest.mark.parametrize("context", [0, 2])
def test_hidden_degrees_are_spread_evenly(width, context):
    made = build(7, context, hidden_features=(width,))
    ends = made.degrees.on("cpu")[1][1]
    counts = ends.diff(prepend=torch.zeros(1, dtype=torch.long))
    useful = counts[:-1] if context else counts[1:-1]
    assert counts.sum() == useful.sum() == width and counts[-1] == 0
    assert useful[-1] >= 1 and useful.max() - useful.min() <= 1


def test_loaded_order_is_used():
    x = torch.randn(5, 4).double()
    made, other = build(4, order=[2, 3, 0, 1]), build(4)
    assert not torch.equal(other(x), made(x))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x)) and torch.equal(copy.deepcopy(other)(x), made(x))
    assert set(made.state_dict()) - {name for name, _ in made.named_parameters()} == {"order"}


@pytest.fixture
def pair():
    """Two MADEs of different orders and parameters, the first already called, and inputs."""
    made, other, x = build(4), build(4, order=[2, 3, 0, 1]), torch.randn(5, 4).double()
    made(x)
    return made, other, x


@torch.no_grad()
def write(made, state):
    for name, tensor in made.state_dict().items():
        tensor.copy_(state[name])


def test_an_order_written_to_is_used(pair):
    made, other, x = pair
    write(made, other.state_dict())
    assert torch.equal(made(x), other(x))


def test_a_copy_counts_writes_of_its_own(pair):
    made, other, x = pair
    write(made, made.state_dict())
    made(x)
    copied = copy.deepcopy(made)
    write(copied, other.state_dict())
    assert torch.equal(copied(x), other(x))


def test_an_order_written_to_in_inference_mode_is_used():
    with torch.inference_mode():
        made, other, x = build(4), build(4, order=[2, 3, 0, 1]), torch.randn(5, 4).double()
        made(x)
        write(made, other.state_dict())
        assert torch.equal(made(x), other(x))


def test_an_order_in_place_of_the_buffer_is_used(pair):
    made, other, x = pair
    own = made(x)
    assert torch.equal(torch.func.functional_call(made, other.state_dict(), x), other(x))
    assert torch.equal(made(x), own)


@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_takes_modules_of_one_order(pair, dim):
    made, _, x = pair
    others = [build(4, order=[2, 3, 0, 1]) for _ in range(4)]
    nn.init.normal_(others[1].input.weight)
    parameters, buffers = torch.func.stack_module_state(others)

    def call(parameters, order):
        return torch.func.functional_call(made, (parameters, {"order": order}), x)

    order = buffers["order"].movedim(0, dim)
    got = torch.func.vmap(call, (0, dim))(parameters, order)
    torch.testing.assert_close(got, torch.stack([other(x) for other in others]))
    order.select(dim, 2).copy_(torch.arange(4))
    with pytest.raises(ValueError, match="order: expected the same in all modules"):
        torch.func.vmap(call, (0, dim))(parameters, order)


def test_nested_vmap_takes_modules_of_one_order(pair):
    made, other, x = pair
    orders = other.order.expand(2, 3, 4).contiguous()

    def call(order):
        return torch.func.functional_call(made, other.state_dict() | {"order": order}, x)

    got = torch.func.vmap(torch.func.vmap(call), 1)(orders)
    torch.testing.assert_close(got, other(x).expand_as(got))
    orders[1, 2] = torch.arange(4)
    with pytest.raises(ValueError, match="order: expected the same in all modules"):
        torch.func.vmap(torch.func.vmap(call), 1)(orders)


@pytest.mark.parametrize("changed", [False, True])
def test_what_torch_func_was_the_first_to_call_can_be_copied(pair, changed):
    made, other = (build(4), pair[1])
    if changed:
        write(made, other.state_dict())
    torch.func.grad(lambda x: made(x).sum())(pair[2])
    assert torch.equal(copy.deepcopy(made)(pair[2]), (other if changed else made)(pair[2]))


def test_what_inference_mode_was_the_first_to_call_can_be_trained(pair):
    made, other, x = pair
    write(made, other.state_dict())
    with torch.inference_mode():
        made(x)
    made(x).sum().backward()


@torch.no_grad()
def test_a_graph_is_made_of_the_order_as_it_is(pair):
    made, other, x = pair
    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), made(x))
    made.load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(x), other(x))
    torch._dynamo.reset()
    write(made, build(4).state_dict())
    with pytest.raises(Exception, match="order: was changed or replaced since the last call"):
        compiled(x)
    made(x)
    torch.testing.assert_close(compiled(x), build(4)(x))


def test_ten_thousand_features_take_seconds():
    start = time.perf_counter()
    made = MADE(10_000, 20_000, hidden_features=(64,), order=torch.randperm(10_000))
    assert made.degrees.levels == 10_000
    assert made(torch.randn(2, 10_000)).shape == (2, 20_000)
    assert time.perf_counter() - start < 10


X = torch.zeros(4, 3)
WRONG = [
    (lambda: MADE(0, 2), ValueError, "features: expected an integer >= 1"),
    (lambda: MADE(2, 3), ValueError, "outputs: expected a multiple of 2 features, got 3"),
    (lambda: MADE(2, 2, activation="cube"), ValueError, "activation: expected one of relu, "),
    (lambda: MADE(2, 2, 0, (3, 4), residual=True), ValueError, "hidden_features: expected one w"),
    (lambda: MADE(2, 2, order=[0.0, 1.0]), ValueError, r"order: expected integers of shape \(2,\)"),
    (lambda: MADE(2, 2, order=X[0].long()[:2].to("meta")), ValueError, r"order: .* on meta"),
    (lambda: MADE(2, 2)(X), ValueError, r"x: expected shape \(…, 2\), got \(4, 3\)"),
    (lambda: MADE(3, 3)(X.double()), TypeError, "x: expected dtype torch.float32"),
    (lambda: MADE(3, 3, 1)(X), ValueError, "context: expected a tensor"),
    (lambda: MADE(3, 3, 3).layers(X.double()), TypeError, "context: expected dtype"),
]


@pytest.mark.parametrize("call, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
