"""What `explain` and errors say: the reason that is true, once, and what to pass instead."""

import pytest
import torch
from normflows import flows as normflows
from torch import nn
from torch.nn.utils import weight_norm

import flowkern
from tests.adapters.autoregressive_models import GIVEN, call, nflows_affine, normflows_affine, randomised, zuko_maf
from tests.adapters.nflows_models import AffineCouplingTransform, vector_net


def test_many_layers_of_one_note_are_one_line():
    model = nn.ModuleList([AffineCouplingTransform([1, 0, 1], vector_net) for _ in range(12)])
    lines = str(flowkern.explain(flowkern.accelerate(model))).splitlines()
    assert lines == [
        "Accelerated (12):",
        "  0 … 11 (12)  AffineCouplingTransform  forward, inverse",
    ]
    assert len(flowkern.explain(model).replaced) == 12


def test_a_list_of_tails_is_said_to_be_one():
    flow = normflows.CircularAutoregressiveRationalQuadraticSpline(3, 1, 8, ind_circ=[0, 1, 2])
    assert "its tails are a list" in flowkern.explain(flow).left[0].note


def test_old_style_weight_norm_is_a_hook():
    layer = nflows_affine()
    weight_norm(layer.autoregressive_net.final_layer)
    assert flowkern.explain(layer).left[0].note == "its network has hooks"


@pytest.mark.parametrize("build", [nflows_affine, normflows_affine])
def test_a_feature_that_is_blind_to_the_context_is_named(build):
    layer = randomised(build(**GIVEN).double()).eval()
    remark = "in the library's own code, too, the context does not reach feature 0"
    assert flowkern.explain(layer).replaceable[0].note == f"forward, inverse; {remark}"
    assert flowkern.explain(flowkern.accelerate(layer)).replaced[0].note == f"forward, inverse; {remark}"
    x, context = torch.randn(1, 5).double().expand(6, 5), torch.randn(6, 3).double()
    y = layer(x, context)[0]
    assert torch.equal(y[:, 0], y[:1, 0].expand(6)) and not torch.isclose(y[1:, 1:], y[:1, 1:]).any()


def test_no_feature_is_called_blind_where_none_is():
    for layer in (nflows_affine(), zuko_maf(context=3)):
        assert "context" not in flowkern.explain(layer).replaceable[0].note


# Parametrizations put on before `accelerate`


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def masked_layers(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear) and "mask" in m._buffers]


def values_and_gradients(layer, x, context):
    y, logabsdet = call(layer, x, context)
    return y, logabsdet, *torch.autograd.grad(logabsdet.sum(), layer.parameters(), allow_unused=True)


@pytest.mark.parametrize("put", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, None])
@pytest.mark.parametrize("build", [lambda: nflows_affine(**GIVEN), lambda: normflows_affine(**GIVEN), zuko_maf])
@pytest.mark.parametrize("before", [True, False])
def test_a_parametrized_masked_layer_is_accelerated(build, put, before):
    """`accelerate` before or after, and a state loaded since, after which the layers are looked at again."""
    layer = randomised(build().double()).eval()
    put = put or (lambda linear: nn.utils.parametrize.register_parametrization(linear, "weight", Doubled()))
    if not before:
        flowkern.accelerate(layer)
    for linear in masked_layers(layer):
        put(linear)
    flowkern.accelerate(layer)
    layer.load_state_dict(layer.state_dict())
    assert flowkern.explain(layer).replaced and not flowkern.explain(layer).left
    assert "at present" not in flowkern.explain(layer).replaced[-1].note  # that of a layer, not of a whole flow
    x = torch.randn(6, 5).double()
    context = torch.randn(6, 3).double() if build is not zuko_maf else None
    got = values_and_gradients(layer, x, context)
    wanted = values_and_gradients(flowkern.restore(layer), x, context)
    for g, w in zip(got, wanted):
        torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w)
