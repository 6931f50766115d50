"""Copies of models with programs, what splits a program, and that nothing else changes."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, InverseTransform, LeakyReLU, LULinear, Tanh
from torch import nn

import flowkern
from flowkern.report.memory import peak_memory
from tests.adapters.program_models import (
    C,
    ContextMap,
    D,
    affine,
    data,
    net,
    nflows_flow,
    pair,
    randomised,
    spline_coupling,
    spline_of,
    standardising,
    zuko_flow,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def fused():
    return pair(nflows_flow("maf"))


# Copies


def test_pickles_and_copies_know_their_own_modules(programs):
    plain, fast = fused()
    x, c = data(C)
    want = fast.log_prob(x, c)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), torch.load(buffer, weights_only=False)):
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        other = copy.deepcopy(plain)
        other.load_state_dict(twin.state_dict())
        programs.clear()
        torch.testing.assert_close(twin.log_prob(x, c), other.log_prob(x, c), **EXACT)
        assert len(programs) == 1
        torch.testing.assert_close(fast.log_prob(x, c), want)


def test_replicas_use_the_weights_they_are_given():
    plain, fast = fused()
    x, c = data(C)
    fast.log_prob(x, c)

    def replicate(module):
        replica = module._replicate_for_data_parallel()
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(replica, name, parameter * 0.5)
        for name, child in module._modules.items():
            replica._modules[name] = child and replicate(child)
        return replica

    with torch.no_grad():
        got = replicate(fast).log_prob(x, c)
        for parameter in plain.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(got, plain.log_prob(x, c), **EXACT)


def test_restored_it_is_freed_at_once():
    fast = flowkern.accelerate(nflows_flow("maf"))
    fast.log_prob(*data(C))
    flowkern.restore(fast)
    assert not any(name in module.__dict__ for module in fast.modules() for name in ("forward", "_log_prob"))
    freed = weakref.ref(fast)
    gc.disable()
    del fast
    gc.enable()
    assert freed() is None


def test_state_dict_and_gradients_of_frozen_parts():
    _, fast = fused()
    frozen = fast._transform._transforms[1]
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    fast.log_prob(*data(C)).sum().backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(p.grad is not None for n, p in fast.named_parameters() if not n.startswith("_transform._transforms.1."))


def test_a_layer_by_itself():
    plain, fast = fused()
    x, c = data(C)
    for one, other in zip(plain._transform._transforms, fast._transform._transforms):
        torch.testing.assert_close(other(x, c), one(x, c), **EXACT)
        torch.testing.assert_close(other.inverse(x, c), one.inverse(x, c), **EXACT)


# What splits a program


def test_a_transform_without_a_step_splits_it(programs):
    torch.manual_seed(0)
    strange = LeakyReLU()
    inner = CompositeTransform([affine(), strange, LULinear(D)])
    flow = Flow(CompositeTransform([standardising(), inner, InverseTransform(strange), affine()]), StandardNormal([D]))
    plain, fast = pair(randomised(flow))
    x, c = data(C)
    programs.clear()
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert [len(p.steps) for p in programs] == [2, 1]
    programs.clear()
    y = plain._transform(x, c)[0]
    torch.testing.assert_close(fast._transform.inverse(y, c)[0], x, rtol=1e-8, atol=1e-8)
    assert [len(p.steps) for p in programs] == [1, 2]
    note = next(layer.note for layer in flowkern.explain(fast).replaced if layer.name == "_transform")
    assert "2 transforms in one call; 1 apart: there is no step for it" in note
    assert [layer.kind for layer in flowkern.explain(fast).left] == ["LeakyReLU"]


REASONS = {
    "it transforms the identity half, too": lambda: _with_unconditional(),
    "its dropout is active": lambda: affine(dropout_probability=0.5).train(),
    "its batch normalisation takes the statistics": lambda: spline_coupling(use_batch_norm=True).train(),
    "there is no step for it": Tanh,
    "its network Wrapped calls ": lambda: _with_network(),
    "its network ContextMap reads the context alone": lambda: spline_of(ContextMap),
}


def _with_unconditional():
    from nflows.transforms import AffineCouplingTransform

    return AffineCouplingTransform([1, 0, 1, 0], net(), lambda features: LULinear(features))


def _with_network():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, c):
            return torch.tanh(self.inner(x, c))

    layer = spline_coupling()
    layer.transform_net = Wrapped(layer.transform_net)
    return layer


@pytest.mark.parametrize("reason", REASONS)
def test_explains_what_splits_it(reason):
    layers = [affine(), LULinear(D), REASONS[reason](), affine()]
    model = flowkern.accelerate(CompositeTransform(layers))
    assert f"2 transforms in one call; 2 apart: {reason}" in str(flowkern.explain(model))


def test_another_base_distribution_is_left_to_nflows(programs):
    base = ConditionalDiagonalNormal([D], nn.Linear(C, 2 * D))
    plain, fast = pair(randomised(Flow(CompositeTransform([affine(), LULinear(D)]), base)))
    x, c = data(C)
    programs.clear()
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert [p.base for p in programs] == [None]


def test_an_embedding_is_called_once(programs):
    torch.manual_seed(0)
    seen = []

    class Embedding(nn.Linear):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    flow = Flow(CompositeTransform([affine(), LULinear(D)]), StandardNormal([D]), Embedding(2, C))
    plain, fast = pair(randomised(flow))
    x, c = data(C)
    c = c[:, :2].requires_grad_()
    programs.clear(), seen.clear()
    value = fast.log_prob(x, c)
    assert len(seen) == 1 and len(programs) == 1
    torch.testing.assert_close(value, plain.log_prob(x, c), **EXACT)
    fast.log_prob(x.float().double()[:, :4], c)
    grads = [torch.autograd.grad(m.log_prob(x, c).sum(), [c, m._embedding_net.weight]) for m in (fast, plain)]
    torch.testing.assert_close(*grads, **EXACT)


def test_a_single_transform_as_a_flow(programs):
    torch.manual_seed(0)
    plain, fast = pair(randomised(Flow(affine(), StandardNormal([D]))))
    x, c = data(C)
    programs.clear()
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert len(programs) == 1


# Side effects


def test_inspection_changes_no_random_state_and_no_model():
    flow = nflows_flow("nsf")
    before = copy.deepcopy(flow.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    flowkern.accelerate(flow)
    flow.log_prob(*data(C))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(flow.state_dict(), before, rtol=0, atol=0)


def test_zukos_random_state_and_hooks(programs):
    plain, fast = pair(zuko_flow("nsf"))
    x, c = data(C)
    fast(c).log_prob(x)
    seen = []
    fast.transform.transforms[1].hyper.register_forward_hook(lambda *_: seen.append(1))
    programs.clear()
    torch.testing.assert_close(fast(c).log_prob(x), plain(c).log_prob(x), **EXACT)
    assert seen == [1] and [len(p.steps) for p in programs] == [1, 1]


def test_a_fork_after_acceleration_can_compute():
    """Inspection starts no threads that a forked process would miss."""
    code = """if True:
        import os, warnings
        warnings.simplefilter("ignore")
        from tests.adapters.program_models import data, nflows_flow
        import flowkern
        flow = flowkern.accelerate(nflows_flow("nsf"))
        if os.fork() == 0:
            flow.log_prob(*data(3)).sum().backward()
            os._exit(0)
        assert os.wait()[1] == 0
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Memory


def test_a_layer_costs_the_memory_of_the_features_between_its_steps():
    """And little else: parameters have gradients, and a call has some numbers of its own."""
    x = torch.randn(4096, D)

    def peak(layers):
        every = [t for _ in range(layers) for t in (spline_coupling(None), LULinear(D))]
        flow = flowkern.accelerate(Flow(CompositeTransform(every), StandardNormal([D])))

        def step():
            flow.zero_grad(set_to_none=True)
            flow.log_prob(x).mean().backward()

        step()
        return peak_memory(step), sum(4 * p.numel() for p in flow.parameters())

    (few, few_weights), (many, many_weights) = peak(2), peak(10)
    between = 8 * 2 * x.numel() * 4
    assert many - few - (many_weights - few_weights) == pytest.approx(between, rel=0.05)
