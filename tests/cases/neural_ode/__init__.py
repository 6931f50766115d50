"""Named fields and solves for the neural ODE op.

    check(CASES["exact two hidden"], "cpu", torch.float32)

compares the solution and all gradients with the float64 reference, in units of what the reference itself
loses in the kernel's precision.
"""

from dataclasses import dataclass

import torch

import flowkern
from flowkern.ops import Activation, FieldLayer, TimeEmbedding, neural_ode
from tests.cases.tensors import lost
from tests.tolerances import assert_within, in_largest

LABEL = "ode"
# Most units by which any result of a solve may be wrong. One unit is the largest error of the reference in that
# precision, also when every tensor moves by one rounding, plus one rounding of the largest value.
# Measured worst over all cases: 7.1 in float64 and 0.73 in float32 on cpu, 12.4 and 2.3 on cuda, emulated.
TOLERANCES = {torch.float64: 16, torch.float32: 4}
TIMES = (0.0, 0.4, 1.0)


@dataclass(frozen=True)
class Case:
    """A field of given widths and a solve of it.

    trace: None, "exact", or the number of noise directions.  time: None, "concatenated" or "fourier".
    rows: the first layer's bias is one row per sample.
    """

    features: int = 3
    hidden: tuple = (7, 20)
    activations: tuple = ("tanh", "tanh")
    batch: int = 21
    method: str = "rk4"
    steps: int = 2
    checkpoint: int = 1
    gradient: str = "discrete"
    trace: str | int | None = "exact"
    kinetic: bool = False
    jacobian: bool = False
    time: str | None = "concatenated"
    rows: bool = False
    bias: bool = True
    times: tuple = TIMES

    def tensors(self, dtype=torch.float64, seed=0, device="cpu"):
        """y, t and parameters by name, and the noise."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        widths = (self.features, *self.hidden, self.features)
        tensors = {"y": normal(self.batch, self.features), "t": torch.tensor(self.times, dtype=torch.float64)}
        for l, (inputs, units) in enumerate(zip(widths, widths[1:])):
            tensors[f"weight{l}"] = normal(units, inputs) / inputs**0.5
            if self.bias:
                tensors[f"bias{l}"] = normal(*((self.batch,) if self.rows and l == 0 else ()), units) / 3
        if self.time:
            tensors["time"] = normal(widths[1], 1 if self.time == "concatenated" else 6) / 2
        if self.time == "fourier":
            tensors["frequencies"] = torch.arange(1, 4, dtype=torch.float64) * torch.pi
        noise = normal(self.trace, self.batch, self.features) if isinstance(self.trace, int) else None
        noise = None if noise is None else noise.to(device)
        return {k: v.to(device, dtype) for k, v in tensors.items()}, noise

    def layers(self, tensors):
        kinds = (*self.activations, "identity")
        sloped = {kind: Activation(kind, 0.3) for kind in ("leaky_relu", "elu")}
        return [
            FieldLayer(tensors[f"weight{l}"], tensors.get(f"bias{l}"), sloped.get(kind, kind))
            for l, kind in enumerate(kinds)
        ]

    def solve(self, tensors, noise, **changed):
        """The `Solution`."""
        time = TimeEmbedding(tensors["time"], tensors.get("frequencies")) if self.time else None
        trace = self.trace if noise is None else noise.to(tensors["y"].dtype)
        arguments = dict(
            method=self.method, steps=self.steps, time=time, trace=trace, kinetic=self.kinetic,
            jacobian=self.jacobian, gradient=self.gradient, checkpoint=self.checkpoint,
        )  # fmt: skip
        return neural_ode(tensors["y"], self.layers(tensors), tensors["t"], **(arguments | changed))


CASES = {
    "exact two hidden": Case(),
    "exact one hidden": Case(hidden=(40,), activations=("elu",), method="midpoint", time="fourier"),
    "exact three hidden": Case(hidden=(9, 33, 5), activations=("silu", "gelu", "softplus"), rows=True),
    "exact linear": Case(hidden=(), activations=(), kinetic=True, rows=True),
    "no trace": Case(trace=None, features=8, batch=70, method="euler", activations=("relu", "leaky_relu")),
    "kinetic alone": Case(trace=None, kinetic=True, activations=("sigmoid", "identity")),
    "noise": Case(trace=1, kinetic=True, jacobian=True, activations=("gelu", "silu"), method="heun2"),
    "two directions": Case(trace=2, hidden=(64, 64), batch=40, rows=True, method="rk4_classic"),
    "jacobian exact": Case(jacobian=True, kinetic=True, activations=("softplus", "sigmoid")),
    "dopri5": Case(method="dopri5", features=1, activations=("elu", "tanh"), bias=False, steps=1),
    "checkpoints": Case(steps=4, checkpoint=2, kinetic=True, rows=True),
    "backwards in time": Case(times=(1.0, 0.3, 0.3, -0.5), trace=1),
    "one sample": Case(batch=1, features=2),
    "one time": Case(times=(0.5,)),
    "no samples": Case(batch=0),
    "wide": Case(features=17, hidden=(65, 130), batch=33, steps=1),
    "adjoint": Case(gradient="adjoint", steps=3, kinetic=True, rows=True),
    "adjoint noise": Case(gradient="adjoint", steps=3, trace=1, jacobian=True, time="fourier", method="midpoint"),
    "adjoint one hidden": Case(gradient="adjoint", hidden=(40,), activations=("silu",), method="euler"),
}


def evaluate(case, tensors, noise, backend, **changed):
    """The solution's tensors, then the gradients of y, t and the parameters, by name."""
    tensors = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
    with flowkern.backend(backend):
        solution = case.solve(tensors, noise, **changed)
        results = {k: v for k, v in solution._asdict().items() if v is not None}
        generator = torch.Generator().manual_seed(7)
        cotangents = (torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in results.values())
        loss = sum((v * c.to(v.device)).sum() for v, c in zip(results.values(), cotangents))
        grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    gradients = {f"grad {k}": g for k, g in zip(tensors, grads) if g is not None}
    return {k: v.detach() for k, v in (results | gradients).items()}


def results(case, backend, dtype, seed=0, device="cpu"):
    """All results of a backend."""
    return evaluate(case, *case.tensors(dtype, seed, device), backend).values()


def check(case, backend, dtype, seed=0, device="cpu"):
    """Every result of backend within TOLERANCES units of the float64 reference."""
    tensors, noise = case.tensors(dtype, seed, device)
    want = evaluate(case, {k: v.double() for k, v in tensors.items()}, noise, "reference")
    got = evaluate(case, tensors, noise, backend)
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert value.dtype == dtype and value.shape == want[name].shape, name
    roundings = {k: torch.finfo(dtype).eps * (1 + v.abs().max()) for k, v in want.items() if v.numel()}
    errors = {k: (got[k].double() - want[k]).abs().max() for k in roundings}
    most = TOLERANCES[dtype]
    if all(errors[k] <= most * rounding for k, rounding in roundings.items()):
        for name, rounding in roundings.items():
            assert_within((errors[name] / rounding).item(), most, name)
        return  # what the reference loses is part of the unit, and need not be known
    of_reference = lost(lambda given: evaluate(case, given, noise, "reference"), tensors, want, 3, still=("t",))
    for name in roundings:
        assert_within(in_largest(got[name], want[name], of_reference[name]), most, name)
