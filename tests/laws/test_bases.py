"""Base distributions: densities that integrate to 1, samples that follow them, and flows on top of each."""

import pytest
import torch

from flowkern import bases, flows

D, C = 2, 3
LEARNED = {
    "diagonal": bases.DiagonalNormal,
    "full": bases.FullNormal,
    "mixture": lambda *sizes: bases.NormalMixture(*sizes, components=4),
}
EVERY = LEARNED | {"box": lambda *sizes: bases.BoxUniform(torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 1.5]))}
FLOWS = [flows.MAF, flows.IAF, flows.AutoregressiveNSF, flows.NSF, flows.RealNVP, flows.NICE, flows.CNF]


def made(name, context=0):
    """A base in float64 whose parameters are not those it starts with."""
    torch.manual_seed(0)
    base = EVERY[name](D, context)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return base.double()


@pytest.mark.parametrize("name", EVERY)
def test_density_integrates_to_one(name):
    side = torch.linspace(-8, 8, 801, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    total = made(name)().log_prob(points).exp().sum() * (side[1] - side[0]) ** 2
    torch.testing.assert_close(total.item(), 1.0, rtol=0, atol=0.03 if name == "box" else 1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_samples_have_the_moments_of_the_density(name):
    base = made(name)()
    samples = base.sample((200_000,))
    side = torch.linspace(-8, 8, 401, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    weights = base.log_prob(points).softmax(0).unsqueeze(-1)
    mean = (weights * points).sum(0)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(samples.T.cov(), (weights * (points - mean)).T @ (points - mean), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", LEARNED)
def test_a_new_base_has_unit_scale_and_a_context_changes_it(name):
    torch.manual_seed(0)
    new, contexts = LEARNED[name](D, C), torch.randn(5, C)
    if name != "mixture":
        wanted = torch.distributions.Normal(0.0, 1.0).log_prob(torch.ones(D)).sum()
        torch.testing.assert_close(new(contexts).log_prob(torch.ones(D)), wanted.expand(5))
    density = made(name, C)(contexts.double()).log_prob(torch.ones(D, dtype=torch.float64))
    assert density.shape == (5,) and density.unique().numel() == 5


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", EVERY)
def test_flow_adds_the_bases_density(name, flow):
    base, contexts = made(name, C), torch.randn(5, C, dtype=torch.float64)
    torch.manual_seed(1)
    model = flow(D, C, base=base).double()
    distribution = model(contexts)
    x = distribution.sample((3,))
    assert x.shape == (3, 5, D) and distribution.has_rsample == (name != "mixture")
    noise, logabsdet = model.transform(x, contexts)
    torch.testing.assert_close(distribution.log_prob(x), base(contexts).log_prob(noise) + logabsdet)
    if name != "box":
        gradients = torch.autograd.grad(distribution.log_prob(x).sum(), list(base.parameters()), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients) and any(map(_moves, gradients))
    assert distribution.expand((4, 5)).sample().shape == (4, 5, D)


def _moves(gradient):
    return gradient is not None and bool(gradient.any())


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_samples_and_their_density_in_one_pass(name):
    base = made(name)
    distribution = flows.MAF(D, transforms=1, base=base).double()()
    x, density = distribution.rsample_and_log_prob((7,))
    torch.testing.assert_close(density, distribution.log_prob(x))
    assert any(map(_moves, torch.autograd.grad(x.sum(), list(base.parameters()), allow_unused=True)))


def test_samples_of_a_mixture_have_no_derivative():
    distribution = flows.MAF(D, transforms=1, base=bases.NormalMixture(D))()
    with pytest.raises(NotImplementedError, match="rsample: the base distribution"):
        distribution.rsample()


def test_a_base_is_part_of_the_state():
    torch.manual_seed(0)
    one, other = (flows.NSF(D, transforms=1, base=bases.NormalMixture(D)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = torch.randn(5, D)
    torch.testing.assert_close(one().log_prob(x), other().log_prob(x), rtol=0, atol=0)


def test_a_base_of_another_library_is_taken():
    zuko = pytest.importorskip("zuko", reason="zuko is not installed")
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.ones(D), 2 * torch.ones(D))
    wanted = torch.distributions.Normal(1.0, 2.0).log_prob(torch.zeros(D)).sum()
    torch.testing.assert_close(flows.MAF(D, base=base)().log_prob(torch.zeros(D)), wanted)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: bases.DiagonalNormal(0), ValueError, "features: expected an integer >= 1"),
        (lambda: bases.NormalMixture(D, components=0), ValueError, "components: expected an integer >= 1"),
        (lambda: bases.BoxUniform(torch.zeros(2), torch.zeros(2)), ValueError, "low: expected entries below"),
        (lambda: bases.BoxUniform(torch.zeros(2), torch.ones(3)), ValueError, "low, high: expected shape"),
        (lambda: flows.MAF(3, base="normal"), TypeError, "base: expected a torch.nn.Module"),
        (lambda: flows.MAF(3, base=bases.DiagonalNormal(2))(), ValueError, r"base: expected event_shape \(3,\)"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
