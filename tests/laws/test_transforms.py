"""Laws that every transform obeys, in float64."""

from functools import partial

import pytest
import torch
from torch import nn

from flowkern import ops
from flowkern.nn import MADE, MLP, ResidualNet
from flowkern.transforms import (
    ActNorm,
    AffineAutoregressive,
    AffineCoupling,
    Compose,
    Inverse,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    SplineAutoregressive,
    SplineCoupling,
    alternating_mask,
)

CONTEXT = 2
SMALL = {"hidden_features": (5,)}
MAKE = {
    "additive": lambda d, c: AffineCoupling(d, c, scale_map="additive", **SMALL),
    "affine": lambda d, c: AffineCoupling(d, c, **SMALL),
    "affine_exp": lambda d, c: AffineCoupling(d, c, alternating_mask(d, 0), "exp", **SMALL),
    "spline": lambda d, c: SplineCoupling(d, c, bins=3, bound=2.0, **SMALL),
    "autoregressive": lambda d, c: AffineAutoregressive(d, c, **SMALL),
    "autoregressive_additive": lambda d, c: AffineAutoregressive(d, c, torch.arange(d).flip(0), "additive", **SMALL),
    "autoregressive_residual": lambda d, c: AffineAutoregressive(
        d,
        c,
        scale_map="softplus",
        conditioner=partial(MADE, residual=True, activation="tanh"),
        **SMALL,
    ),
    "autoregressive_spline": lambda d, c: SplineAutoregressive(d, c, bins=3, bound=2.0, **SMALL),
    "permutation": lambda d, c: Permutation(torch.arange(d).roll(1)),
    "lu": lambda d, c: LULinear(d),
    "actnorm": lambda d, c: ActNorm(d),
    "inverse": lambda d, c: LULinear(d).inv,
    "compose": lambda d, c: Compose(
        ActNorm(d), AffineCoupling(d, c, **SMALL), LULinear(d), SplineCoupling(d, c, **SMALL).inv
    ),
}
COUPLINGS = {name: MAKE[name] for name in ("additive", "affine", "affine_exp", "spline")}
AUTOREGRESSIVE = [name for name in MAKE if "autoregressive" in name]


def build(name, features, context=0):
    """A transform in float64 with random parameters."""
    torch.manual_seed(0)
    transform = MAKE[name](features, context).double().eval()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return transform


def inputs(features, context=0, batch=(4,)):
    torch.manual_seed(1)
    x = torch.randn(*batch, features, dtype=torch.float64)
    return x, torch.randn(*batch, context, dtype=torch.float64) if context else None


@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize("name", MAKE)
def test_inverse_undoes_forward(name, features, context, batch):
    transform = build(name, features, context)
    x, c = inputs(features, context, batch)
    y, logabsdet = transform(x, c)
    back, inverse_logabsdet = transform.inverse(y, c)
    assert y.shape == x.shape and logabsdet.shape == inverse_logabsdet.shape == batch
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize("name", MAKE)
def test_logabsdet_is_that_of_the_jacobian(name, features, context):
    transform = build(name, features, context)
    x, c = inputs(features, context, ())
    for function in (transform, transform.inverse):
        jacobian = torch.autograd.functional.jacobian(lambda x: function(x, c)[0], x)
        torch.testing.assert_close(function(x, c)[1], torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("name", MAKE)
def test_gradients(name):
    transform = build(name, 3, CONTEXT)
    x, c = inputs(3, CONTEXT, (2,))
    names, values = zip(*transform.named_parameters()) if name != "permutation" else ((), ())

    def function(x, c, *values):
        parameters = dict(zip(names, values))
        y, logabsdet = torch.func.functional_call(transform, parameters, (x, c))
        # The context reaches no output of a linear layer; keep it in the graph.
        return y + 0 * c.sum(), logabsdet

    leaves = [t.detach().clone().requires_grad_() for t in (x, c, *values)]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("name", MAKE)
def test_context_broadcasts_with_x(name, features):
    transform = build(name, features, CONTEXT)
    x, _ = inputs(features, batch=(5, 1))
    _, c = inputs(features, CONTEXT, (3,))
    wide = x.expand(5, 3, features), c.expand(5, 3, CONTEXT)
    for function in (transform, transform.inverse):
        for got, wanted in zip(function(x, c), function(*wide)):
            torch.testing.assert_close(got.expand_as(wanted), wanted)


@pytest.mark.parametrize("net", [MLP, ResidualNet])
@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("name", COUPLINGS)
def test_coupling_starts_as_the_identity(name, features, net):
    x, c = inputs(features, CONTEXT)
    layer = COUPLINGS[name](features, CONTEXT)
    identity = len(layer.identity)
    layer.conditioner = net(identity, (features - identity) * layer.per_feature, CONTEXT)
    y, logabsdet = layer.double()(x, c)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(logabsdet, torch.zeros_like(logabsdet), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", COUPLINGS)
def test_coupling_leaves_the_identity_half(name):
    layer = build(name, 5)
    x, _ = inputs(5)
    y, _ = layer(x)
    assert torch.equal(y[:, layer.identity], x[:, layer.identity])
    assert not torch.isclose(y[:, layer.index], x[:, layer.index]).any()


@pytest.mark.parametrize("name", ["autoregressive", "autoregressive_additive", "autoregressive_spline"])
def test_autoregressive_starts_as_the_identity(name):
    x, c = inputs(3, CONTEXT)
    y, logabsdet = MAKE[name](3, CONTEXT).double()(x, c)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(logabsdet, torch.zeros_like(logabsdet), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [None, [2, 0, 1, 3], [1, 1, 0, 0]], ids=str)
def test_autoregressive_jacobian_is_triangular_in_the_order(order):
    """y_i depends on x_i and on the features of lower order, and on no other."""
    torch.manual_seed(0)
    layer = AffineAutoregressive(4, order=order, conditioner=partial(MADE, activation="tanh")).double()
    nn.init.normal_(layer.conditioner.hidden[-1].weight)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], inputs(4, batch=())[0])
    order = torch.tensor(order or range(4))
    depends = (order.unsqueeze(-1) > order) | torch.eye(4, dtype=torch.bool)
    assert torch.equal(jacobian != 0, depends)


@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("scale_map", ["softclip", "additive"])
def test_coupling_is_autoregressive_in_two_blocks(scale_map, context):
    """Weights of a coupling layer's conditioner, put into a masked one, give the same numbers."""
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True, True, False])
    coupling = AffineCoupling(5, context, mask, scale_map, hidden_features=(6, 7)).double()
    for parameter in coupling.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    layer = AffineAutoregressive(5, context, mask.long(), scale_map, hidden_features=(12, 14)).double()
    _transplant(coupling, layer.conditioner)
    x, c = inputs(5, context)
    for function, wanted in ((layer, coupling), (layer.inverse, coupling.inverse)):
        torch.testing.assert_close(function(x, c), wanted(x, c), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def _transplant(coupling, made):
    """The weights of the coupling's MLP in the last units of made, and zero everywhere else.

    With a context the first half of the units sees nothing but it.
    """
    for parameter in made.parameters():
        parameter.zero_()
    first, second, last = coupling.conditioner.input, *coupling.conditioner.layers
    made.input.weight[-6:, coupling.identity] = first.weight
    made.input.bias[-6:] = first.bias
    if coupling.context:
        made.input.context_weight[-6:] = first.context_weight
    made.hidden[0].weight[-7:, -6:], made.hidden[0].bias[-7:] = second.weight, second.bias
    rows = torch.arange(5 * coupling.per_feature).view(5, -1)[coupling.index].flatten()
    made.hidden[1].weight[rows, -7:], made.hidden[1].bias[rows] = last.weight, last.bias


def test_any_callable_is_a_conditioner(monkeypatch):
    """It sees the identity half and the context; its output reaches the op without a copy."""
    x, c = inputs(3, CONTEXT)
    seen = []
    affine_coupling = ops.affine_coupling

    def conditioner(*given):
        seen.append(given)
        seen.append(torch.ones(4, 4, dtype=torch.float64))
        return seen[-1]

    def spy(x, params, **options):
        seen.append(params)
        return affine_coupling(x, params, **options)

    monkeypatch.setattr(ops, "affine_coupling", spy)
    mask = torch.tensor([True, False, True])
    AffineCoupling(3, CONTEXT, mask, conditioner=conditioner)(x, c)
    (identity, context), raw, params = seen
    assert torch.equal(identity, x[:, 1:2]) and torch.equal(context, c)
    assert params.data_ptr() == raw.data_ptr() and params.shape == (4, 2, 2)


def test_a_conditioner_gets_one_batch_shape():
    """So that one that concatenates its inputs can be sampled from many times per context."""
    layer = AffineCoupling(3, CONTEXT, conditioner=lambda x, c: torch.cat((x, c), -1)[..., :2])
    x, c = inputs(3, batch=(5, 1))[0], inputs(3, CONTEXT, (4,))[1]
    assert layer(x, c)[0].shape == (5, 4, 3) and layer.inverse(x[0, 0], c)[0].shape == (4, 3)


def test_inverse_and_compose():
    x, _ = inputs(3)
    a, b = build("lu", 3), build("affine", 3)
    assert a.inv.inv is a
    assert torch.equal(Inverse(a)(x)[0], a.inverse(x)[0])
    y, first = a(x)
    y, second = b(y)
    both, logabsdet = Compose(a, b)(x)
    torch.testing.assert_close((both, logabsdet), (y, first + second), rtol=1e-12, atol=1e-12)  # one call
    assert torch.equal(Compose()(x)[0], x) and Compose()(x)[1].shape == (4,)


def masked(name, features):
    """A transform that holds which features go where: `features`, of four."""
    mask = torch.zeros(4, dtype=torch.bool).index_fill(0, torch.tensor(features[:2]), True)
    make = {
        "permutation": lambda: Permutation(torch.tensor(features)),
        "affine": lambda: AffineCoupling(4, mask=mask, **SMALL),
        "spline": lambda: SplineCoupling(4, mask=mask, **SMALL),
    }[name]
    transform = make()
    for parameter in transform.parameters():
        nn.init.normal_(parameter)
    return transform


@pytest.mark.parametrize("name", ["permutation", "affine", "spline"])
def test_a_changed_mask_or_permutation_is_used(name):
    transform, other, x = masked(name, [0, 1, 2, 3]), masked(name, [3, 1, 0, 2]), torch.randn(5, 4)
    transform(x)
    wanted = other(x)[0]
    replaced = torch.func.functional_call(transform, other.state_dict(), x)
    assert torch.equal(replaced[0], wanted)
    with torch.no_grad():
        for key, tensor in transform.state_dict().items():
            tensor.copy_(other.state_dict()[key])
    assert torch.equal(transform(x)[0], wanted) and torch.equal(transform.inverse(x)[0], other.inverse(x)[0])


@pytest.mark.parametrize("name", ["permutation", "affine", "spline"])
def test_vmap_over_masks_is_refused_and_over_permutations_is_not(name):
    transforms, x = [masked(name, [0, 1, 2, 3]), masked(name, [3, 1, 0, 2])], torch.randn(5, 4)
    state = torch.func.stack_module_state(transforms)

    def call(*state):
        return torch.func.functional_call(transforms[0], state, x)[0]

    if name == "permutation":
        got = torch.func.vmap(call)(*state)
        assert torch.equal(got, torch.stack([transform(x)[0] for transform in transforms]))
    else:
        with pytest.raises(ValueError, match="index: expected the same in all modules that vmap maps over"):
            torch.func.vmap(call)(*state)


@pytest.mark.parametrize("net", [MLP, ResidualNet])
def test_conditioners_without_inputs_are_learned_vectors(net):
    assert net(0, 6)(torch.empty(4, 0)).shape == (6,)
    assert net(0, 6, 3)(torch.empty(4, 0), torch.ones(4, 3)).shape == (4, 6)
    assert net(2, 6, 0, (7,))(torch.ones(0, 2)).shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["affine", "spline", "permutation", "lu", "actnorm"])
def test_half_precision_returns_float32_logabsdet(name, dtype):
    transform = build(name, 3).to(dtype)
    x = inputs(3)[0].to(dtype)
    for function in (transform, transform.inverse):
        y, logabsdet = function(x)
        assert y.dtype == dtype and logabsdet.dtype == torch.float32


X = torch.zeros(4, 3)
WRONG = [
    (lambda: AffineCoupling(0), ValueError, "features: expected an integer >= 1"),
    (lambda: AffineCoupling(2.0), TypeError, "features: expected an integer"),
    (lambda: AffineCoupling(2, -1), ValueError, "context: expected an integer >= 0"),
    (lambda: AffineCoupling(2, mask=[True]), ValueError, r"mask: expected bool of shape \(2,\)"),
    (lambda: AffineCoupling(2, mask=[False] * 2), ValueError, "mask: expected True"),
    (lambda: AffineCoupling(2, scale_map="square"), ValueError, "scale_map: expected one of"),
    (lambda: AffineCoupling(2, conditioner=3), TypeError, "conditioner: expected a callable"),
    (lambda: AffineCoupling(2, hidden_features=8), TypeError, "hidden_features: expected a seq"),
    (lambda: SplineCoupling(2, bins=0), ValueError, "bins: expected an integer >= 1"),
    (lambda: SplineCoupling(2, bound=0.0), ValueError, "bound: expected a finite number > 0"),
    (lambda: SplineCoupling(2, knot_map=ops.SoftplusKnots(min_width=0.5)), ValueError, "min_width"),
    (lambda: ResidualNet(2, 2, 0, (4, 5)), ValueError, "hidden_features: expected one width"),
    (lambda: MaskedAutoregressive(nn.ReLU(), 0), TypeError, "conditioner: expected a module with l"),
    (lambda: AffineAutoregressive(3, order=[0, 1]), ValueError, r"order: expected integers of sh"),
    (lambda: AffineAutoregressive(3, scale_map="square"), ValueError, "scale_map: expected one of"),
    (lambda: AffineAutoregressive(3)(X.double()), TypeError, "x: expected dtype torch.float32"),
    (lambda: AffineAutoregressive(2).inverse(X), ValueError, r"y: expected shape \(…, 2\), got"),
    (lambda: AffineAutoregressive(3, 1)(X), ValueError, r"context: expected a tensor \(…, 1\), got"),
    (lambda: SplineAutoregressive(2, bins=0), ValueError, "bins: expected an integer >= 1"),
    (lambda: SplineAutoregressive(2, bound=0.0), ValueError, "bound: expected a finite number > 0"),
    (lambda: Permutation([0, 2]), ValueError, "permutation: expected each of 0"),
    (lambda: Permutation([0.0, 1.0]), ValueError, "permutation: expected int64"),
    (lambda: Compose(nn.ReLU()), TypeError, "transforms: expected modules with forward and inv"),
    (lambda: Inverse(nn.ReLU()), TypeError, "transform: expected modules with forward and inv"),
    (lambda: AffineCoupling(2)(X), ValueError, r"x: expected shape \(…, 2\), got \(4, 3\)"),
    (lambda: LULinear(2).inverse(X), ValueError, r"y: expected shape \(…, 2\), got \(4, 3\)"),
    (lambda: ActNorm(3)(X.long()), TypeError, "x: expected a floating-point dtype"),
    (lambda: AffineCoupling(3)(X.double()), TypeError, "x: expected dtype torch.float32"),
    (lambda: LULinear(3)(X.double()), TypeError, "x: expected dtype torch.float32"),
    (lambda: AffineCoupling(3)(X, X), ValueError, "context: expected None"),
    (lambda: AffineCoupling(3, 1)(X), ValueError, r"context: expected a tensor \(…, 1\), got None"),
    (lambda: AffineCoupling(3, 1)(X, X), ValueError, r"context: expected shape \(…, 1\)"),
    (lambda: AffineCoupling(3, 3)(X, X[:3]), ValueError, r"context: batch shape \(3,\) does not"),
    (
        lambda: AffineCoupling(3, conditioner=nn.Linear(2, 3))(X),
        ValueError,
        r"conditioner: expected output shape \(…, 1·2\)",
    ),
]


@pytest.mark.parametrize("call, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
