"""torch.compile(dynamic=True), to which sizes and floats are symbols that the calls of an op share."""

import pytest
import torch

import flowkern
from tests import cases

FLOWS = ("RealNVP", "NSF", "MAF", "AutoregressiveNSF", "CNF")


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")


def flow_of(name):
    torch.manual_seed(0)
    flow = getattr(flowkern.flows, name)(3, hidden_features=(8, 8)).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow


@pytest.mark.parametrize("name", FLOWS)
def test_flows(name):
    flow = flow_of(name)

    def log_prob(x):
        return flow().log_prob(x) + flow().log_prob(x / 2)

    of_compiler = compiled(log_prob)
    for batch in (6, 9):
        x, results = torch.randn(batch, 3).double(), []
        for function in (log_prob, of_compiler):
            value = function(x)
            results.append([value, *torch.autograd.grad(value.sum(), list(flow.parameters()))])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


X = torch.linspace(-4, 4, 24).double().view(6, 4)
OPS = {op: module.dynamic for op, module in cases.modules("calls").items() if hasattr(module, "dynamic")}


@pytest.mark.parametrize("name", OPS)
def test_constants_may_change(name):
    """Another number is another graph, not the first one's again."""

    def twice(x, c):
        return OPS[name](OPS[name](x, c), c / 2)

    of_compiler, x = compiled(twice), X.clone().requires_grad_()
    for c in (1.0, 2.0, 3.5):
        results = [(y := function(x, c), *torch.autograd.grad(y.sum(), x)) for function in (twice, of_compiler)]
        torch.testing.assert_close(*results)
