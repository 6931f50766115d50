"""normflows' NormalizingFlow in one call: the library's numbers from all its methods."""

import copy

import pytest
import torch
from normflows import NormalizingFlow, distributions, flows
from torch import nn

import flowkern
from tests.adapters.normflows_models import MODELS, D, affine, block, build, coupled, maf
from tests.adapters.program_models import data, derivatives, pair

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def in_float64():
    """The library sums log-dets in the default dtype, and makes noise and zeros in it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model(name):
    layers, context, count = MODELS[name]
    return build(layers, context), context, count


def given(context, rows=6):
    x, c = data(context, rows)
    return (x,) if c is None else (x, c)


@pytest.mark.parametrize("name", MODELS)
def test_all_layers_run_in_one_call(name):
    plain, _, count = model(name)
    note = flowkern.explain(flowkern.accelerate(plain)).replaced[0].note
    methods = "forward, inverse, forward_and_log_det, inverse_and_log_det, log_prob, sample, forward_kld, reverse_kld"
    assert note.startswith(f"{methods}; {count} transforms in one call")
    assert " apart" not in note and not flowkern.explain(plain).left


@pytest.mark.parametrize("method", ["log_prob", "inverse_and_log_det", "forward_kld"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(name, method, program_backend, programs):
    some, context, _ = model(name)
    plain, fast = pair(some)
    leaves = [t.requires_grad_() for t in given(context)]
    programs.clear()
    wanted, got = getattr(plain, method)(*leaves), getattr(fast, method)(*leaves)
    assert len(programs) == 1 and (programs[0].base == "normal") == (method != "inverse_and_log_det")
    wanted, got = ([r] if isinstance(r, torch.Tensor) else r for r in (wanted, got))
    torch.testing.assert_close(tuple(got), tuple(wanted), **EXACT)
    torch.testing.assert_close(derivatives(fast, got, *leaves), derivatives(plain, wanted, *leaves), **EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_the_way_back(name, program_backend, programs):
    some, context, _ = model(name)
    plain, fast = pair(some)
    x, *c = given(context)
    y, logabsdet = plain.inverse_and_log_det(x, *c)
    programs.clear()
    torch.testing.assert_close(fast.forward_and_log_det(y, *c), (x, -logabsdet), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fast.forward(y, *c), x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fast.inverse(x, *c), y, **EXACT)
    assert len(programs) == 3


@pytest.mark.parametrize("name", MODELS)
def test_samples_and_divergences_under_a_seed(name, programs):
    some, context, _ = model(name)
    plain, fast = pair(some)
    c = given(context, 5)[1:]
    results = []
    for flow in (plain, fast):
        torch.manual_seed(3)
        samples = flow.sample(5, *c)
        results.append((*samples, flow.reverse_kld(5, *c), flow.reverse_kld(5, *c, beta=0.5, score_fn=False)))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
    assert len(programs) == 2


@torch.no_grad()
def test_float32_is_no_further_from_float64():
    torch.set_default_dtype(torch.float32)
    for name, (layers, context, _) in MODELS.items():
        x, *c = given(context, 1024)
        plain = build(layers, context)
        exact = plain.log_prob(x, *c)
        plain, fast = pair(plain.float())
        found = [m.log_prob(x.float(), *[t.float() for t in c]).double() for m in (plain, fast)]
        errors = [(one - exact).abs().median() for one in found]
        assert errors[1] <= 1.5 * errors[0] + 1e-6, (name, errors)


def test_copies_states_and_restored_flows(programs):
    plain, fast = pair(build(affine))
    x = given(0)[0]
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    plain.load_state_dict(twin.state_dict())
    programs.clear()
    torch.testing.assert_close(twin.log_prob(x), plain.log_prob(x), **EXACT)
    assert len(programs) == 1
    flowkern.restore(twin).log_prob(x)
    assert len(programs) == 1 and not flowkern.explain(twin).replaced


def test_edits_are_seen():
    plain, fast = pair(build(affine))
    x = given(0)[0]
    fast.log_prob(x)

    def swapped(flow):
        flow.flows[1].mode = "nonsense"
        flow.flows[1] = flows.Permute(D, mode="swap")

    def scaled(flow):
        flow.flows[0].flows[1].scale_map = "sigmoid"

    def longer(flow):
        torch.manual_seed(4)
        flow.flows.append(block().double())

    def shifted(flow):
        flow.q0.loc.data.add_(0.5)

    def tempered(flow):
        flow.q0.temperature = 0.5

    def permuted(flow):
        flow.flows[3].perm.copy_(flow.flows[3].perm.flip(0))
        flow.flows[3].inv_perm.copy_(flow.flows[3].perm.argsort())

    def uninitialised(flow):
        flow.flows[5].data_dep_init_done = torch.tensor(0.0)

    for edit in (swapped, scaled, longer, shifted, tempered, permuted, uninitialised):
        before = fast.log_prob(x)
        edit(plain), edit(fast)
        wanted, got = plain.log_prob(x), fast.log_prob(x)
        torch.testing.assert_close(got, wanted, **EXACT)
        assert edit is swapped or not torch.allclose(got, before), edit


class Shifted(flows.AffineCouplingBlock):
    def inverse(self, z):
        z, log_det = super().inverse(z)
        return z + 1, log_det


class Wide(flows.AffineConstFlow):
    """A layer that keeps the formulas."""

    def __init__(self):
        super().__init__((D,))


LEFT = {
    "its mask is no row of zeros and ones": lambda: flows.MaskedAffineFlow(torch.ones(D), nn.Linear(D, D)),
    "Shifted overrides inverse": lambda: Shifted(block().flows[1].param_map),
    "its first batch sets its parameters": lambda: flows.ActNorm(D),
    "its tails are a list": lambda: flows.CircularCoupledRationalQuadraticSpline(D, 1, 8, [0, 1]),
    "its dropout is active": lambda: coupled(dropout_probability=0.5).train(),
    "it has hooks": lambda: _hooked(block()),
}


def _hooked(layer):
    layer.flows[1].param_map.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize("reason", LEFT)
def test_a_layer_without_a_step_splits_the_flow(reason, programs):
    def layers():
        return [maf(), flows.LULinearPermute(D), nn.Identity(), Wide(), maf(), flows.LULinearPermute(D)]

    torch.manual_seed(0)
    plain = build(layers, base=distributions.GaussianMixture(2, D))
    plain.flows[2] = LEFT[reason]()
    plain = plain.double()
    plain, fast = pair(plain)
    assert reason in str(flowkern.explain(fast).replaced)
    x = given(0)[0]
    programs.clear()
    torch.manual_seed(1)
    wanted = plain.log_prob(x)
    torch.manual_seed(1)
    torch.testing.assert_close(fast.log_prob(x), wanted, rtol=1e-9, atol=1e-9)
    assert sorted(len(p.steps) for p in programs) == [3, 4]


def test_what_is_called_with_lists_or_images_is_the_librarys():
    plain, fast = pair(build(affine))
    for flow in (plain, fast):
        with pytest.raises(RuntimeError, match="The size of tensor a"):
            flow.inverse(torch.randn(2, D, 3))


def test_a_subclass_with_methods_of_its_own_keeps_them():
    class Tempered(NormalizingFlow):
        def log_prob(self, x):
            return 2 * super().log_prob(x)

    torch.manual_seed(0)
    plain = Tempered(distributions.DiagGaussian(D), [maf(), flows.LULinearPermute(D)]).double()
    plain, fast = pair(plain)
    assert "log_prob" not in fast.__dict__ and "inverse" in fast.__dict__
    x = given(0)[0]
    for method in ("log_prob", "forward_kld", "inverse"):
        torch.testing.assert_close(getattr(fast, method)(x), getattr(plain, method)(x), **EXACT)
