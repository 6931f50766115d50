"""The formulas of docs/atlas that are marked ✓ give the numbers of the installed library."""

import math

import normflows
import pytest
import torch
import torchdiffeq
import zuko
from FrEIA.modules import AllInOneBlock, GLOWCouplingBlock
from nflows import transforms as nflows
from torch import nn
from torch.nn import functional as F

from flowkern.ops import rational_quadratic_spline

X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(6, 4)
MASK = [0, 1, 0, 1]
IDENTITY, TRANSFORMED = X[:, ::2], X[:, 1::2]


class Constant(nn.Module):
    """A network whose parameters are the same for every sample."""

    def __init__(self, count):
        super().__init__()
        self.values = nn.Parameter(torch.linspace(-1, 1.5, count, dtype=torch.float64))

    def forward(self, x, *_):
        return self.values.expand(len(x), -1).clone()


def check(found, y, logdet):
    torch.testing.assert_close(found[0], y)
    torch.testing.assert_close(found[1], logdet)


def coupled(y_transformed):
    return torch.stack((X[:, 0], y_transformed[:, 0], X[:, 2], y_transformed[:, 1]), 1)


def test_nflows_affine_coupling_has_shifts_then_sigmoid_scales():
    layer = nflows.AffineCouplingTransform(MASK, lambda i, o: Constant(o))
    shift, u = layer.transform_net.values.chunk(2)
    scale = torch.sigmoid(u + 2) + 1e-3
    check(layer(X), coupled(scale * TRANSFORMED + shift), scale.log().sum().expand(6))


def test_nflows_additive_coupling_has_shifts():
    layer = nflows.AdditiveCouplingTransform(MASK, lambda i, o: Constant(o))
    check(layer(X), coupled(TRANSFORMED + layer.transform_net.values), torch.zeros(6, dtype=torch.float64))


def with_constant_output(layer, made, values):
    """`layer`, whose masked network gives `values`, feature by feature."""
    last = made.final_layer
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(values)
    return layer


def test_nflows_masked_affine_has_softplus_scales_before_shifts():
    layer = nflows.MaskedAffineAutoregressiveTransform(4, 8).double()
    params = torch.linspace(-1, 1, 8, dtype=torch.float64)
    with_constant_output(layer, layer.autoregressive_net, params)
    u, shift = params.view(4, 2).unbind(1)
    scale = F.softplus(u) + 1e-3
    check(layer(X), scale * X + shift, scale.log().sum().expand(6))


def test_normflows_masked_affine_has_sigmoid_scales_before_shifts():
    layer = normflows.flows.MaskedAffineAutoregressive(4, 8).double()
    params = torch.linspace(-1, 1, 8, dtype=torch.float64)
    with_constant_output(layer, layer.autoregressive_net, params)
    u, shift = params.view(4, 2).unbind(1)
    scale = torch.sigmoid(u + 2) + 1e-3
    check(layer(X), scale * X + shift, scale.log().sum().expand(6))


@pytest.mark.parametrize(
    ("scale_map", "scale_of"),
    [
        ("exp", torch.exp),
        ("sigmoid", lambda u: 1 / torch.sigmoid(u + 2)),
        ("sigmoid_inv", lambda u: torch.sigmoid(u + 2)),
    ],
)
def test_normflows_affine_coupling_interleaves_shifts_and_scales(scale_map, scale_of):
    layer = normflows.flows.AffineCoupling(Constant(4), scale_map=scale_map)
    shift, u = layer.param_map.values[0::2], layer.param_map.values[1::2]
    (_, z2), logdet = layer([IDENTITY, TRANSFORMED])
    check((z2, logdet), scale_of(u) * TRANSFORMED + shift, scale_of(u).log().sum().expand(6))


def test_nflows_spline_divides_by_the_root_of_the_hidden_features():
    net = Constant(2 * 23)
    net.hidden_features = 16
    layer = nflows.PiecewiseRationalQuadraticCouplingTransform(
        MASK, lambda i, o: net, num_bins=8, tails="linear", tail_bound=3.0
    )
    params = net.values.view(2, 23).clone()
    params[:, :16] /= math.sqrt(16)
    y, logdet = rational_quadratic_spline(TRANSFORMED, params.expand(6, 2, 23), bound=3.0)
    check(layer(X), coupled(y), logdet)


def test_nflows_linear_layers():
    layer = nflows.LULinear(4).double()
    with torch.no_grad():
        [p.normal_() for p in layer.parameters()]
    lower, upper = torch.eye(4, dtype=torch.float64), torch.diag(F.softplus(layer.unconstrained_upper_diag) + 1e-3)
    lower[torch.tril_indices(4, 4, -1).unbind()] = layer.lower_entries
    upper[torch.triu_indices(4, 4, 1).unbind()] = layer.upper_entries
    check(layer(X), X @ (lower @ upper).T + layer.bias, upper.diagonal().log().sum().expand(6))
    norm = nflows.ActNorm(4).double().eval()
    norm.log_scale.data.normal_(), norm.shift.data.normal_()
    check(norm(X), norm.log_scale.exp() * X + norm.shift, norm.log_scale.sum().expand(6))


def test_zuko_affine_has_the_shift_first_and_a_clipped_logarithm():
    shift, u = torch.tensor([0.5, -3.0], dtype=torch.float64)
    log_scale = u / (1 + (u / math.log(1e-3)).abs())
    transform = zuko.transforms.MonotonicAffineTransform(shift, u)
    check(transform.call_and_ladj(X), log_scale.exp() * X + shift, log_scale.expand(6, 4))


def test_zuko_spline_clips_raw_values_before_softmax_and_exp():
    w, h, d = (torch.linspace(-2, 3, n, dtype=torch.float64) for n in (5, 5, 4))
    transform = zuko.transforms.MonotonicRQSTransform(w, h, d)

    def knots(raw):
        shares = torch.softmax(raw / (1 + (2 * raw / math.log(1e-3)).abs()), 0)
        return 5 * (2 * torch.cat((shares.new_zeros(1), shares.cumsum(0))) - 1)

    at, values = knots(w)[1:-1], knots(h)[1:-1]
    y, ladj = transform.call_and_ladj(at)
    check((y, ladj), values, d / (1 + (d / math.log(1e-3)).abs()))


def test_zuko_coupling_keeps_what_the_mask_marks():
    mask = torch.tensor([True, False, True, False])
    transform = zuko.flows.GeneralCouplingTransform(4, mask=mask).double()()
    assert torch.equal((transform(X) == X).all(0), mask)


def test_zuko_passes_make_blocks_of_features():
    transform = zuko.flows.MaskedAutoregressiveTransform(4, passes=2).double()()
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x), X[0])
    assert torch.equal(
        jacobian != 0, torch.eye(4, dtype=bool) | torch.tensor([[0, 0, 0, 0]] * 2 + [[1, 1, 0, 0]] * 2).bool()
    )


def test_freia_glow_clamps_by_0636_atan_and_has_scales_first():
    layer = GLOWCouplingBlock([(4,)], subnet_constructor=lambda i, o: Constant(o))
    s2, b2 = layer.subnet2.values.chunk(2)
    s1, b1 = layer.subnet1.values.chunk(2)
    first, second = (2 * 0.636 * torch.atan(s) for s in (s2, s1))
    y = torch.cat((first.exp() * X[:, :2] + b2, second.exp() * X[:, 2:] + b1), 1)
    (found,), logdet = layer((X,))
    check((found, logdet), y, (first.sum() + second.sum()).expand(6))


def test_freia_all_in_one_scales_everything_by_a_tenth():
    layer = AllInOneBlock([(5,)], subnet_constructor=lambda i, o: Constant(o)).double()
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(6, 5)
    a_s, a_b = (0.1 * a for a in layer.subnet.values.chunk(2))
    log_scale = 2 * torch.tanh(a_s)
    y = torch.cat((x[:, :3], log_scale.exp() * x[:, 3:] + a_b), 1)
    scale = 0.1 * F.softplus(0.5 * layer.global_scale) / 0.5
    y = (y * scale + layer.global_offset) @ layer.w_perm.T
    (found,), logdet = layer((x,))
    check((found, logdet), y, (log_scale.sum() + scale.log().sum()).expand(6))


def test_torchdiffeq_rk4_is_the_rule_of_three_eighths():
    def f(t, y):
        return t * y + 1

    y, h, t = torch.tensor(0.3, dtype=torch.float64), 0.5, torch.tensor([0.0, 0.5], dtype=torch.float64)
    k1 = f(0, y)
    k2 = f(h / 3, y + h * k1 / 3)
    k3 = f(2 * h / 3, y + h * (k2 - k1 / 3))
    k4 = f(h, y + h * (k1 - k2 + k3))
    torch.testing.assert_close(torchdiffeq.odeint(f, y, t, method="rk4")[1], y + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8)


def test_torchdiffeq_interpolates_between_the_points_of_a_step_size():
    y0, t = torch.ones((), dtype=torch.float64), torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    states = torchdiffeq.odeint(lambda t, y: -y, y0, t, method="euler", options={"step_size": 0.5})
    torch.testing.assert_close(states[1], (states[0] + 0.5) / 2)
