"""`flowkern.profile`: what it says, what it advises, and that it leaves everything as it was. No speed is asserted."""

import dataclasses
import json
import sys

import normflows
import pytest
import torch
import zuko
from nflows import distributions, flows, transforms
from nflows.nn.nets import ResidualNet

import flowkern
from flowkern.profiling.advice import advice
from flowkern.profiling.result import LayerTime, Optimiser, Profile, Step, Work

SECONDS = 1e-3  # one round
WORKS = ["training step", "training step, fused Adam", "forward + backward", "log_prob", "sampling"]


def nflows_flow(dropout=0.0, batch_norm=False, embedding_net=None, middle=()):
    layers = [
        transforms.AffineCouplingTransform(
            torch.tensor([1, 0, 1]),
            lambda i, o: ResidualNet(
                i, o, 4, context_features=2, num_blocks=1, dropout_probability=dropout, use_batch_norm=batch_norm
            ),
        ),
        transforms.CompositeTransform([transforms.LULinear(3), *middle]),
        transforms.MaskedAffineAutoregressiveTransform(
            3, 4, context_features=2, num_blocks=1, dropout_probability=dropout
        ),
    ]
    normal = distributions.StandardNormal([3])
    return flows.Flow(transforms.CompositeTransform(layers), normal, embedding_net)


def normflows_flow(cls, **options):
    layers = [normflows.flows.MaskedAffineAutoregressive(3, 4, **options), normflows.flows.LULinearPermute(3)]
    return cls(normflows.distributions.DiagGaussian(3), layers)


# name → (flow, whether it has a context of 2 features, names of its layers in the order of log_prob)
CASES = {
    "nflows": lambda: (
        nflows_flow(embedding_net=torch.nn.Linear(2, 2)),
        True,
        ["_embedding_net", *(f"_transform._transforms.{i}" for i in ("0", "1._transforms.0", "2"))],
    ),
    "zuko": lambda: (
        zuko.flows.NSF(3, 2, transforms=2, hidden_features=(4,)),
        True,
        ["transform.transforms.0", "transform.transforms.1"],
    ),
    "normflows": lambda: (normflows_flow(normflows.NormalizingFlow), False, ["flows.1", "flows.0"]),
    "normflows with context": lambda: (
        normflows.ConditionalNormalizingFlow(
            normflows.distributions.DiagGaussian(3),
            [normflows.flows.MaskedAffineAutoregressive(3, 4, context_features=2)],
        ),
        True,
        ["flows.0"],
    ),
    "flowkern": lambda: (
        flowkern.flows.RealNVP(3, 2, transforms=2, hidden_features=(4,)),
        True,
        ["transform.transforms.0", "transform.transforms.1"],
    ),
    "flowkern without context": lambda: (
        flowkern.flows.MAF(3, transforms=1, hidden_features=(4,)),
        False,
        ["transform.transforms.0"],
    ),
}


def inputs(context=True, rows=5):
    return torch.randn(rows, 3), torch.randn(rows, 2) if context else None


def profiled(flow, context=True, **options):
    return flowkern.profile(flow, *inputs(context), seconds=SECONDS, **options)


@pytest.mark.parametrize("case", CASES)
def test_has_every_work_and_layer(case):
    flow, context, layers = CASES[case]()
    found = profiled(flow, context)
    assert [work.name for work in found.works] == WORKS
    assert [layer.name for layer in found.layers] == layers
    assert (found.model, found.rows, found.few) == (type(flow).__name__, 5, 1)
    times = [t for work in found.works for t in dataclasses.astuple(work)[1:6]]
    times += [t for layer in found.layers for t in (layer.plain, layer.accelerated)]
    assert all(t > 0 for t in times)
    assert found.advice and not found.notes


@pytest.mark.parametrize("case", CASES)
def test_shares_sum_to_one(case):
    flow, context, _ = CASES[case]()
    found = profiled(flow, context)
    assert list(found.steps) == ["plain", "accelerated"]
    for step in found.steps.values():
        assert sum(dataclasses.astuple(step)) == pytest.approx(1)
        assert min(dataclasses.astuple(step)) >= 0
    assert sum(layer.plain_share for layer in found.layers) == pytest.approx(1)
    assert sum(layer.accelerated_share for layer in found.layers) == pytest.approx(1)


def test_reads_as_a_dictionary_and_as_text(capsys):
    found = profiled(nflows_flow())
    figures = json.loads(json.dumps(found.as_dict()))
    assert figures["works"][0]["name"] == "training step"
    assert figures["optimiser"]["adam"] == found.optimiser.adam
    for text in (*WORKS, "AffineCouplingTransform", "optimiser", *(line.split(":")[0] for line in found.advice)):
        assert text in str(found)
    found.show()
    assert "What would help next" in capsys.readouterr().out


def test_figures_have_three_digits_and_no_exponent():
    text = str(dataclasses.replace(CALM, works=(work("log_prob", plain=1.2345, accelerated=1e-3, few=1.234e-4),)))
    assert "1234 ×" in text and " 0.123" in text and "e+" not in text


def test_needs_no_rich(monkeypatch, capsys):
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    found = profiled(nflows_flow())
    found.show()
    assert capsys.readouterr().out == f"{found}\n"


def everything(flow, *tensors):
    """What a profile must not change: tensors, and the rest."""
    held = [*flow.state_dict().values(), *tensors]
    grads = [weight.grad for weight in flow.parameters()]
    values = [t.clone() for t in (*held, *grads, torch.get_rng_state()) if t is not None]
    modules = [(module.training, list(module.__dict__)) for module in flow.modules()]
    return values, ([t._version for t in held], [g is None for g in grads], modules, torch.get_num_threads())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["nflows", "zuko", "flowkern"])
def test_changes_nothing(case, training, mode):
    flow = CASES[case]()[0].train(training)
    x, c = inputs()
    next(flow.parameters()).grad = torch.ones_like(next(flow.parameters()))
    before = everything(flow, x, c)
    with mode():
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        flowkern.profile(flow, x, c, seconds=SECONDS)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == inside
    after = everything(flow, x, c)
    assert all(map(torch.equal, after[0], before[0])) and after[1] == before[1]


def test_an_accelerated_flow_stays_accelerated():
    flow = flowkern.accelerate(nflows_flow())
    before = str(flowkern.explain(flow))
    assert profiled(flow).accelerated
    assert str(flowkern.explain(flow)) == before


def test_plain_is_restored_and_accelerated_is_accelerated(monkeypatch):
    seen = []
    original = flowkern.profiling.measure

    def spy(library, plain, fast, *rest):
        seen.extend(flowkern.explain(flow) for flow in (plain, fast))
        return original(library, plain, fast, *rest)

    monkeypatch.setattr(flowkern.profiling, "measure", spy)
    profiled(flowkern.accelerate(nflows_flow()))
    plain, fast = seen
    assert not plain.replaced and plain.replaceable
    assert fast.replaced and not fast.replaceable


def test_a_layer_left_to_its_library_says_why():
    found = profiled(nflows_flow(dropout=0.5))
    reasons = {layer.kind: layer.reason for layer in found.layers}
    assert "dropout" in reasons["MaskedAffineAutoregressiveTransform"]
    layers = profiled(nflows_flow(middle=[transforms.PointwiseAffineTransform(1.0, 2.0), transforms.Sigmoid()])).layers
    assert "no fused kernel" in {layer.kind: layer.reason for layer in layers}["Sigmoid"]


def test_without_trained_parameters_there_is_no_training_step():
    found = profiled(nflows_flow().requires_grad_(False))
    assert [work.name for work in found.works] == ["log_prob", "sampling"]
    assert found.steps == {} and found.optimiser is None
    assert "training" not in str(found).split("What would help")[0].split("A training step")[0]


def test_batch_normalisation_is_measured_at_two_rows():
    assert profiled(nflows_flow(batch_norm=True)).few == 2


class NoInverse(transforms.Transform):
    def forward(self, inputs, context=None):
        return inputs, inputs.new_zeros(len(inputs))


def test_says_why_sampling_is_not_timed():
    found = profiled(nflows_flow(middle=[NoInverse()]))
    assert "sampling" not in [work.name for work in found.works]
    assert found.notes == ("Sampling is not timed: InverseNotAvailable",)
    assert found.notes[0] in str(found)


def test_one_row_is_enough():
    found = flowkern.profile(nflows_flow(), *inputs(rows=1), seconds=SECONDS)
    assert (found.rows, found.few) == (1, 1)


class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nflows_flow()


X, C = torch.zeros(5, 3), torch.zeros(5, 2)


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (TypeError, "model: expected a torch.nn.Module or an object that holds one, got int", (1, X)),
        (TypeError, "model: expected a flow .* got Linear$", (torch.nn.Linear(3, 3), X)),
        (TypeError, "model: expected a flow .* got Wrapped, whose submodule 'net' is one", (Wrapped(), X)),
        (TypeError, "batch: expected a floating-point tensor, got list", (nflows_flow(), [1.0])),
        (TypeError, "batch: expected a floating-point tensor, got torch.int64", (nflows_flow(), X.long())),
        (ValueError, r"batch: expected shape \(N, features\) with N > 0, got \(0, 3\)", (nflows_flow(), X[:0])),
        (ValueError, r"batch: expected shape .* got \(3,\)", (nflows_flow(), X[0])),
        (TypeError, "context: expected a tensor or None, got list", (nflows_flow(), X, [1.0])),
        (ValueError, r"context: expected shape \(5, …\) as batch, got \(4, 2\)", (nflows_flow(), X, C[:4])),
        (ValueError, "batch, context: the model's log_prob raised ", (nflows_flow(), X[:, :2], C)),
    ],
)
def test_errors_name_the_argument(error, message, arguments):
    with pytest.raises(error, match=message):
        flowkern.profile(*arguments)


@pytest.mark.parametrize(
    "error, seconds", [(TypeError, "1"), (TypeError, True), (ValueError, 0), (ValueError, float("nan"))]
)
def test_errors_name_seconds(error, seconds):
    with pytest.raises(error, match="seconds: expected a (positive )?number, got "):
        flowkern.profile(nflows_flow(), X, C, seconds=seconds)


# --- advice, on made-up figures ---------------------------------------------------------------------------


def work(name, plain=10e-3, accelerated=5e-3, few=1e-3, quartiles=(1.9, 2.1)):
    return Work(name, plain, accelerated, 2 * few, few, plain / accelerated, quartiles)


def layer(name="t.0", kind="Coupling", share=0.5, reason=""):
    return LayerTime(name, kind, 2e-3, 1e-3, share, share, "accelerated: forward", reason)


CALM = Profile(
    model="Flow", rows=512, few=1, device="cpu", dtype="float32", threads=2, cores=2, rounds=20, accelerated=True,
    works=tuple(map(work, WORKS)), steps={"plain": Step(0.02, 0.2, 0.78), "accelerated": Step(0.04, 0.2, 0.76)},
    optimiser=Optimiser(1e-3, 2e-4), layers=(layer(), layer("t.1")),
)  # fmt: skip


def advised(**changes):
    return advice(dataclasses.replace(CALM, **changes))


def test_nothing_stands_out():
    assert len(advised()) == 1 and "Nothing stands out" in advised()[0]


def test_fused_adam_is_advised_where_the_optimiser_takes_long():
    steps = CALM.steps | {"accelerated": Step(0.4, 0.2, 0.4)}
    (said,) = advised(steps=steps)
    assert "fused=True" in said and "40%" in said and "1 ms" in said and "0.2 ms" in said
    assert "fused" not in advised(steps=steps, optimiser=Optimiser(1e-3, None))[0]
    assert "fused" not in advised(steps=steps, optimiser=Optimiser(1e-3, 2e-3))[0]


def test_larger_batches_are_advised_where_the_cost_is_fixed():
    works = (work("log_prob", few=4e-3), work("sampling"))
    (said,) = advised(works=works)
    assert "log_prob 80%" in said and "sampling" not in said and "larger batches" in said
    assert "larger batches" not in advised(works=works, rows=1)[0]


def test_layers_that_are_not_accelerated_are_named_with_the_reason():
    left = [layer(f"t.{i}", "Sigmoid", 0.2, "there is no fused kernel") for i in (2, 3)]
    (said,) = advised(layers=(layer(), *left))
    assert "Sigmoid is not accelerated (there is no fused kernel)" in said and "40%" in said and "t.2, t.3" in said
    assert "Sigmoid" not in advised(layers=(layer(), layer("t.2", "Sigmoid", 0.01, "no kernel")))[0]


def test_says_that_nothing_is_accelerated():
    (said,) = advised(accelerated=False)
    assert "replaces nothing" in said


def test_says_where_the_accelerated_flow_is_slower():
    slow = work("sampling", plain=4e-3, accelerated=5e-3, quartiles=(0.7, 0.9))
    (said,) = advised(works=(slow,))
    assert "1.25 times as long for sampling" in said
    assert "Slower" not in advised(works=(dataclasses.replace(slow, speedup_quartiles=(0.7, 1.1)),))[0]


def test_threads_are_advised_where_cores_are_idle_or_too_few():
    assert "torch.set_num_threads(8)" in advised(cores=8)[0]
    assert "torch.set_num_threads(1)" in advised(cores=1)[0]
    fixed = tuple(work(name, few=5e-3) for name in WORKS)
    assert not any("threads" in said for said in advised(cores=8, works=fixed))
    assert "threads" not in advised(cores=8, device="cuda:0")[0]


def test_says_that_few_rounds_are_rough():
    assert "one round" in advised(rounds=1)[0]
