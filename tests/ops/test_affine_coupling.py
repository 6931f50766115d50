"""The affine coupling: equal to its float64 reference and to its peers; clear errors."""

import nflows.transforms
import normflows
import pytest
import torch
import zuko
from torch import nn

import flowkern
from flowkern.ops import ScaleMap, affine_coupling
from tests.cases.coupling import AFFINES, check, evaluate
from tests.tolerances import assert_same

HALVES = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float64),
]


@pytest.mark.parametrize("name", AFFINES)
def test_agrees_with_the_reference(backend, name):
    for dtype in (torch.float64, torch.float32):
        for inverse in (False, True):
            check(AFFINES[name], backend, dtype, inverse=inverse)


@pytest.mark.parametrize("dtype, params_dtype", HALVES)
def test_mixed_dtypes(backend, dtype, params_dtype):
    """y has x's dtype, the log-det the one computed in, and gradients that of their input."""
    for name in ("sigmoid", "mask"):
        for inverse in (False, True):
            check(AFFINES[name], backend, dtype, params_dtype=params_dtype, inverse=inverse)
    x, params = AFFINES["mask"].tensors(dtype, params_dtype=params_dtype)
    result = evaluate(AFFINES["mask"], x, params, backend=backend)
    wide = torch.float64 if params_dtype == torch.float64 else torch.float32
    assert [t.dtype for t in result] == [dtype, wide, dtype, params_dtype]


def _zuko(x, params, inverse):
    transform = zuko.transforms.MonotonicAffineTransform(params[..., 0], params[..., 1])
    y, log_slope = (transform.inv if inverse else transform).call_and_ladj(x)
    return y, log_slope.sum(-1)


class _Fixed(nn.Module):
    """A conditioner whose output is given."""

    def __init__(self, params):
        super().__init__()
        self.params = params

    def forward(self, *_):
        return self.params


def _nflows_coupling(cls, chunks):
    def peer(x, params, inverse):
        net = _Fixed(params.mT.reshape(x.shape[0], -1)[:, : chunks * x.shape[1]])
        features = x.shape[1]
        coupling = cls(torch.tensor([0] + [1] * features), lambda *_: net)
        x = torch.cat((torch.zeros_like(x[:, :1]), x), dim=-1)
        y, logabsdet = (coupling.inverse if inverse else coupling)(x)
        return y[:, 1:], logabsdet

    return peer


def _autoregressive(layer):
    def peer(x, params, inverse):
        function = layer._elementwise_inverse if inverse else layer._elementwise_forward
        return function(x, params.reshape(x.shape[0], -1))

    return peer


def _normflows_coupling(scale_map):
    def peer(x, params, inverse):
        coupling = normflows.flows.AffineCoupling(
            _Fixed(params.flatten(1)), scale=scale_map != "additive", scale_map=scale_map
        )
        (_, y), logabsdet = (coupling.inverse if inverse else coupling)([x, x])
        return y, logabsdet.expand(x.shape[0])

    return peer


# name: (our options, the peer)
PEERS = {
    "zuko": ({"scale_map": "softclip"}, _zuko),
    "nflows affine": (
        {"scale_map": "sigmoid"},
        _nflows_coupling(nflows.transforms.AffineCouplingTransform, 2),
    ),
    "nflows additive": (
        {"scale_map": "additive"},
        _nflows_coupling(nflows.transforms.AdditiveCouplingTransform, 1),
    ),
    "nflows autoregressive": (
        {"scale_map": "softplus", "scale_first": True},
        _autoregressive(nflows.transforms.MaskedAffineAutoregressiveTransform(5, 8)),
    ),
    "normflows autoregressive": (
        {"scale_map": "sigmoid", "scale_first": True},
        _autoregressive(normflows.flows.MaskedAffineAutoregressive(5, 8)),
    ),
    "normflows exp": ({"scale_map": "exp"}, _normflows_coupling("exp")),
    "normflows sigmoid": ({"scale_map": "reciprocal_sigmoid"}, _normflows_coupling("sigmoid")),
    "normflows sigmoid_inv": (
        {"scale_map": ScaleMap("sigmoid", b=0.0)},
        _normflows_coupling("sigmoid_inv"),
    ),
    "normflows additive": ({"scale_map": "additive"}, _normflows_coupling("additive")),
    "FrEIA AllInOneBlock": (
        {"scale_map": ScaleMap("tanh", prefactor=0.1, shift_prefactor=0.1), "scale_first": True},
        lambda x, p, inverse: _log_affine(x, 2 * torch.tanh(0.1 * p[..., 0]), 0.1 * p[..., 1], inverse),
    ),
    "FrEIA ATAN": (
        {"scale_map": "atan", "scale_first": True},
        lambda x, p, inverse: _log_affine(x, 2 * 0.636 * torch.atan(p[..., 0]), p[..., 1], inverse),
    ),
    "FrEIA SIGMOID": (
        {"scale_map": ScaleMap("tanh", prefactor=0.5), "scale_first": True},
        lambda x, p, inverse: _log_affine(x, 2 * 2 * (torch.sigmoid(p[..., 0]) - 0.5), p[..., 1], inverse),
    ),
}


def _log_affine(x, s, t, inverse):
    """FrEIA's blocks, after its source (the package is no test dependency)."""
    return ((x - t) * torch.exp(-s), -s.sum(-1)) if inverse else (torch.exp(s) * x + t, s.sum(-1))


@pytest.mark.parametrize("name", PEERS)
def test_equals_the_peer(backend, name):
    options, peer = PEERS[name]

    def ours(x, params, inverse):
        return affine_coupling(x, params, inverse=inverse, **options)

    for spread in (0.5, 2.0, 6.0):
        x = torch.randn(40, 5, dtype=torch.float64)
        width = 1 if options["scale_map"] == "additive" else 2
        params = spread * torch.randn(40, 5, width, dtype=torch.float64)
        for inverse in (False, True):
            got = evaluate(ours, x, params, backend=backend, inverse=inverse)
            want = evaluate(peer, x, params, backend=backend, inverse=inverse)
            assert_same(got, want, f"{name}, spread {spread}, inverse={inverse}")


X, PARAMS = torch.zeros(4, 3), torch.zeros(4, 3, 2)
# (error, how its message begins, arguments)
BAD = [
    (TypeError, "x: ", dict(x=[1.0])),
    (TypeError, "x: .*torch.int64", dict(x=X.long())),
    (TypeError, "x: .*complex64", dict(x=X.to(torch.complex64))),
    (ValueError, "x: ", dict(x=torch.tensor(1.0))),
    (TypeError, "params: ", dict(params=None)),
    (TypeError, "params: .*torch.int32", dict(params=PARAMS.int())),
    (ValueError, "params: .*device", dict(params=PARAMS.to("meta"))),
    (TypeError, "x: .*layout", dict(x=X.to_sparse())),
    (ValueError, "params: ", dict(params=torch.zeros(2))),
    (ValueError, "params: .*batch", dict(params=torch.zeros(5, 3, 2))),
    (ValueError, "params: .*takes 2", dict(params=torch.zeros(4, 3, 1))),
    (ValueError, "params: .*takes 1", dict(scale_map="additive")),
    (ValueError, "params: .*index or mask", dict(params=torch.zeros(4, 2, 2))),
    (ValueError, "index: .*names 2", dict(index=torch.tensor([0, 1]))),
    (ValueError, "index: .*int64", dict(index=torch.tensor([0.0, 1.0, 2.0]))),
    (ValueError, "index: .*int64", dict(index=torch.tensor([[0, 1, 2]]))),
    (ValueError, r"index: .*\[0, 3\)", dict(index=torch.tensor([0, 1, 3]))),
    (ValueError, r"index: .*\[0, 3\)", dict(index=torch.tensor([0, 1, -1]))),
    (ValueError, "index: .*twice", dict(index=torch.tensor([0, 1, 1]))),
    (TypeError, "index: ", dict(index="012")),
    (ValueError, "index: ", dict(index=[[0], [1, 2]])),
    (NotImplementedError, "index: ", dict(index=torch.zeros(3, dtype=torch.int64, device="meta"))),
    (TypeError, "mask: ", dict(mask="yes")),
    (ValueError, "mask: .*bool", dict(mask=torch.tensor([0, 1, 1]))),
    (ValueError, "mask: .*shape", dict(mask=torch.ones(4, dtype=torch.bool))),
    (ValueError, "mask: .*selects 2", dict(mask=torch.tensor([True, False, True]))),
    (ValueError, "mask: .*not both", dict(mask=X[0] == 0, index=torch.tensor([0, 1, 2]))),
    (ValueError, "scale_map: .*additive.*'cosh'", dict(scale_map="cosh")),
    (ValueError, "scale_map: ", dict(scale_map=["exp"])),
]


@pytest.mark.parametrize("error, message, arguments", BAD)
def test_bad_input(error, message, arguments):
    with pytest.raises(error, match="^" + message):
        affine_coupling(**{"x": X, "params": PARAMS, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kind="softclip", a=0.0),
        dict(kind="tanh", a=float("inf")),
        dict(kind="atan", a=-1.0),
        dict(kind="sigmoid", a=float("nan")),
        dict(kind="sigmoid", b=-1e-3),
        dict(kind="softplus", b=float("inf")),
        dict(kind="exp", prefactor=float("nan")),
        dict(kind="exp", shift_prefactor=float("inf")),
        dict(kind="exp", prefactor="1"),
        dict(kind="tanh", a="2"),
    ],
)
def test_bad_scale_map(arguments):
    with pytest.raises(ValueError, match="^scale_map: "):
        ScaleMap(**arguments)


def test_backward_saves_no_more_than_its_inputs(backend):
    """What waits for backward is x, params and the index themselves, not copies."""
    case = AFFINES["index"]
    x, params = (t.requires_grad_() for t in case.tensors())
    saved = []
    with flowkern.backend(backend):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            case(x, params)
    pointers = {t.data_ptr() for t in saved if t.is_floating_point()}
    assert pointers == {x.data_ptr(), params.data_ptr()}
