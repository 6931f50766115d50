"""Transforms and networks that need more than a step of their own: bounded splines, one feature, networks of users'."""

import pytest
import torch
import zuko
from nflows.distributions import DiagonalNormal, StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    AffineCouplingTransform,
    BatchNorm,
    CompositeTransform,
    LULinear,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    PiecewiseRationalQuadraticCDF,
    RandomPermutation,
)
from nflows.transforms.base import InputOutsideDomain
from torch import nn

import flowkern
from tests.adapters.program_models import (
    _SMALL,
    MASK,
    C,
    Chain,
    ContextMap,
    D,
    affine,
    data,
    derivatives,
    maf,
    net,
    pair,
    randomised,
    spline_of,
    standardising,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def agree(plain, fast, *inputs):
    """Values and gradients of a composite's forward; its inverse undoes it."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    wanted, got = plain(*leaves), fast(*leaves)
    torch.testing.assert_close(got, wanted, **EXACT)
    torch.testing.assert_close(derivatives(fast, got, *leaves), derivatives(plain, wanted, *leaves), **EXACT)
    x, logabsdet = fast.inverse(wanted[0], *leaves[1:])
    torch.testing.assert_close((x, -logabsdet), (leaves[0], wanted[1]), rtol=1e-8, atol=1e-8)


# Splines on [0, 1]


def bounded():
    torch.manual_seed(0)
    coupling = spline_of(net(), tails=None, apply_unconditional_transform=True)
    autoregressive = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, 8, C, num_bins=4)
    alone = PiecewiseRationalQuadraticCDF([D], num_bins=4)
    return randomised(CompositeTransform([coupling, RandomPermutation(D), autoregressive, alone]))


def test_splines_on_the_unit_interval(programs, program_backend):
    plain, fast = pair(bounded())
    programs.clear()
    agree(plain, fast, torch.rand(6, D, dtype=torch.float64), data(C)[1])
    assert [len(p.steps) for p in programs] == [5, 5]


@pytest.mark.parametrize("outside", [-0.1, 1.1])
def test_an_input_outside_the_unit_interval_raises_the_librarys_error(outside):
    fast = flowkern.accelerate(bounded())
    x, c = torch.rand(6, D, dtype=torch.float64), data(C)[1]
    for feature in range(D):
        for call in (fast, fast.inverse):
            with pytest.raises(InputOutsideDomain):
                call(x.index_fill(1, torch.tensor(feature), outside), c)


# One feature


def test_a_flow_of_one_feature_as_sbi_builds_it(programs, program_backend):
    torch.manual_seed(0)
    layers = [spline_of(ContextMap, torch.tensor([1])) for _ in range(2)]
    flow = randomised(Flow(CompositeTransform(layers), StandardNormal([1])))
    plain, fast = pair(flow)
    x, c = data(C)
    programs.clear()
    agree(plain._transform, fast._transform, x[:, :1].contiguous(), c)
    assert len(programs) == 2
    torch.testing.assert_close(fast.log_prob(x[:, :1], c), plain.log_prob(x[:, :1], c), **EXACT)
    assert len(programs) == 3


# Base distributions


def test_a_diagonal_normal_base_with_parameters(programs, program_backend):
    torch.manual_seed(0)
    plain, fast = pair(randomised(Flow(CompositeTransform(maf()), DiagonalNormal([D]))))
    x, c = data(C)
    programs.clear()
    wanted, got = plain.log_prob(x, c), fast.log_prob(x, c)
    torch.testing.assert_close(got, wanted, **EXACT)
    torch.testing.assert_close(derivatives(fast, [got]), derivatives(plain, [wanted]), **EXACT)
    assert len(programs) == 1 and programs[0].base == "normal"


# Networks that users write


class Chatty(Chain):
    """Knows how often it was called."""

    calls = 0

    def forward(self, x, context=None):
        self.calls += 1
        return super().forward(x, context)


class Clamped(Chain):
    def forward(self, x, context=None):
        return super().forward(x, context).clamp(-100, 100)


class Branching(Chain):
    def forward(self, x, context=None):
        return super().forward(x if x.sum() > -1e9 else -x, context)


class Residual(Chain):
    def forward(self, x, context=None):
        h = self.layers[0](torch.cat([x, context], 1))
        return self.layers[-1](h + torch.tanh(h))


class ContextFirst(Chain):
    def forward(self, x, context=None):
        return self.layers(torch.cat([context, x], 1))


class Computing(Chain):
    def forward(self, x, context=None):
        return nn.functional.linear(torch.cat([x, context], 1), 2 * self.layers[0].weight[:4])


class Dropping(Chain):
    def forward(self, x, context=None):
        return super().forward(nn.functional.dropout(x, 0.5, self.training), context)


class Activated(Chain):
    def forward(self, x, context=None):
        return torch.tanh(super().forward(x, context))


class Partial(Chain):
    def forward(self, x, context=None):
        self.layers[0](torch.cat([x, context], 1))
        return self.layers[-1](x.new_zeros(len(x), 8))


@pytest.mark.parametrize(
    "network, reason",
    [
        (Chatty, "its network Chatty changes itself at a call"),
        (Clamped, "its network Clamped calls clamp, which has no layer"),
        (Branching, "its network Branching calls sum, which has no layer"),
        (Residual, "its network Residual calls add, which has no layer"),
        (ContextFirst, "its network ContextFirst calls cat, which has no layer"),
        (Computing, "its network Computing calls __getitem__, which has no layer"),
        (Activated, "its network Activated has an activation behind its last layer"),
        (Partial, "its network Partial calls new_zeros, which has no layer"),
        (Dropping, "its network Dropping calls dropout, which has no layer"),
    ],
)
def test_a_network_that_is_no_chain_of_layers_is_left(network, reason):
    layers = [affine(), LULinear(D), AffineCouplingTransform(MASK, network), affine()]
    plain, fast = pair(randomised(CompositeTransform(layers)))
    if network is Dropping:
        fast.train(), plain.train()
    note = str(flowkern.explain(fast))
    assert "2 transforms in one call; 2 apart: " in note and reason in note
    x, c = data(C)
    torch.manual_seed(1)
    wanted = plain(x, c)
    torch.manual_seed(1)
    torch.testing.assert_close(fast(x, c), wanted, **EXACT)


def test_dropout_that_is_idle_in_evaluation_is_no_obstacle(programs):
    plain, fast = pair(randomised(CompositeTransform([AffineCouplingTransform(MASK, Dropping), LULinear(D)])))
    x, c = data(C)
    programs.clear()
    torch.testing.assert_close(fast(x, c), plain(x, c), **EXACT)
    fast.train()(x, c)
    assert len(programs) == 1


def test_an_edit_of_a_network_is_seen(programs):
    class Switched(Chain):
        factor = 1

        def forward(self, x, context=None):
            y = super().forward(x, context)
            return y if self.factor == 1 else self.factor * y

    fast = flowkern.accelerate(randomised(CompositeTransform([AffineCouplingTransform(MASK, Switched), LULinear(D)])))
    x, c = data(C)
    before, network = fast(x, c), fast._transforms[0].transform_net
    for edit in (
        lambda: setattr(network, "factor", 2),
        lambda: setattr(network, "factor", 1),
        lambda: network.layers.__setitem__(1, nn.Tanh()),
        lambda: network.layers.__setitem__(2, nn.LayerNorm(8).double()),
    ):
        edit()
        with flowkern.backend("reference"):
            got = fast(x, c)
        flowkern.restore(fast)
        torch.testing.assert_close(got, fast(x, c), **EXACT)
        assert edit and not torch.allclose(got[0], before[0]) or network.factor == 1
        flowkern.accelerate(fast)


# What splits a flow


def test_batch_normalisation_in_training_splits_a_flow_and_both_sides_stay_fused(programs):
    torch.manual_seed(0)
    layers = [affine(), LULinear(D), BatchNorm(D), standardising(), affine(), LULinear(D)]
    plain, fast = pair(randomised(Flow(CompositeTransform(layers), StandardNormal([D]))))
    x, c = data(C)
    programs.clear()
    torch.testing.assert_close(fast.train().log_prob(x, c), plain.train().log_prob(x, c), **EXACT)
    assert [len(p.steps) for p in programs] == [2, 3]
    torch.testing.assert_close(fast.state_dict(), plain.state_dict(), rtol=0, atol=1e-12)
    programs.clear()
    torch.testing.assert_close(fast.eval().log_prob(x, c), plain.eval().log_prob(x, c), **EXACT)
    assert [len(p.steps) for p in programs] == [6]


def split_zuko():
    first, last = (zuko.flows.MAF(D, C, **_SMALL) for _ in range(2))
    strange = zuko.flows.GF(D, C, transforms=1, hidden_features=(8,)).transform.transforms[0]
    soft = zuko.lazy.UnconditionalTransform(zuko.transforms.SoftclipTransform)
    return zuko.lazy.Flow((*first.transform.transforms, strange, soft, *last.transform.transforms), first.base)


def test_a_flow_of_zuko_is_split_where_there_is_no_step(programs, program_backend):
    torch.manual_seed(0)
    plain, fast = pair(randomised(split_zuko()))
    x, c = (t.requires_grad_() for t in data(C))
    programs.clear()
    wanted, got = plain(c).log_prob(x), fast(c).log_prob(x)
    assert [len(p.steps) for p in programs] == [3, 3]
    torch.testing.assert_close(got, wanted, **EXACT)
    torch.testing.assert_close(derivatives(fast, [got], x, c), derivatives(plain, [wanted], x, c), **EXACT)
    programs.clear()
    y = plain(c).transform(torch.randn(2, 6, D, dtype=torch.float64)).detach()
    torch.testing.assert_close(fast(c).transform(fast(c).transform.inv(y)), y, rtol=1e-5, atol=1e-5)
    assert len(programs) == 4
    note = str(flowkern.explain(fast))
    assert "3 transforms in one call; 3 apart: there is no step for it; 4 apart: there is no step for Softclip" in note


def test_a_wide_network_stands_apart_and_its_neighbours_stay_fused(programs):
    torch.manual_seed(0)
    wide = AffineCouplingTransform(MASK, lambda i, o: ResidualNet(i, o, 520, context_features=C, num_blocks=1))
    plain, fast = pair(randomised(CompositeTransform([affine(), LULinear(D), wide, affine()])))
    x, c = data(C)
    programs.clear()
    torch.testing.assert_close(fast(x, c), plain(x, c), **EXACT)
    assert [len(p.steps) for p in programs] == [2, 1]
    assert "2 apart: a hidden layer has 520 units" in str(flowkern.explain(fast))
