"""Calls that a program leaves to the layers, which give the library's own numbers and errors."""

import math
import warnings

import pytest
import torch
from torch import nn

import flowkern
from flowkern.programs import program
from tests.adapters.program_models import C, data, nflows_flow, pair
from tests.cases.flow_program import CASES

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def fused():
    return pair(nflows_flow("maf"))


# Calls that each layer must see


def test_autocast_is_left_to_the_layers(programs):
    plain, fast = pair(nflows_flow("maf", torch.float32))
    x, c = data(C, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = fast.log_prob(x, c), plain.log_prob(x, c)
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.1)
    assert not programs


def test_many_weights_for_few_rows_are_left_to_the_layers():
    coupling = CASES["coupling wide"].program()
    coupling.weights, coupling.tensors = 1 << 20, 8
    assert program.least_rows(coupling, False) == 5 and program.least_rows(coupling, True) == 9
    coupling.widest = 512
    assert program.least_rows(coupling, False) == 5 and program.least_rows(coupling, True) == math.inf
    coupling.tensors = 128
    assert program.least_rows(coupling, False) == 0
    autoregressive = CASES["autoregressive"].program()
    autoregressive.weights = 1 << 30
    assert program.least_rows(autoregressive, False) == program.least_rows(autoregressive, True) == 0


@pytest.mark.parametrize("training", [False, True])
def test_few_rows_run_the_librarys_code_and_more_rows_a_program(programs, monkeypatch, training):
    monkeypatch.setattr(program, "least_rows", lambda program, trained: 100 if trained else 4)
    plain, fast = pair(nflows_flow("real nvp"))
    plain.train(training), fast.train(training)
    x = data(0)[0].repeat(20, 1)
    for rows, with_gradients, calls in ((6, False, 1), (3, False, 0), (120, True, 1), (6, True, 0), (4, False, 1)):
        programs.clear()
        with torch.set_grad_enabled(with_gradients):
            torch.testing.assert_close(fast.log_prob(x[:rows]), plain.log_prob(x[:rows]), **EXACT)
        assert len(programs) == calls


def test_few_rows_of_a_changed_model_are_right(monkeypatch):
    monkeypatch.setattr(program, "least_rows", lambda program, trained: 4)
    plain, fast = pair(nflows_flow("real nvp"))
    x = data(0)[0]
    fast.log_prob(x)
    for flow in (plain, fast):
        flow._transform._transforms[0] = flow._transform._transforms[2]
    torch.testing.assert_close(fast.log_prob(x[:2]), plain.log_prob(x[:2]), **EXACT)
    torch.testing.assert_close(fast.log_prob(x), plain.log_prob(x), **EXACT)


def test_half_precision_is_left_to_the_layers(programs):
    plain, fast = pair(nflows_flow("maf", torch.bfloat16))
    x, c = data(C, dtype=torch.bfloat16)
    assert fast.log_prob(x, c).dtype == plain.log_prob(x, c).dtype and not programs


def test_torch_func_is_left_to_the_layers(programs):
    plain, fast = fused()
    x, c = data(C)

    def one(model):
        return lambda x, c: model.log_prob(x[None], c[None])[0]

    for transformed in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.grad(f))):
        torch.testing.assert_close(transformed(one(fast))(x, c), transformed(one(plain))(x, c), **EXACT)
    got, wanted = (torch.func.jvp(lambda x: m.log_prob(x, c), (x,), (x,)) for m in (fast, plain))
    torch.testing.assert_close(got, wanted, **EXACT)
    assert not programs


def test_functional_call_reads_the_weights_it_is_given(programs):
    plain, fast = fused()
    x, c = data(C)
    weights = {name: 0.5 * p.detach() for name, p in plain.named_parameters()}

    class LogProb(nn.Module):
        def __init__(self, flow):
            super().__init__()
            self.flow = flow

        def forward(self, x, c):
            return self.flow.log_prob(x, c)

    weights = {f"flow.{name}": value for name, value in weights.items()}
    got, wanted = (torch.func.functional_call(LogProb(flow), weights, (x, c)) for flow in (fast, plain))
    torch.testing.assert_close(got, wanted, **EXACT)
    assert len(programs) == 1


def test_forward_mode_is_left_to_the_layers(programs):
    plain, fast = fused()
    x, c = data(C)
    results = []
    for model in (fast, plain):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            results.append(torch.autograd.forward_ad.unpack_dual(model.log_prob(dual, c)))
    torch.testing.assert_close(*results, **EXACT)
    assert not programs


def test_tracing_is_left_to_the_layers(programs):
    plain, fast = pair(nflows_flow("real nvp"))
    x = data(0)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(fast._transform, (x,), check_trace=False)
    assert not programs
    torch.testing.assert_close(traced(2 * x), plain._transform(2 * x), **EXACT)


def test_a_subclass_of_tensor_is_left_to_the_layers(programs):
    class Own(torch.Tensor):
        pass

    plain, fast = fused()
    x, c = data(C)
    got = fast.log_prob(x.as_subclass(Own), c)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), plain.log_prob(x, c), **EXACT)
    assert type(got) is Own and not programs


def test_hooks_of_all_modules_fire(programs):
    _, fast = fused()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    fast.log_prob(*data(C))
    assert seen.count("RandomPermutation") == 2 and not programs
    handle.remove()
    fast.log_prob(*data(C))
    assert len(programs) == 1


@pytest.mark.parametrize("number", range(5))
def test_hooks_of_a_transform_fire(number, programs):
    """It is called by itself then; its neighbours still run together."""
    plain, fast = fused()
    x, c = data(C)
    fast.log_prob(x, c)
    seen = []
    layer = fast._transform._transforms[number]
    handles = [
        layer.register_forward_hook(lambda *_: seen.append("after")),
        layer.register_forward_pre_hook(lambda *_: seen.append("before")),
    ]
    programs.clear()
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert seen == ["before", "after"] and programs
    assert "it has hooks" in str(flowkern.explain(fast))
    for handle in handles:
        handle.remove()
    programs.clear()
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert len(seen) == 2 and len(programs) == 1


@pytest.mark.parametrize("path", ["1.autoregressive_net", "1.autoregressive_net.blocks.0.linear"])
def test_hooks_inside_a_network_fire(path, programs):
    plain, fast = fused()
    x, c = data(C)
    seen = []
    fast._transform._transforms.get_submodule(path).register_full_backward_hook(lambda *_: seen.append(1))
    value = fast.log_prob(x.requires_grad_(), c)
    value.sum().backward()
    assert seen == [1]
    torch.testing.assert_close(value, plain.log_prob(x, c), **EXACT)


@pytest.mark.parametrize("where", ["_transform", "_distribution", "_embedding_net"])
def test_hooks_of_a_flows_parts_fire(where):
    _, fast = fused()
    seen = []
    fast.log_prob(*data(C))
    getattr(fast, where).register_forward_hook(lambda *_: seen.append(1))
    fast.log_prob(*data(C))
    assert seen == ([] if where == "_distribution" else [1])  # of which nflows calls log_prob


def test_another_backend_is_left_to_the_layers(programs):
    plain, fast = fused()
    x, c = data(C)
    with flowkern.backend("reference"):
        torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert len(programs) == 1
    with pytest.raises(RuntimeError, match="backend 'triton'"), flowkern.backend("triton"):
        fast.log_prob(x, c)
    assert len(programs) == 1


def test_where_one_call_is_slower_the_layers_run(programs, monkeypatch):
    plain, fast = fused()
    x, c = data(C)
    monkeypatch.setattr(program.Segment, "tensors", lambda self, x, context: None)
    torch.testing.assert_close(fast.log_prob(x, c), plain.log_prob(x, c), **EXACT)
    assert not programs


# Errors are those of the library


WRONG = {
    "features": lambda x, c: (x[:, 1:], c),
    "no context": lambda x, c: (x, None),
    "rows": lambda x, c: (x, c[1:]),
    "context": lambda x, c: (x, c[:, 1:]),
    "dtype": lambda x, c: (x.float(), c),
    "dtype of the context": lambda x, c: (x, c.float()),
    "one row": lambda x, c: (x[0], c),
    "three dimensions": lambda x, c: (x[None], c[None]),
    "no tensor": lambda x, c: ("x", c),
    "meta": lambda x, c: (x.to("meta"), c),
    "integers": lambda x, c: (x.long(), c),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["maf", "nsf"])
def test_errors_are_the_librarys(name, wrong):
    plain, fast = pair(nflows_flow(name))
    inputs = WRONG[wrong](*data(C))
    for method in ("log_prob", "_transform")[: 1 if wrong == "rows" else 2]:  # of which log_prob checks the rows
        results = []
        for model in (plain, fast):
            try:
                results.append(getattr(model, method)(*inputs))
            except Exception as error:
                results.append((type(error), str(error)))
        if isinstance(results[0], tuple) and isinstance(results[0][0], type):
            assert results[1][0] is results[0][0], results
        else:
            torch.testing.assert_close(*reversed(results), **EXACT)


def test_an_unexpected_context_is_left_to_nflows():
    for model in pair(nflows_flow("no context")):
        with pytest.raises(AttributeError, match="context_layer"):
            model.log_prob(*data(C))


def test_a_weight_that_does_not_fit_raises_as_before():
    for model in pair(nflows_flow("maf")):
        model.log_prob(*data(C))
        linear = model._transform._transforms[1].autoregressive_net.final_layer
        linear.weight.data = linear.weight.data[:, 1:]
        with pytest.raises(RuntimeError, match="size of tensor a|weight 3: expected 8 columns"):
            model.log_prob(*data(C))
