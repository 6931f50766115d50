"""Flows and accelerated layers saved as plain operations: torch.jit.trace and ONNX, run at another batch size."""

import io
import math
import warnings

import pytest
import torch
import zuko

import flowkern
from flowkern import flows
from tests.adapters import autoregressive_models, nflows_models
from tests.adapters.autoregressive_models import call

SMALL = {"transforms": 2, "hidden_features": (6,)}
OWN = {
    "NICE": lambda: flows.NICE(4, **SMALL),
    "RealNVP": lambda: flows.RealNVP(4, **SMALL),
    "NSF": lambda: flows.NSF(4, bins=4, **SMALL),
    "MAF": lambda: flows.MAF(4, **SMALL),
    "IAF": lambda: flows.IAF(4, **SMALL),
    "AutoregressiveNSF": lambda: flows.AutoregressiveNSF(4, bins=4, **SMALL),
    "CNF": lambda: flows.CNF(4, hidden_features=(6,), steps=2),
}
ACCELERATED = (
    "additive", "affine", "spline", "spline_unconditional", "cdf", "lu", "nflows", "nflows feed-forward",
    "nflows spline", "normflows", "normflows spline", "zuko", "zuko spline",
)  # fmt: skip


class LogProb(torch.nn.Module):
    """A flow's log-density as a module."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow().log_prob(x)


class Inverse(torch.nn.Module):
    """The inverse of a layer as a module."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs, context=None):
        return call(self.layer.inverse, inputs, context)


def own(name):
    """A flow's log-density, and inputs of two batch sizes."""
    flow = OWN[name]().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0, 0.3 / math.sqrt(parameter.shape[-1]))
    return LogProb(flow), [(torch.randn(5, 4),), (2 * torch.randn(3, 4),)]


def accelerated(name, inverse):
    """An accelerated layer or its inverse, and inputs of two batch sizes."""
    source = nflows_models if name in nflows_models.LAYERS else autoregressive_models
    layer, *arguments = source.build(name, dtype=torch.float32)
    fast = flowkern.accelerate(layer.eval())
    assert flowkern.explain(fast).replaced and not flowkern.explain(fast).left
    arguments = [argument for argument in arguments if argument is not None]
    inputs = [tuple(argument[:rows] for argument in arguments) for rows in (5, 3)]
    return Inverse(fast) if inverse else fast, inputs


CASES = [
    *((name, None) for name in OWN),
    *((name, inverse) for name in ACCELERATED for inverse in (False, True)),
]


def built(name, inverse):
    return own(name) if inverse is None else accelerated(name, inverse)


def results(output):
    """Its tensors without gradients."""
    return [t.detach() for t in ((output,) if isinstance(output, torch.Tensor) else output)]


@pytest.mark.parametrize("name, inverse", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_saved_trace_runs_at_another_batch_size(name, inverse):
    model, (some, others) = built(name, inverse)
    # torch's check compares graphs by the names of values, which differ for equal solves.
    traced, file = torch.jit.trace(model, some, check_trace=name != "CNF"), io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for arguments in (some, others):
        torch.testing.assert_close(results(loaded(*arguments)), results(model(*arguments)), rtol=1e-4, atol=1e-4)


def test_a_trace_has_gradients():
    model, (some, others) = accelerated("nflows", False)
    traced = torch.jit.trace(model, some)
    grads = []
    for function in (traced, model):
        inputs = others[0].clone().requires_grad_()
        grads.append(torch.autograd.grad(function(inputs, *others[1:])[1].sum(), inputs))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def exported(model, some, dynamo):
    """The model as an ONNX file's bytes, for any batch size."""
    file = io.BytesIO()
    names = [f"input{i}" for i in range(len(some))]
    if dynamo:
        sizes = {"dynamic_shapes": tuple({0: torch.export.Dim("rows")} for _ in some)}
    else:
        sizes = {"dynamic_axes": {name: {0: "rows"} for name in names}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = dict(input_names=names, dynamo=dynamo, opset_version=18, **sizes)
        if dynamo:
            torch.onnx.export(model, some, verbose=False, **arguments).save(file)
        else:
            torch.onnx.export(model, some, file, **arguments)
    return names, file.getvalue()


ONNX = [
    *(("NSF", None), ("MAF", None), ("CNF", None), ("additive", True), ("spline_unconditional", False)),
    *(("nflows spline", False), ("normflows spline", True), ("zuko", False)),
]


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
@pytest.mark.parametrize("name, inverse", ONNX)
def test_onnx_runs_at_another_batch_size(name, inverse, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    if name == "CNF" and not dynamo:
        pytest.skip("PyTorch's exporter by tracing has no mT, which a solve with an exact trace needs")
    model, (some, others) = built(name, inverse)
    names, content = exported(model, some, dynamo)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    used = [given.name for given in session.get_inputs()]  # not a context that the layer does not read
    for arguments in (some, others):
        got = session.run(None, {n: a.numpy() for n, a in zip(names, arguments) if n in used})
        wanted = results(model(*arguments))
        torch.testing.assert_close(list(map(torch.as_tensor, got)), wanted, rtol=1e-4, atol=1e-4)


def test_an_explicit_kernel_cannot_be_traced():
    model, (some, _) = own("NSF")
    with flowkern.backend("cpu"), pytest.raises(RuntimeError, match="'cpu' was chosen, but torch.jit.trace"):
        torch.jit.trace(model, some)


def test_whole_flows_of_zuko():
    model = LogProb(flowkern.accelerate(zuko.flows.NSF(3, transforms=2, hidden_features=(8,))))
    assert flowkern.explain(model).replaced
    traced, x = torch.jit.trace(model, torch.randn(5, 3)), torch.randn(2, 3)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-4)
