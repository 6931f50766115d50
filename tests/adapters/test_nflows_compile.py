"""Accelerated nflows layers and flows under torch.compile and torch.export: one graph."""

import pytest
import torch

import flowkern
from tests.adapters.nflows_models import CONTEXT, build, pair, sbi_flow

NAMES = ["additive", "affine", "spline_unit", "spline_unconditional", "spline_unscaled"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", [*NAMES, "image_spline"])
def test_layer_is_one_graph(name):
    layer, inputs, context = build(name)
    flowkern.accelerate(layer)
    for call in (layer, layer.inverse):
        compiled = torch.compile(call, backend="eager", fullgraph=True)
        want = call(inputs, context)
        torch.testing.assert_close(compiled(inputs, context), want, rtol=1e-9, atol=1e-9)


def test_gradients_of_a_compiled_flow():
    plain, fast = pair(sbi_flow(torch.float64, blocks=1))
    compiled = torch.compile(fast._transform, backend="aot_eager", fullgraph=True)
    inputs, context = (torch.randn(8, n, dtype=torch.float64) for n in (4, CONTEXT))
    for transform in (plain._transform, compiled):
        y, logabsdet = transform(inputs, context)
        (y.square().sum() - logabsdet.sum()).backward()
    for got, want in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_whole_transform_is_one_graph(inverse):
    """Five spline couplings and five LU layers; nflows alone breaks at every spline."""
    transform = flowkern.accelerate(sbi_flow())._transform
    call = transform.inverse if inverse else transform
    report = torch._dynamo.explain(call)(torch.randn(8, 4), torch.randn(8, CONTEXT))
    assert (report.graph_count, report.graph_break_count) == (1, 0)


def test_accelerated_after_compilation():
    """The compiled code notices that a layer has changed, and that it changes back."""
    layer, inputs, context = build("affine")
    want = layer(inputs, context)
    compiled = torch.compile(layer, backend="eager")
    for change in (lambda model: model, flowkern.accelerate, flowkern.restore):
        change(layer)
        torch.testing.assert_close(compiled(inputs, context), want, rtol=1e-9, atol=1e-9)


def test_export():
    transform = flowkern.accelerate(sbi_flow())._transform
    inputs, context = torch.randn(8, 4), torch.randn(8, CONTEXT)
    program = torch.export.export(transform, (inputs, context), dynamic_shapes=[{0: torch.export.Dim("n")}] * 2)
    got = program.module()(inputs[:3], context[:3])
    torch.testing.assert_close(got, transform(inputs[:3], context[:3]))
