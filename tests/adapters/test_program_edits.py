"""Whatever changes in a model after its first call is seen by its program."""

import copy

import pytest
import torch
from nflows.distributions import DiagonalNormal
from nflows.transforms import LULinear, Tanh
from torch import nn
from torch.nn.utils import parametrizations, prune

import flowkern
from tests.adapters.program_models import (
    D,
    affine,
    data,
    derivatives,
    nflows_flow,
    pair,
    randomised,
    zuko_flow,
)

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def layers(flow):
    return flow._transform._transforms


def made(flow):
    return layers(flow)[1].autoregressive_net


def resnet(flow):
    return layers(flow)[1].transform_net


def conditioner(flow):
    return made(flow) if hasattr(layers(flow)[1], "autoregressive_net") else resnet(flow)


def first_linear(flow):
    return conditioner(flow).initial_layer


def optimise(flow):
    optimiser = torch.optim.SGD(flow.parameters(), 0.05)
    flow.log_prob(*data(3)).sum().backward()
    optimiser.step()


def write_data(flow):
    for parameter in flow.parameters():
        parameter.data = parameter.data * 1.1


def load(flow):
    flow.load_state_dict(
        {k: v if k.endswith("mask") else v * 0.9 for k, v in flow.state_dict().items() if v.is_floating_point()},
        strict=False,
    )


def load_other_orders(flow):
    torch.manual_seed(9)
    other = randomised(copy.deepcopy(flow))
    for module in other.modules():
        if hasattr(module, "_permutation"):
            module._permutation.copy_(torch.tensor([1, 3, 0, 2]))
    flow.load_state_dict(other.state_dict())


def replace_parameter(flow):
    first_linear(flow).weight = nn.Parameter(first_linear(flow).weight.detach() + 0.1)


def replace_bias_by_none(flow):
    conditioner(flow).final_layer.bias = None


def replace_linear(flow):
    torch.manual_seed(4)
    old = conditioner(flow).context_layer if hasattr(conditioner(flow), "context_layer") else first_linear(flow)
    new = nn.Linear(old.in_features, old.out_features).double()
    conditioner(flow)._modules["context_layer" if old is not first_linear(flow) else "initial_layer"] = new


def replace_transform(flow):
    torch.manual_seed(4)
    layers(flow)[2] = LULinear(D, identity_init=False).double()


def append_transform(flow):
    torch.manual_seed(4)
    layers(flow).append(randomised(affine()))


def remove_transform(flow):
    del layers(flow)[-1]


def insert_unknown(flow):
    layers(flow).insert(2, Tanh())


def share_transform(flow):
    layers(flow).append(layers(flow)[1])


def reverse(flow):
    flow._transform._transforms = nn.ModuleList(reversed(list(layers(flow))))


def other_class(flow):
    class Shifted(type(layers(flow)[2])):
        def forward(self, inputs, context=None):
            y, l = super().forward(inputs, context)
            return y + 1, l

    layers(flow)[2].__class__ = Shifted


def own_forward(flow):
    linear = first_linear(flow)
    linear.forward = lambda x: type(linear).forward(linear, x) + 1


def own_forward_of_a_transform(flow):
    layer = layers(flow)[1]
    layer.forward = lambda x, c=None: tuple(2 * part for part in type(layer).forward(layer, x, c))


def activation(flow):
    for block in conditioner(flow).blocks:
        block.activation = torch.sigmoid


def unknown_activation(flow):
    conditioner(flow).blocks[0].activation = torch.sin


def epsilon(flow):
    layer = layers(flow)[1]
    name = "_epsilon" if hasattr(layer, "_epsilon") else "min_bin_width"
    setattr(layer, name, 0.1)


def tail_bound(flow):
    layers(flow)[1].tail_bound = 1.5


def lu_epsilon(flow):
    layers(flow)[2].eps = 0.5


def mask_written(flow):
    made(flow).initial_layer.mask[1:].zero_()


def mask_replaced(flow):
    made(flow).final_layer.mask = made(flow).final_layer.mask * (torch.arange(D) != 2).repeat_interleave(2)[:, None]


def permutation_written(flow):
    layers(flow)[2]._permutation.copy_(torch.tensor([3, 0, 1, 2]))


def permutation_replaced(flow):
    layers(flow)[2]._permutation = torch.tensor([3, 0, 1, 2])


def scale_written(flow):
    layers(flow)[0]._scale.mul_(3)


def features_exchanged(flow):
    layer = layers(flow)[1]
    layer.identity_features, layer.transform_features = layer.transform_features, layer.identity_features


def frozen(flow):
    for parameter in first_linear(flow).parameters():
        parameter.requires_grad_(False)


def spectral(flow):
    torch.manual_seed(5)
    parametrizations.weight_norm(
        conditioner(flow).blocks[0].linear_layers[0] if resnet_of(flow) else first_linear(flow)
    )


def resnet_of(flow):
    return hasattr(layers(flow)[1], "transform_net")


def pruned(flow):
    prune.l1_unstructured(first_linear(flow), "weight", 0.5)


def replace_transform_of_flow(flow):
    flow._transform = copy.deepcopy(flow._transform)
    write_data(flow)


def another_base(flow):
    flow._distribution._log_z = flow._distribution._log_z + 1


def scaled_base(flow):
    flow._distribution = DiagonalNormal([D]).double()
    flow._distribution.log_std_.data.fill_(0.3)


def embedding(flow):
    torch.manual_seed(6)
    flow._embedding_net = nn.Linear(3, 3).double()


BOTH = [
    optimise, write_data, load, replace_parameter, replace_bias_by_none, append_transform, remove_transform,
    insert_unknown, share_transform, reverse, other_class, own_forward, own_forward_of_a_transform, activation,
    unknown_activation, epsilon, scale_written, frozen, spectral, pruned, replace_transform_of_flow, another_base,
    scaled_base, embedding, replace_transform,
]  # fmt: skip
MAF = [mask_written, mask_replaced, permutation_written, permutation_replaced, load_other_orders, replace_linear]
NSF = [tail_bound, lu_epsilon, features_exchanged]
CHANGES = [*(("maf", f) for f in (*BOTH, *MAF)), *(("nsf", f) for f in (*BOTH, *NSF))]


def check(plain, fast, c):
    x = data(3)[0]
    results = []
    for model in (plain, fast):
        inputs = [x.clone().requires_grad_(), c.clone().requires_grad_()]
        value = model.log_prob(*inputs)
        parameters = [p for p in model.parameters() if p.requires_grad]
        results.append(
            (
                value,
                model._transform(*inputs),
                torch.autograd.grad(value.sum(), [*inputs, *parameters], allow_unused=True),
            )
        )
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize("name, change", CHANGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_change_is_seen(name, change, programs):
    plain, fast = pair(nflows_flow(name))
    c = data(3)[1]
    check(plain, fast, c)
    assert programs
    for model in (plain, fast):
        change(model)
    check(plain, fast, c)
    check(plain, fast, c)


@pytest.mark.parametrize("name, change", [("maf", own_forward), ("nsf", unknown_activation), ("maf", mask_written)])
def test_undone_it_is_fused_again(name, change, programs):
    fast = flowkern.accelerate(nflows_flow(name))
    x, c = data(3)
    before, kept = fast.log_prob(x, c), copy.deepcopy(fast.state_dict())
    linear, block = first_linear(fast), conditioner(fast).blocks[0]
    was = block.activation
    change(fast)
    assert not torch.allclose(fast.log_prob(x, c), before)
    linear.__dict__.pop("forward", None)
    block.activation = was
    fast.load_state_dict(kept)
    programs.clear()
    torch.testing.assert_close(fast.log_prob(x, c), before, **EXACT)
    assert len(programs) == 1


@torch.no_grad()
def test_a_matrix_that_nflows_caches_is_left_to_it(programs):
    plain, fast = pair(nflows_flow("nsf"))
    x, c = data(3)
    for model in (plain, fast):
        model.log_prob(x, c)
        layers(model)[2].use_cache()
    programs.clear()
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert len(programs) == 2
    for model in (plain, fast):
        layers(model)[2].bias.add_(1)
        layers(model)[2].lower_entries.add_(1)  # the cached matrix stays
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    torch.testing.assert_close(fast.train().log_prob(x, c), plain.train().log_prob(x, c), **EXACT)


@pytest.mark.parametrize("name", ["maf", "nsf"])
def test_training_and_evaluation_are_both_known(name, programs):
    """No inspection again at each change between them."""
    fast = flowkern.accelerate(nflows_flow(name))
    x, c = data(3)
    for mode in (True, False):
        fast.train(mode).log_prob(x, c)
    fusion = fast.__dict__["_log_prob"].args[0]
    states = set(map(id, fusion.states))
    for mode in (True, False, True):
        fast.train(mode).log_prob(x, c)
    assert set(map(id, fusion.states)) == states and len(programs) == 5


def test_writing_the_same_values_is_no_change(programs):
    fast = flowkern.accelerate(nflows_flow("maf"))
    x, c = data(3)
    fast.log_prob(x, c)
    fusion = fast.__dict__["_log_prob"].args[0]
    states = fusion.states
    fast.load_state_dict(copy.deepcopy(fast.state_dict()))
    fast.log_prob(x, c)
    assert fusion.states is states


def swap_univariate(flow):
    flow.transform.transforms[0].univariate = flow.transform.transforms[1].univariate


def zuko_mask(flow):
    flow.transform.transforms[0].hyper[2].mask[:, :3] = False


def zuko_activation(flow):
    flow.transform.transforms[1].hyper[1] = nn.Tanh()


def zuko_base(flow):
    flow.base.loc.fill_(0.5)


def zuko_scale(flow):
    flow.base.scale.mul_(2)


def zuko_append(flow):
    flow.transform.transforms.append(copy.deepcopy(flow.transform.transforms[0]))


def zuko_slope(flow):
    from functools import partial

    import zuko

    flow.transform.transforms[0].univariate = partial(zuko.transforms.MonotonicRQSTransform, slope=0.1)


ZUKO_CHANGES = [write_data, load, zuko_mask, zuko_activation, zuko_base, zuko_scale, zuko_append, zuko_slope]


@pytest.mark.parametrize("change", ZUKO_CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_zukos_flow_is_seen(change, programs):
    plain, fast = pair(zuko_flow("nsf"))
    x, c = data(3)
    c.requires_grad_()
    early = fast(c)
    early.log_prob(x)
    for model in (plain, fast):
        change(model)
    wanted = plain(c).log_prob(x)
    torch.testing.assert_close(fast(c).log_prob(x), wanted, **EXACT)
    torch.testing.assert_close(early.transform(x), plain(c).transform(x), **EXACT)
    torch.testing.assert_close(
        derivatives(fast, [fast(c).log_prob(x)], c), derivatives(plain, [plain(c).log_prob(x)], c), **EXACT
    )
    assert programs
