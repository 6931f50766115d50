"""Pairings of samples: exact, by Sinkhorn, and what they make of flow matching."""

import itertools

import ot
import pytest
import torch
from torch import nn

from flowkern.matching import FlowMatching, exact_pairing, sinkhorn_pairing
from flowkern.matching.optimal_transport import sinkhorn_log_plan
from tests.matching.test_flow_matching import Recorder


def test_exact_pairing_is_the_best_permutation():
    x0, x1 = torch.randn(2, 6, 2)
    pairing = exact_pairing(x0, x1)
    assert pairing.sort().values.tolist() == list(range(6))
    cost = (x0[pairing] - x1).square().sum()
    costs = [(x0[list(p)] - x1).square().sum() for p in itertools.permutations(range(6))]
    torch.testing.assert_close(cost, min(costs))


def test_exact_pairing_of_many():
    """What is moved a little is found again, whatever its order, ties included."""
    x1 = torch.arange(2000.0).view(500, 2, 2).repeat(2, 1, 1)
    order = torch.randperm(1000)
    x0 = x1[order] + 0.1 * torch.rand(1000, 2, 2)
    pairing = exact_pairing(x0, x1)
    assert pairing.sort().values.tolist() == list(range(1000))
    assert (x0[pairing] - x1).abs().max() < 0.1


@pytest.mark.parametrize("pairing", [exact_pairing, sinkhorn_pairing])
def test_pairings_of_few(pairing):
    """Of no samples, of one, and of samples that are all the same."""
    for n in (0, 1):
        assert pairing(*torch.randn(2, n, 3)).tolist() == [0] * n
    assert pairing(*torch.ones(2, 6, 3)).shape == (6,)


@pytest.mark.parametrize("pairing", [exact_pairing, sinkhorn_pairing])
def test_pairings_that_cannot_be(pairing):
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"^x0: expected samples of shape \(3,\), got \(2,\)"):
        pairing(x[:, :2], x)
    with pytest.raises(ValueError, match="^x0: expected at least one sample, to be paired with 5"):
        pairing(x[:0], x)
    if pairing is exact_pairing:
        with pytest.raises(ValueError, match="^x0, x1: expected finite samples"):
            pairing(x, x / 0)
    else:
        with pytest.raises(ValueError, match="^epsilon: expected a finite number above 0, got -1"):
            pairing(x, x, -1)


def test_ot_reorders_x0_alone():
    x1 = torch.randn(50, 2)
    x0, context = x1.flip(0) + 0.001, x1[:, :1].clone()
    field = Recorder()
    loss = FlowMatching(field, coupling="ot").loss(x1, x0, context)
    torch.testing.assert_close(loss, torch.tensor(1e-6), rtol=1e-2, atol=0)
    _, x_t, seen = field.seen
    assert (x_t[:, :1] - seen).abs().max() < 0.0011


@pytest.mark.parametrize("epsilon", [1.0, 0.3])
def test_sinkhorn_plan(epsilon):
    """POT's entropic plan, and its marginals."""
    x0, x1 = torch.randn(2, 30, 2, dtype=torch.float64)
    cost = torch.cdist(x0, x1).square()
    plan = sinkhorn_log_plan(cost, epsilon, tolerance=1e-12).exp()
    weights = torch.full((30,), 1 / 30, dtype=torch.float64)
    want = ot.sinkhorn(weights, weights, cost, epsilon, method="sinkhorn_log", numItermax=2000, stopThr=1e-13)
    torch.testing.assert_close(plan, want, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(plan.sum(0), weights)
    torch.testing.assert_close(plan.sum(1), weights, rtol=1e-6, atol=0)


def test_sinkhorn_survives_a_small_epsilon():
    """By logarithms: exp(−cost/ε) itself would be 0 for all but the closest."""
    x1 = torch.randn(40, 3)
    x0 = x1.flip(0) + 1e-3
    plan = sinkhorn_log_plan(torch.cdist(x0, x1).square(), 1e-4)
    assert plan.isfinite().all()
    assert sinkhorn_pairing(x0, x1, 1e-4).tolist() == list(range(39, -1, -1))


def test_sinkhorn_pairing_follows_the_plan():
    """Frequencies over a hundred copies of five points each, within four standard deviations."""
    x0, x1 = torch.randn(2, 5, 2)
    want = 5 * sinkhorn_log_plan(torch.cdist(x0.double(), x1.double()).square(), 2.0, tolerance=1e-9).exp()
    pairing = sinkhorn_pairing(x0.repeat(100, 1), x1.repeat(100, 1), 2.0) % 5
    found = nn.functional.one_hot(pairing, 5).view(100, 5, 5).double().mean(0).mT
    assert ((found - want).abs() <= 4 * (want * (1 - want) / 100).sqrt()).all()


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_sinkhorn_converges_for_a_small_sigma(sigma):
    """Of batches apart from each other: no sample of x0 is drawn much more often than once."""
    x0, x1 = torch.randn(128, 2), torch.randn(128, 2) / 2 + torch.tensor([3.0, 0.0])
    plan = sinkhorn_log_plan(torch.cdist(x0.double(), x1.double()).square(), 2 * sigma**2).exp()
    torch.testing.assert_close(plan.sum(0), torch.full((128,), 1 / 128).double())
    assert (128 * plan.sum(1) - 1).abs().mean() <= 0.01 and plan.sum(1).max() < 1.2 / 128


def test_sinkhorn_says_where_it_has_not_converged():
    x0, x1 = torch.randn(64, 2), torch.randn(64, 2) / 2 + torch.tensor([3.0, 0.0])
    cost = torch.cdist(x0.double(), x1.double()).square()
    with pytest.warns(UserWarning, match="sinkhorn: after 10 iterations the row sums are off by .* larger epsilon"):
        sinkhorn_log_plan(cost, 1e-3, tolerance=1e-9, iterations=10)


@pytest.mark.parametrize("pairing", [exact_pairing, sinkhorn_pairing])
def test_pairings_of_batches_of_other_sizes(pairing):
    """Each x1 has the x0 that it is beside; of several beside it each in turn."""
    x1 = torch.arange(4.0).unsqueeze(1) * 100
    assert pairing(x1[:2].repeat_interleave(2, 0) + torch.rand(4, 1), x1[:2]).div(2).floor().tolist() == [0, 1]
    found = torch.stack([pairing(x1.repeat(2, 1), x1) for _ in range(50)])
    assert (found % 4 == torch.arange(4)).all() and found.unique().numel() == 8


def test_sinkhorn_shortens_the_ways():
    """The bridge's own regularisation 2σ², and the default one."""
    x1 = torch.randn(200, 2)
    for path, sigma in (("conditional", 0.0), ("schroedinger_bridge", 0.2)):
        field = Recorder()
        losses = {}
        for coupling in (None, "ot", "sinkhorn"):
            torch.manual_seed(1)
            x0 = torch.randn(200, 2)
            losses[coupling] = FlowMatching(field, path, coupling, sigma).loss(x1, x0).item()
        assert losses["ot"] < losses["sinkhorn"] < 0.5 * losses[None]
