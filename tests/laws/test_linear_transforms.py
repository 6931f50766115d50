"""Permutations, LU factors and activation normalisation."""

import torch

from flowkern.transforms import ActNorm, Permutation
from tests.laws.test_transforms import build, inputs


def test_permutation_takes_features_in_order():
    x, _ = inputs(3)
    assert torch.equal(Permutation([2, 0, 1])(x)[0], x[:, [2, 0, 1]])
    other = Permutation([0, 1, 2])
    other.load_state_dict(Permutation([2, 0, 1]).state_dict())
    assert torch.equal(other.inverse(other(x.clone())[0])[0], x)


def test_lu_is_its_factors():
    layer = build("lu", 4)
    lower = layer.weight.tril(-1) + torch.eye(4)
    upper = layer.weight.triu(1) + layer.log_diagonal.exp().diag()
    x, _ = inputs(4)
    torch.testing.assert_close(layer(x)[0], x @ (lower @ upper).T + layer.bias)


def test_lu_keeps_its_precision_under_autocast():
    layer = build("lu", 4).float()
    x = inputs(4)[0].float()
    for function in (layer, layer.inverse):
        wanted = function(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = function(x)
        assert all(torch.equal(g, w) for g, w in zip(got, wanted))


def test_actnorm_initialises_on_its_first_training_batch():
    layer = ActNorm(3).double()
    x = inputs(3, batch=(100, 2))[0] * torch.tensor([1.0, 5.0, 0.0]) + 3
    assert torch.equal(layer.eval()(x)[0], x) and not layer.initialized
    layer.train()
    assert torch.equal(layer(x[:0])[0], x[:0]) and torch.equal(layer(x[0, :1])[0], x[0, :1])
    assert torch.equal(layer.inverse(x)[0], x) and not layer.initialized
    variance, mean = torch.var_mean(layer(x)[0].flatten(0, 1), dim=0, correction=0)
    torch.testing.assert_close(mean, torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(variance, torch.tensor([1.0, 1.0, 0.0]).double())
    assert layer.initialized
    before = layer.shift.clone()
    layer(x + 1)
    assert torch.equal(layer.shift, before)


def test_loaded_actnorm_keeps_its_parameters():
    trained, loaded = ActNorm(2), ActNorm(2)
    trained(torch.randn(10, 2) + 4)
    loaded.load_state_dict(trained.state_dict())
    x = torch.randn(10, 2)
    assert torch.equal(loaded.train()(x)[0], trained.eval()(x)[0])
    loaded.load_state_dict(ActNorm(2).state_dict())
    assert loaded(x)[0].mean(0).abs().max() < 1e-6


def test_statistics_copied_into_an_actnorm_are_kept():
    trained, average = ActNorm(2), ActNorm(2)
    x = torch.randn(10, 2)
    trained(x + 4)
    with torch.no_grad():
        for name, tensor in average.state_dict().items():  # as averaged models do
            tensor.copy_(trained.state_dict()[name])
    assert torch.equal(average.train()(x)[0], trained(x)[0])
    assert torch.equal(average.shift, trained.shift) and torch.equal(average.log_scale, trained.log_scale)
