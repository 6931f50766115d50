"""Programs of accelerated flows give the numbers of the libraries."""

import copy

import pytest
import torch

import flowkern
from tests.adapters.program_models import (
    NFLOWS,
    ZUKO,
    D,
    data,
    derivatives,
    nflows_flow,
    pair,
    zuko_flow,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def leaves(*tensors):
    return [t if t is None else t.clone().requires_grad_() for t in tensors]


def log_prob(model, x, c):
    return (model(c).log_prob(x),) if hasattr(model, "base") else (model.log_prob(x, c),)


def forward(model, x, c):
    return model(c).transform.call_and_ladj(x) if hasattr(model, "base") else model._transform(x, c)


def inverse(model, y, c):
    return model(c).transform.inv.call_and_ladj(y) if hasattr(model, "base") else model._transform.inverse(y, c)


MODELS = [("nflows", name) for name in NFLOWS] + [("zuko", name) for name in ZUKO]


def build(library, name, dtype=torch.float64):
    model = (nflows_flow if library == "nflows" else zuko_flow)(name, dtype)
    return model, (NFLOWS if library == "nflows" else ZUKO)[name][1]


@pytest.mark.parametrize("function", [log_prob, forward], ids=lambda f: f.__name__)
@pytest.mark.parametrize("library, name", MODELS)
def test_values_and_gradients(library, name, function, program_backend, programs):
    model, context = build(library, name)
    plain, fast = pair(model)
    inputs = leaves(*data(context))
    programs.clear()
    wanted, got = function(plain, *inputs), function(fast, *inputs)
    assert len(programs) == 1
    torch.testing.assert_close(got, wanted, **EXACT)
    torch.testing.assert_close(derivatives(fast, got, *inputs), derivatives(plain, wanted, *inputs), **EXACT)


@pytest.mark.parametrize("library, name", MODELS)
def test_inverses(library, name, program_backend, programs):
    """By the library's forward, as its inverse loses digits; gradients by those of the implicit function."""
    model, context = build(library, name)
    plain, fast = pair(model)
    y, c = leaves(*data(context))
    programs.clear()
    x, logabsdet = inverse(fast, y, c)
    assert len(programs) == 1
    again, forwards = forward(plain, x, c)
    torch.testing.assert_close((again, -forwards), (y, logabsdet), rtol=1e-9, atol=1e-9)
    wanted = inverse(plain, y, c)
    torch.testing.assert_close((x, logabsdet), wanted, rtol=1e-6, atol=1e-6)
    got = derivatives(fast, (x, logabsdet), y, c)
    torch.testing.assert_close(got, derivatives(plain, wanted, y, c), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library, name", MODELS)
def test_float32_is_no_further_from_float64(library, name):
    model, context = build(library, name)
    x, c = data(context, 64)
    exact = log_prob(model, x, c)[0]
    plain, fast = pair(model.float())
    x, c = data(context, 64, torch.float32)
    errors = [(log_prob(m, x, c)[0].double() - exact).abs().max() for m in (plain, fast)]
    assert errors[1] <= 2 * errors[0] + 1e-6


@pytest.mark.parametrize("library, name", [("nflows", "maf"), ("nflows", "nsf"), ("zuko", "nsf")])
def test_few_rows(library, name, programs):
    """One; and none, at which the splines of both libraries fail."""
    plain, fast = pair(build(library, name)[0])
    one, none = data(3, 1), data(3, 0)
    programs.clear()
    torch.testing.assert_close(log_prob(fast, *one), log_prob(plain, *one), **EXACT)
    assert log_prob(fast, *none)[0].shape == (0,) and forward(fast, *none)[0].shape == (0, D)
    assert len(programs) == 3


def sample(model, c, count):
    torch.manual_seed(3)
    if hasattr(model, "base"):
        return model(c).sample((count,)), *model(c).rsample_and_log_prob((count,))
    return model.sample(count, c), *model.sample_and_log_prob(count, c)


@pytest.mark.parametrize("library, name", MODELS)
def test_samples_under_a_seed(library, name, programs):
    """nflows and zuko draw noise in the default dtype."""
    model, context = build(library, name, torch.float32)
    plain, fast = pair(model)
    c = data(context, 3, torch.float32)[1]
    wanted = sample(plain, c, 5)
    programs.clear()
    got = sample(fast, c, 5)
    assert len(programs) == 2
    torch.testing.assert_close(got, wanted, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("shape", [(D,), (2, 6, D), (2, 1, D)])
def test_batches_of_zuko(shape, programs):
    plain, fast = pair(zuko_flow("nsf"))
    c = data(3)[1]
    x = torch.randn(shape, dtype=torch.float64)
    programs.clear()
    for context in (c, c[0], c.expand(2, 6, -1)):
        got, wanted = fast(context).log_prob(x), plain(context).log_prob(x)
        torch.testing.assert_close(got, wanted, **EXACT)
    assert len(programs) == 3


def test_a_distribution_of_zuko_is_what_it_was(programs):
    plain, fast = (flow(data(3)[1]) for flow in pair(zuko_flow("nsf")))
    assert isinstance(fast, type(plain)) and isinstance(fast.transform, type(plain.transform))
    assert (fast.batch_shape, fast.event_shape) == (plain.batch_shape, plain.event_shape)
    assert fast.transform.bijective and fast.transform.domain.event_dim == 1
    assert len(fast.transform.transforms) == 3 and len(fast.transform.inv.transforms) == 3
    x = torch.randn(6, D, dtype=torch.float64)
    torch.testing.assert_close(fast.expand((2, 6)).log_prob(x), plain.expand((2, 6)).log_prob(x))
    torch.testing.assert_close(fast.transform(x), plain.transform(x))
    torch.testing.assert_close(fast.transform.inv.inv(x), plain.transform(x))
    y = fast.transform(x)
    torch.testing.assert_close(fast.transform.log_abs_det_jacobian(x, y), plain.transform.log_abs_det_jacobian(x, y))
    assert programs


@pytest.mark.parametrize("library, name", [("nflows", "maf"), ("nflows", "nsf"), ("zuko", "nsf")])
def test_second_derivatives(library, name, program_backend):
    model, context = build(library, name)
    results = []
    for some in pair(model):
        inputs = leaves(*data(context))
        first = derivatives(some, log_prob(some, *inputs), *inputs)
        with torch.enable_grad():
            again = torch.autograd.grad(log_prob(some, *inputs)[0].sum(), inputs, create_graph=True)
        results.append((first, derivatives(some, again, *inputs)))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


def test_compiles_to_one_graph():
    plain, fast = pair(nflows_flow("maf"))
    x, c = data(3)
    torch._dynamo.reset()
    compiled = torch.compile(fast._transform, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, c), plain._transform(x, c), **EXACT)


def test_copies_of_a_copy(programs):
    plain, fast = pair(nflows_flow("maf"))
    twin = copy.deepcopy(copy.deepcopy(fast))
    x, c = data(3)
    programs.clear()
    torch.testing.assert_close(twin.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert len(programs) == 1
    flowkern.restore(twin)
    twin.log_prob(x, c)
    assert len(programs) == 1
