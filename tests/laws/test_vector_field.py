"""Laws of vector fields, in float64 unless said."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import flowkern
from flowkern.flows import CNF
from flowkern.nn import VectorField
from flowkern.ops import Activation, FieldLayer, TimeEmbedding, neural_ode
from flowkern.ops._activation import NAMES
from flowkern.transforms import NeuralODE
from tests.laws.continuous import hooked, normal, randomised

ACTIVATIONS = (*NAMES, "selu", Activation("leaky_relu", 0.2), Activation("elu", 0.5), Activation("relu"))


def field_by_solve(field, t, x, context=None):
    """f(t, x) out of one Euler step of length 1 of the fused solve, and its trace."""
    times = torch.tensor([t, t + 1], dtype=x.dtype)
    layers = field.layers(context)
    solution = neural_ode(x, layers, times, method="euler", time=field.time, trace="exact")
    return solution.y[1] - x, solution.logabsdet[1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("time", ["concatenate", "fourier", None])
def test_the_solve_computes_the_field(activation, time):
    field = randomised(VectorField(3, 2, (5, 4), activation, time))
    x, c = normal(6, 4, 3), normal(4, 2)
    f, trace = field_by_solve(field, 0.3, x, c)
    torch.testing.assert_close(f, field(0.3, x, c))
    rows = torch.autograd.functional.jacobian(lambda x: field(0.3, x, c).sum((0, 1)), x)
    torch.testing.assert_close(trace, torch.einsum("iabi->ab", rows))


def test_time_is_a_number_or_one_for_each_row():
    field, x = randomised(VectorField(2, time="fourier")), normal(3, 4, 2)
    wanted = field(0.25, x)
    for t in (torch.tensor(0.25), torch.full((4,), 0.25), torch.full((3, 1), 0.25).double()):
        torch.testing.assert_close(field(t, x), wanted)
    t = torch.rand(4).double()
    torch.testing.assert_close(field(t, x)[:, 2], field(t[2].item(), x[:, 2]))
    assert field(t, x[0, 0]).shape == (4, 2)


def test_frequencies_are_not_lost_on_meta():
    real = randomised(VectorField(2, time="fourier"))
    empty, x = VectorField(2, time="fourier").double().to("meta").to_empty(device="cpu"), normal(4, 2)
    empty.load_state_dict(real.state_dict())
    assert torch.equal(empty(0.3, x), real(0.3, x))
    assert torch.equal(empty.time.frequencies, torch.pi * torch.tensor([1.0, 2.0, 3.0]).double())


def network(inputs=4, outputs=3, *activations):
    parts = [nn.Linear(inputs, 5)]
    for activation in activations or (nn.SELU(), nn.ELU(0.5), nn.LeakyReLU(0.2), nn.ReLU(True)):
        parts += (activation, nn.Linear(5, 5))
    return nn.Sequential(*parts[:-1], nn.Linear(5, outputs))


@pytest.mark.parametrize("order", [("x", "t", "context"), ("t", "x", "context"), ("context", "x", "t")])
def test_a_network_that_is_there_already_is_taken(order):
    net = randomised(network(6))
    field = VectorField.of(net, order=order)
    assert (field.features, field.context) == (3, 2)
    x, c, t = normal(7, 3), normal(7, 2), torch.full((7, 1), 0.3, dtype=torch.float64)
    parts = {"x": x, "t": t, "context": c}
    wanted = net(torch.cat([parts[part] for part in order], 1))
    torch.testing.assert_close(field(0.3, x, c), wanted)
    torch.testing.assert_close(field_by_solve(field, 0.3, x, c)[0], wanted)


def test_its_parameters_are_shared():
    net = randomised(network())
    field, x = VectorField.of(net), normal(5, 3)
    assert {id(p) for p in field.parameters()} == {id(p) for p in net.parameters()}
    assert list(field.state_dict()) == [f"net.{name}" for name in net.state_dict()]
    before = field_by_solve(field, 0.0, x)[0]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    CNF(field=field, steps=2)().log_prob(x).sum().backward()
    optimizer.step()
    after = field_by_solve(field, 0.0, x)[0]
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, net(torch.cat((x, torch.zeros(5, 1)), 1)))


def test_networks_without_time():
    net = randomised(network(3, 3, nn.GELU(), nn.Softplus()))
    field, x = VectorField.of(net, time=None), normal(5, 3)
    assert field.time is None
    torch.testing.assert_close(field_by_solve(field, 0.3, x)[0], net(x))


class Added(nn.Module):
    """W₂ tanh(W₁ x + b₁ + w t) + b₂: time is added by a layer of its own."""

    features, context = 3, 0

    def __init__(self):
        super().__init__()
        self.first, self.of_time, self.last = nn.Linear(3, 5), nn.Linear(1, 5, bias=False), nn.Linear(5, 3)

    def layers(self, context=None):
        hidden = FieldLayer(self.first.weight, self.first.bias, "tanh")
        return hidden, FieldLayer(self.last.weight, self.last.bias)

    @property
    def time(self):
        return TimeEmbedding(self.of_time.weight)


def test_time_by_addition_is_a_column_of_the_concatenated_weight():
    added, x = randomised(Added()), normal(4, 3)
    field = VectorField(3, hidden_features=(5,)).double()
    with torch.no_grad():
        field.net[0].weight.copy_(torch.cat((added.first.weight, added.of_time.weight), 1))
        field.net[0].bias.copy_(added.first.bias)
        field.net[2].weight.copy_(added.last.weight)
        field.net[2].bias.copy_(added.last.bias)
    hidden = torch.tanh(added.first(x) + added.of_time(x.new_full((4, 1), 0.3)))
    torch.testing.assert_close(field(0.3, x), added.last(hidden))
    torch.testing.assert_close(NeuralODE(added)(x), NeuralODE(field)(x))


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


WRONG_NETS = [
    (lambda: nn.Linear(4, 3), TypeError, "net: expected an nn.Sequential, got Linear"),
    (lambda: Doubled(*network()), TypeError, "net: expected an nn.Sequential, got Doubled"),
    (lambda: hooked(network()), TypeError, "net: has hooks"),
    (lambda: network(4, 3, nn.Dropout()), TypeError, "got Dropout"),
    (lambda: network(4, 3, nn.GELU("tanh")), TypeError, "got GELU"),
    (lambda: network(4, 3, nn.Softplus(2.0)), TypeError, "got Softplus"),
    (lambda: network(4, 3, nn.Softplus(1, 5.0)), TypeError, "got Softplus"),
    (lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 3)), TypeError, "got Tanh"),
    (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()), TypeError, "a linear layer at the end"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Tanh()), TypeError, "in turn, got Tanh"),
    (lambda: nn.Sequential(), TypeError, "a linear layer at the end"),
    (lambda: network(3), ValueError, "net: expected at least 4 inputs"),
]


@pytest.mark.parametrize("make, error, message", WRONG_NETS, ids=[m for *_, m in WRONG_NETS])
def test_other_networks_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        VectorField.of(make())


FIELD = VectorField(2)
WRONG = [
    (lambda: VectorField.of(network(), order=("x", "t")), ValueError, "order: expected a perm"),
    (lambda: FIELD(0.0, torch.zeros(4, 3)), ValueError, r"x: expected shape \(…, 2\)"),
    (lambda: FIELD(torch.zeros(3), torch.zeros(4, 2)), ValueError, "t: batch shape"),
    (lambda: FIELD(0.0, torch.zeros(4, 2).double()), TypeError, "x: expected dtype"),
]


@pytest.mark.parametrize("call, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def _to_silu(field):
    field.net[1] = nn.SiLU()


def _slope(field):
    field.net[5].negative_slope = 0.7


def _alpha(field):
    field.net[3].alpha = 0.25


def _layer(field):
    field.net[2] = nn.Linear(5, 5).double()


def _part_less(field):
    del field.net[1]


@pytest.mark.parametrize("change", [_to_silu, _slope, _alpha, _layer, _part_less])
def test_a_changed_network_is_read_anew(change):
    field, x, c = randomised(VectorField.of(network())), normal(4, 3), None
    before, _ = field_by_solve(field, 0.3, x, c)
    change(field)
    after, _ = field_by_solve(field, 0.3, x, c)
    torch.testing.assert_close(after, field(0.3, x, c))
    assert not torch.allclose(after, before)


def test_a_network_that_no_kernel_computes_is_refused_at_the_next_call():
    field, x = randomised(VectorField.of(network())), normal(4, 3)
    flow = CNF(field=field)
    flow.transform(x)
    for change, message in (
        (lambda: field.net[2].register_forward_hook(lambda *_: None), "field: has hooks"),
        (lambda: torch.nn.utils.parametrizations.orthogonal(field.net[2]), "net: expected linear layers"),
    ):
        change()
        with pytest.raises(TypeError, match=message):
            flow.transform(x)


class Names(TorchDispatchMode):
    """The names of the operations that run inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_where_the_end_alone_is_asked_for_nothing_is_concatenated(backend):
    flow, x = CNF(3, hidden_features=(4,)).double(), normal(5, 3)
    with flowkern.backend(backend), torch.no_grad(), Names() as names:
        flow.transform(x), flow.transform.data(x), flow.transform.forward_and_costs(x)
    assert "cat" not in names.seen
