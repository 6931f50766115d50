"""`spline_functions` of modules that have nflows' functions as text: the same numbers, and a way back."""

import inspect
import io
import sys
import types

import nflows.transforms.splines.rational_quadratic as source
import pytest
import torch
from torch import nn

import flowkern
from flowkern.adapters import spline_functions

NAMES = ("rational_quadratic_spline", "unconstrained_rational_quadratic_spline")


def copied(*changes):
    """A module with a copy of nflows' functions, and such changes of the text."""
    text = inspect.getsource(source)
    for before, after in (("raise InputOutsideDomain()", 'raise ValueError("outside")'), *changes):
        assert before in text
        text = text.replace(before, after)
    module = types.ModuleType("somespeech_transforms")
    exec(compile(text, "somespeech_transforms.py", "exec"), vars(module))
    return module


@pytest.fixture
def module(monkeypatch):
    """A copy that is loaded, and another module that has imported a function from it."""
    module, user = copied(), types.ModuleType("somespeech_user")
    user.unconstrained_rational_quadratic_spline = module.unconstrained_rational_quadratic_spline
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, user.__name__, user)
    module.user = user
    return module


def raw(*shape, bins=6, slopes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, k, generator=generator, dtype=torch.float64).to(dtype) for k in (bins, bins, slopes)]


def both(module, call):
    """What the call gives with the originals, and with the replaced functions."""
    wanted = call(module)
    with spline_functions(module) as functions:
        assert functions.replaced == NAMES and not functions.left
        got = call(module)
    return wanted, got


def gradients(function, inputs, tensors, **options):
    leaves = [t.clone().requires_grad_() for t in (inputs, *tensors)]
    y, logabsdet = function(*leaves, **options)
    return y, logabsdet, *torch.autograd.grad((y * 1.3 + logabsdet * y.detach()).sum(), leaves, materialize_grads=True)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (2, 1, 0)])
def test_values_and_gradients_with_tails(module, shape, inverse):
    inputs = torch.linspace(-4, 4, max(1, torch.Size(shape).numel()), dtype=torch.float64)[: torch.Size(shape).numel()]
    options = {"inverse": inverse, "tails": "linear", "tail_bound": 3.0, "min_derivative": 0.01}
    wanted, got = both(
        module,
        lambda m: gradients(m.unconstrained_rational_quadratic_spline, inputs.view(shape), raw(*shape), **options),
    )
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
def test_values_and_gradients_on_an_interval(module, inverse):
    inputs, tensors = torch.rand(3, 4, dtype=torch.float64), raw(3, 4, slopes=7)
    wanted, got = both(
        module, lambda m: gradients(m.rational_quadratic_spline, inputs, tensors, inverse=inverse, right=1.5, top=2.0)
    )
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_float32_is_no_further_from_float64(module):
    inputs, tensors = torch.linspace(-4, 4, 4096, dtype=torch.float64).view(2, 2, -1), raw(2, 2, 1024)
    options = {"tails": "linear", "tail_bound": 3.0}
    exact = module.unconstrained_rational_quadratic_spline(inputs, *tensors, **options)
    call = lambda m: m.unconstrained_rational_quadratic_spline(inputs.float(), *(t.float() for t in tensors), **options)  # noqa: E731
    errors = [[(g.double() - e).abs().max() for g, e in zip(found, exact)] for found in both(module, call)]
    assert all(ours <= 2 * theirs + 1e-6 for theirs, ours in zip(*errors))
    assert both(module, call)[1][0].dtype == torch.float32


def test_steep_splines_have_an_inverse(module):
    """The copies stop with an AssertionError there."""
    tensors = [6 * t for t in raw(512, dtype=torch.float32)]
    y = torch.linspace(-3, 3, 512)
    options = {"tails": "linear", "tail_bound": 3.0}
    with spline_functions(module):
        x = module.unconstrained_rational_quadratic_spline(y, *tensors, inverse=True, **options)[0]
        again = module.unconstrained_rational_quadratic_spline(x, *tensors, **options)[0]
    torch.testing.assert_close(again, y, rtol=1e-3, atol=1e-3)


def test_every_loaded_module_that_has_the_function_gets_it_and_gives_it_back(module):
    originals = [getattr(module, name) for name in NAMES]
    functions = spline_functions(module)
    assert module.user.unconstrained_rational_quadratic_spline is module.unconstrained_rational_quadratic_spline
    assert module.user.unconstrained_rational_quadratic_spline is not originals[1]
    assert module.rational_quadratic_spline.__wrapped__ is originals[0]
    assert spline_functions(module).left == dict.fromkeys(NAMES, "it is replaced already")
    functions.restore()
    assert [getattr(module, name) for name in NAMES] == originals
    assert module.user.unconstrained_rational_quadratic_spline is originals[1]


def test_what_the_op_cannot_compute_goes_to_the_original(module):
    inputs, tensors = torch.tensor([0.5, 2.0]), raw(2, slopes=7, dtype=torch.float32)
    with spline_functions(module):
        with pytest.raises(ValueError, match="outside"):
            module.rational_quadratic_spline(inputs, *tensors)
        with pytest.raises(ValueError, match="Minimal bin width too large"):
            module.rational_quadratic_spline(inputs / 4, *tensors, min_bin_width=0.9)
        with pytest.raises(RuntimeError, match="square tails are not implemented"):
            module.unconstrained_rational_quadratic_spline(inputs, *tensors, tails="square")
        with pytest.raises(TypeError, match="argument"):
            module.unconstrained_rational_quadratic_spline(inputs)
        y = module.unconstrained_rational_quadratic_spline(
            inputs, *raw(2, dtype=torch.float32), tail_bound=torch.tensor(3.0)
        )
    assert y[0].shape == (2,)


SLOPE = (
    "derivatives = min_derivative + F.softplus(unnormalized_derivatives)",
    "derivatives = 1 + unnormalized_derivatives**2",
)
LEFT = [
    (SLOPE, "rational_quadratic_spline", "gives other numbers than the fused one"),
    (("top=1.0,", "top=1.0, bins=3,"), "rational_quadratic_spline", "its arguments are inputs, "),
    (
        ("outputs[outside_interval_mask] = inputs[", "outputs[outside_interval_mask] = 2 * inputs["),
        NAMES[1],
        "gives other",
    ),
]


@pytest.mark.parametrize("change, name, reason", LEFT)
def test_a_function_of_other_numbers_or_arguments_is_left(change, name, reason):
    module = copied(change)
    original = getattr(module, name)
    functions = spline_functions(module)
    assert reason in functions.left[name] and reason in str(functions) and name not in functions.replaced
    assert getattr(module, name) is original
    functions.restore()


def test_a_further_argument_may_keep_its_default(module):
    fork = copied(
        (
            "    min_derivative=DEFAULT_MIN_DERIVATIVE,\n):",
            "    min_derivative=DEFAULT_MIN_DERIVATIVE,\n    extra=None,\n):",
        )
    )
    inputs, tensors = torch.rand(4), raw(4, slopes=7, dtype=torch.float32)
    with spline_functions(fork) as functions:
        assert functions.replaced == NAMES
        got = fork.rational_quadratic_spline(inputs, *tensors, extra="other")
    assert torch.equal(got[0], fork.rational_quadratic_spline(inputs, *tensors)[0])


@pytest.mark.parametrize("wrong, error", [("transforms", TypeError), (nn, ValueError)])
def test_what_is_no_such_module(wrong, error):
    with pytest.raises(error, match="^module: expected "):
        spline_functions(wrong)


class Speech(nn.Module):
    """As a duration predictor's spline flow."""

    def __init__(self, module):
        super().__init__()
        self.module, self.net = module, nn.Conv1d(1, 3 * 6 - 1, 1)

    def forward(self, x):
        h = self.net(x[:, :1]).unsqueeze(1).transpose(2, 3)
        y, logabsdet = self.module.unconstrained_rational_quadratic_spline(
            x[:, 1:], h[..., :6], h[..., 6:12], h[..., 12:], inverse=True, tails="linear", tail_bound=5.0
        )
        return torch.cat([x[:, :1], y], 1), logabsdet.sum((1, 2))


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_onnx_export_runs_at_another_batch_size(module, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, file = Speech(module).eval(), io.BytesIO()
    x, other = torch.randn(2, 2, 5), 3 * torch.randn(3, 2, 5)
    with spline_functions(module), torch.no_grad():
        if dynamo:
            batch = torch.export.Dim("batch", min=1)
            torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False).save(file)
        else:
            torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad():
        for one, wanted in zip(got, model(other)):
            torch.testing.assert_close(torch.as_tensor(one), wanted, rtol=1e-4, atol=1e-4)


def test_compiles_to_one_graph(module):
    model, x = Speech(module), torch.randn(2, 2, 5)
    wanted = model(x)
    torch._dynamo.reset()
    with spline_functions(module):
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_nflows_own_functions_and_layers():
    """The functions are rebound wherever nflows has them; accelerate then finds the layers' numbers as before."""
    from nflows import transforms
    from nflows.transforms import autoregressive

    original = autoregressive.unconstrained_rational_quadratic_spline
    layer = transforms.PiecewiseRationalQuadraticCDF([3], num_bins=4, tails="linear", tail_bound=3.0)
    x = torch.randn(5, 3)
    wanted = layer(x)
    with spline_functions(source):
        assert autoregressive.unconstrained_rational_quadratic_spline is not original
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(flowkern.accelerate(layer)(x), wanted, rtol=1e-5, atol=1e-5)
    assert autoregressive.unconstrained_rational_quadratic_spline is original
