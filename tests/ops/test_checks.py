"""Checks that depend on data, where data is not looked at: written to unseen, compiled, exported, on a GPU."""

from dataclasses import replace

import pytest
import torch

from flowkern.flows import NSF, AutoregressiveNSF
from flowkern.ops import SplineElement, _arguments, masked_autoregressive, rational_quadratic_spline
from tests.cases.coupling import AFFINE, SPLINE, TYPICAL
from tests.cases.masked_autoregressive import CASES as MASKED

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=TYPICAL)
def case(request):
    return TYPICAL[request.param]


@pytest.mark.parametrize("write", [lambda i: i.numpy(), lambda i: i.data], ids=["numpy", "data"])
def test_an_index_is_checked_again_when_it_was_written_to_unseen(on_backend, case, write):
    x, params = case.tensors()
    index = torch.tensor([4, 0, 1])
    call = replace(case, select="all", options={**case.options, "index": index})
    call(x, params)
    write(index)[2] = 4
    with pytest.raises(RuntimeError, match="index: names a feature twice"):
        call(x, params)


class _Call(torch.nn.Module):
    """A call of the case with some of its arguments in buffers."""

    def __init__(self, case, **tensors):
        super().__init__()
        self.case, self.names = replace(case, select="all"), tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x, params):
        given = {name: getattr(self, name) for name in self.names}
        return replace(self.case, options={**self.case.options, **given})(x, params)


_MASK, _INDEX, _BOUND = torch.tensor([True, False, True, False, True, False]), torch.tensor([4, 0, 1]), torch.ones(3)
# name: (what is right, what is not)
_WRONG = {
    "mask": (_MASK, (_MASK | True, _MASK & False)),
    "index": (_INDEX, (torch.tensor([4, 0, 4]),)),
    "bound": (_BOUND, [torch.tensor([1.0, bad, 1.0]) for bad in (NAN, INF, 0.0, -1.0)]),
}


@pytest.mark.parametrize("name", _WRONG)
@pytest.mark.parametrize("compiler", ["aot_eager", "export"])
def test_compiled_code_checks_data(on_backend, backend, compiler, name):
    """By an error, or where the reference looks at a bound, by NaN."""
    case = AFFINE if name == "mask" else SPLINE
    case = replace(case, options=case.options | ({"index": _INDEX} if name == "bound" else {}))
    x, params = case.tensors()
    good, wrong = _WRONG[name]
    call = _Call(case, **{name: good.clone()})
    torch.compiler.reset()
    if compiler == "export":
        code = torch.export.export(call, (x, params)).module()
    else:
        code = torch.compile(call, fullgraph=True, backend=compiler)
    torch.testing.assert_close(code(x, params), call(x, params))
    for bad in wrong:
        getattr(code, name).copy_(bad)
        if name == "bound" and backend == "reference":
            y, logabsdet = code(x, params)
            assert y[:, _INDEX[1]].isnan().all() and logabsdet.isnan().all()
        else:
            with pytest.raises(RuntimeError, match=f"{name}: "):
                code(x, params)


def test_what_shapes_tell_is_checked_when_code_is_compiled(case):
    x, params = case.tensors()
    for name, value in (("mask", torch.ones(2, dtype=torch.bool)), ("index", torch.tensor([0, 1, 0]))):
        compiled = torch.compile(_Call(case, **{name: value}), fullgraph=True, backend="eager")
        with pytest.raises(Exception, match=f"{name}: params has 3 transformed features, but x has 2 in all"):
            compiled(x[:, :2], params)


def test_an_index_that_no_kernel_may_read():
    """On a GPU nothing waits for the index to be looked at: where it is wrong kernels get -1, and give NaN."""
    index = torch.tensor([4, 0, 1])
    assert torch.equal(_arguments._distinct_or_none(index), index)
    known = _arguments._distinct_or_none(index)
    assert _arguments._distinct_or_none(index) is known  # it costs once
    index[2] = 4
    assert torch.equal(_arguments._distinct_or_none(index), torch.full((3,), -1))


@pytest.mark.parametrize("bound", [1e39, 1e-46, (0.0, 1.0, 1.0, 1.0 + 1e-12), (-3e38, 3e38) * 2])
def test_an_interval_has_a_length_in_the_precision_of_x(on_backend, bound):
    """In float64 all of these do."""
    x, params = torch.zeros(2, 1), torch.zeros(2, 1, 25)
    with pytest.raises(ValueError, match="^bound: .*float32"):
        rational_quadratic_spline(x, params, bound=bound, tails="none")
    y, _ = rational_quadratic_spline(x.double() + 1e-50, params.double(), bound=bound, tails="none")
    assert y.isfinite().all()
    case = MASKED["k8"]
    x, tensors = case.tensors()
    element = SplineElement(1e39)
    with pytest.raises(ValueError, match="^bound: .*float32"):
        masked_autoregressive(x, case.layers(tensors), case.degrees(), element)


def test_bounds_of_features_are_checked_in_the_precision_of_x(on_backend):
    x, params, bound = torch.zeros(2, 1), torch.zeros(2, 1, 23), torch.tensor([1e39], dtype=torch.float64)
    with pytest.raises(ValueError, match="^bound: .*precision of x"):
        rational_quadratic_spline(x, params, bound=bound)
    rational_quadratic_spline(x.double(), params.double(), bound=bound)


@pytest.mark.parametrize("flow", [NSF, AutoregressiveNSF])
def test_a_flow_of_too_many_bins_is_not_made(flow):
    with pytest.raises(ValueError, match="^bins: expected at most 256, got 1001"):
        flow(2, bins=1001)
