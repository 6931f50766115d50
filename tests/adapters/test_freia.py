"""FrEIA's coupling blocks on vectors and SequenceINN: the library's numbers, both ways, in one call."""

import copy
import inspect
import sys
import types

import pytest
import torch
from torch import nn

import flowkern

framework = pytest.importorskip("FrEIA.framework", reason="FrEIA is not installed")
blocks = pytest.importorskip("FrEIA.modules", reason="FrEIA is not installed")

D, C = 5, 3
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def subnet(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, outputs))


def randomised(model, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.5, generator=generator)
    return model.to(dtype).eval()


# name: (class, options)
BLOCKS = {
    "all in one": ("AllInOneBlock", {}),
    "dense": ("AllInOneBlock", {"permute_soft": True}),
    "reverse": ("AllInOneBlock", {"reverse_permutation": True, "affine_clamping": 1.3}),
    "dense reverse": ("AllInOneBlock", {"reverse_permutation": True, "permute_soft": True}),
    "learned": ("AllInOneBlock", {"learned_householder_permutation": 3}),
    "learned reverse": ("AllInOneBlock", {"learned_householder_permutation": 2, "reverse_permutation": True}),
    "exp": ("AllInOneBlock", {"global_affine_type": "EXP"}),
    "sigmoid": ("AllInOneBlock", {"global_affine_type": "SIGMOID"}),
    "glow": ("GLOWCouplingBlock", {"clamp": 1.5}),
    "glow tanh": ("GLOWCouplingBlock", {"clamp_activation": "TANH"}),
    "glow sigmoid": ("GLOWCouplingBlock", {"clamp_activation": "SIGMOID", "split_len": 0.3}),
    "rnvp": ("RNVPCouplingBlock", {}),
    "one-sided": ("AffineCouplingOneSided", {"split_len": 2}),
    "nice": ("NICECouplingBlock", {}),
}


def block(name, condition=False, dtype=torch.float64, **more):
    torch.manual_seed(0)
    cls, options = BLOCKS[name]
    dims = [(C,)] if condition else []
    return randomised(getattr(blocks, cls)([(D,)], dims, subnet_constructor=subnet, **options, **more), dtype)


def pair(model):
    fast = flowkern.accelerate(copy.deepcopy(model))
    assert flowkern.explain(fast).replaced
    return model, fast


def data(condition, rows=6, dtype=torch.float64):
    torch.manual_seed(2)
    x, c = torch.randn(rows, D, dtype=dtype), torch.randn(rows, C, dtype=dtype)
    return (x.requires_grad_(), [c.requires_grad_()] if condition else [])


@pytest.mark.parametrize("rev", [False, True])
@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_values_and_gradients(name, condition, rev, program_backend, programs):
    plain, fast = pair(block(name, condition))
    x, c = data(condition)
    programs.clear()
    results = []
    for model in (plain, fast):
        (y,), logabsdet = model((x,), *([c] if condition else []), rev=rev)
        outputs = [y, logabsdet] if isinstance(logabsdet, torch.Tensor) else [y]
        grads = torch.autograd.grad(
            sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs),
            [x, *c, *(p for p in model.parameters() if p.requires_grad)], allow_unused=True,
        )  # fmt: skip
        results.append((y, logabsdet, grads))
    assert len(programs) == 1
    torch.testing.assert_close(results[1][0], results[0][0], **EXACT)
    torch.testing.assert_close(results[1][1], results[0][1], **EXACT)
    for got, wanted in zip(results[1][2], results[0][2]):
        torch.testing.assert_close(got, torch.zeros_like(got) if wanted is None else wanted, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("name", BLOCKS)
def test_float32_is_no_further_from_float64(name):
    exact = block(name)
    x = data(False, 1024)[0]
    for rev in (False, True):
        (wanted,), logabsdet = exact((x,), rev=rev)
        errors = []
        for model in pair(block(name, dtype=torch.float32)):
            (y,), other = model((x.float(),), rev=rev)
            errors.append(
                max((y - wanted).abs().median(), (torch.as_tensor(other) - torch.as_tensor(logabsdet)).abs().median())
            )
        assert errors[1] <= 1.5 * errors[0] + 1e-6


def sequence(condition=False, dtype=torch.float64, **options):
    torch.manual_seed(0)
    flow = framework.SequenceINN(D, **options)
    given = {"cond": 0, "cond_shape": (C,)} if condition else {}
    for name in ("all in one", "glow", "nice"):
        cls, more = BLOCKS[name]
        flow.append(getattr(blocks, cls), subnet_constructor=subnet, **more, **given)
        flow.append(blocks.PermuteRandom)
        flow.append(blocks.AffineCouplingOneSided, subnet_constructor=subnet)
    return randomised(flow, dtype)


@pytest.mark.parametrize("condition", [False, True])
def test_a_sequence_runs_in_one_call(condition, program_backend, programs):
    plain, fast = pair(sequence(condition))
    assert "9 transforms in one call" in flowkern.explain(fast).replaced[0].note
    x, c = data(condition)
    programs.clear()
    wanted, got = plain(x, c or None), fast(x, c or None)
    torch.testing.assert_close(got, wanted, **EXACT)
    trained = [[p for p in model.parameters() if p.requires_grad] for model in (plain, fast)]
    grads = [torch.autograd.grad(r[0].sum() + (r[1] ** 2).sum(), [x, *c, *p]) for r, p in zip((wanted, got), trained)]
    torch.testing.assert_close(*grads, **EXACT)
    torch.testing.assert_close(fast(wanted[0], c or None, rev=True), (x, -wanted[1]), rtol=1e-9, atol=1e-9)
    assert len(programs) == 2


def test_a_block_without_a_step_splits_the_sequence(programs):
    torch.manual_seed(0)
    flow = sequence()
    flow.append(blocks.GINCouplingBlock, subnet_constructor=subnet)
    flow.append(blocks.AllInOneBlock, subnet_constructor=subnet, permute_soft=True)
    flow.append(blocks.AllInOneBlock, subnet_constructor=subnet)
    plain, fast = pair(randomised(flow))
    x = data(False)[0]
    programs.clear()
    wanted = plain(x)
    torch.testing.assert_close(fast(x), wanted, **EXACT)
    assert [len(program.steps) for program in programs] == [13, 6]
    torch.testing.assert_close(fast(wanted[0], rev=True), plain(wanted[0], rev=True), rtol=1e-9, atol=1e-9)
    assert "there is no step for it" in flowkern.explain(fast).replaced[0].note


def test_edits_are_seen():
    plain, fast = pair(sequence(True))
    x, c = data(True)
    fast(x, c)

    def permuted(flow):
        flow[0].w_perm.data, flow[0].w_perm_inv.data = flow[0].w_perm_inv.data.clone(), flow[0].w_perm.data.clone()

    def loaded(flow):
        state = flow.state_dict()
        order = torch.arange(D).roll(1)
        state.update({"module_list.1.perm": order, "module_list.1.perm_inv": order.argsort()})
        flow.load_state_dict(state)

    def clamped(flow):
        flow[0].clamp = 0.5

    def activated(flow):
        flow[3].f_clamp = torch.tanh

    def bent(flow):
        flow[5].subnet[1] = nn.SiLU()

    def strange(flow):
        flow[5].subnet[1] = nn.Softplus()

    for edit in (loaded, clamped, activated, bent, strange):
        before = fast(x, c)[0]
        edit(plain), edit(fast)
        torch.testing.assert_close(fast(x, c), plain(x, c), **EXACT)
        assert not torch.allclose(fast(x, c)[0], before), edit
    fast.zero_grad()
    permuted(plain), permuted(fast)
    flowkern.explain(fast)  # a change through .data is not counted
    torch.testing.assert_close(fast(x, c), plain(x, c), **EXACT)


@pytest.mark.parametrize("condition", [False, True])
def test_verified(condition):
    x, c = data(condition, 32, torch.float32)
    model = sequence(condition, torch.float32)
    result = flowkern.verify(model, (x, *c))
    assert result and result.layers == 7 and {"inverse", "log-det"} < {check.what for check in result.checks}
    assert flowkern.verify(block("all in one", condition, torch.float32), (x, *c)).layers == 1


def test_copies_and_states(programs):
    plain, fast = pair(sequence())
    x = data(False)[0]
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.5)
    plain.load_state_dict(twin.state_dict())
    programs.clear()
    torch.testing.assert_close(twin(x), plain(x), **EXACT)
    assert len(programs) == 1
    assert not flowkern.explain(flowkern.restore(twin)).replaced
    torch.testing.assert_close(twin(x), plain(x), **EXACT)


class Shifted(blocks.GLOWCouplingBlock):
    def _coupling1(self, x1, u2, rev=False):
        y, j = super()._coupling1(x1, u2, rev)
        return y + 1, j


def _stretched(layer):
    layer.w_perm.data *= 1.01
    return layer


def convolution(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 1)


LEFT = {
    "it subtracts the mean of its log-scales": lambda: block("all in one", gin_block=True),
    "its w_perm is not orthogonal": lambda: _stretched(block("dense")),
    "it transforms images": lambda: blocks.AllInOneBlock(
        [(4, 3, 3)], subnet_constructor=lambda i, o: nn.Conv2d(i, o, 1)
    ),
    "its clamp has no kernel": lambda: blocks.GLOWCouplingBlock(
        [(D,)], subnet_constructor=subnet, clamp_activation=torch.nn.functional.softsign
    ),
    "there is no fused kernel for this layer": lambda: blocks.GINCouplingBlock([(D,)], subnet_constructor=subnet),
    "Shifted overrides _coupling1": lambda: Shifted([(D,)], subnet_constructor=subnet),
    "its network Sequential calls mish": lambda: blocks.NICECouplingBlock(
        [(D,)], subnet_constructor=lambda i, o: nn.Sequential(nn.Linear(i, 8), nn.Mish(), nn.Linear(8, o))
    ),
}


@pytest.mark.parametrize("reason", LEFT)
def test_a_block_that_has_no_program_is_left_with_a_reason(reason):
    layer = LEFT[reason]()
    with pytest.warns(UserWarning, match="model is unchanged"):
        flowkern.accelerate(layer)
    assert reason in flowkern.explain(layer).left[0].note


def test_inputs_that_the_program_does_not_take_are_the_librarys():
    plain, fast = pair(block("all in one", True, torch.float32))
    x, c = data(True, dtype=torch.float32)
    for model in (plain, fast):
        with pytest.raises(RuntimeError, match="the same dtype"):
            model((x.double(),), c)
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            model((x,), [])
    flow = sequence(force_tuple_output=True)
    (got,), logabsdet = flowkern.accelerate(copy.deepcopy(flow))((data(False)[0],))
    torch.testing.assert_close(((got,), logabsdet), flow((data(False)[0],)), **EXACT)


def test_a_copy_in_anomalib_is_recognised(programs):
    """Its condition is None by default, and its activations are functions."""
    source = inspect.getsource(sys.modules[blocks.AllInOneBlock.__module__])
    source = source.replace("from . import", "from FrEIA.modules import").replace("c=[], rev=", "c=(), rev=")
    source = source.replace("x1c = torch.cat([x1, *c], 1)", "x1c = torch.cat([x1, *(c or ())], 1)")
    module = types.ModuleType("anomalib.models.components.flow.all_in_one_block")
    exec(compile(source, "all_in_one_block.py", "exec"), vars(module))
    torch.manual_seed(0)
    plain, fast = pair(randomised(module.AllInOneBlock([(D,)], subnet_constructor=subnet)))
    x = data(False)[0]
    programs.clear()
    (wanted,), logabsdet = plain((x,), None)
    torch.testing.assert_close(fast((x,), None), ((wanted,), logabsdet), **EXACT)
    assert len(programs) == 1


def test_few_rows_and_many_weights_are_the_librarys(programs):
    """There, its products are faster."""
    torch.manual_seed(0)
    flow = framework.SequenceINN(D)
    for _ in range(2):
        flow.append(blocks.GLOWCouplingBlock, cond=0, cond_shape=(C,), subnet_constructor=wide)
        flow.append(blocks.PermuteRandom)
    plain, fast = pair(flow.double())
    for rows, count in ((2, 0), (64, 1)):
        x, c = data(True, rows)
        for rev in (False, True):
            programs.clear()
            torch.testing.assert_close(fast(x, c, rev=rev), plain(x, c, rev=rev), **EXACT)
            torch.testing.assert_close(fast[0]((x,), c, rev=rev), plain[0]((x,), c, rev=rev), **EXACT)
            assert len(programs) == 2 * count


def wide(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, outputs))
