"""A differentiable callable in many surroundings, each against a twin in plain PyTorch.

    CASE = Case(model=lambda: …, twin=lambda: …, inputs=lambda rows: (torch.randn(rows, 3),),
                refuses={"jit trace": (NotImplementedError, "adaptive steps")})

    @pytest.mark.parametrize("surrounding", SURROUNDINGS)
    def test_surroundings(surrounding):
        CASE.check(surrounding)

The model gets the twin's weights. In each surrounding it has the twin's values, dtypes and gradients, or it
raises the error that the case says: nothing is silently different.
"""

import copy
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from tests.surroundings import derivatives, modules
from tests.surroundings.values import eager, values


class Calls(torch.nn.Module):
    """A function of inputs and parameters as a module, for what has no parameters of its own."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function, self.names = function, list(parameters)
        for name, value in parameters.items():
            self.register_parameter(name, torch.nn.Parameter(value.clone()))

    def forward(self, *inputs):
        return self.function(*inputs, *(getattr(self, name) for name in self.names))


@dataclass
class Case:
    """What is run.

    model, twin: functions that make a module; both have parameters of the same names and shapes, and a tensor or
        a tuple of tensors as output.
    inputs: the inputs for a number of rows, float64, each a tensor whose first dimension is the rows.
    refuses: surrounding → (error, pattern of its message).
    rtol: how far results may be from the twin's, relative to the largest; of some surroundings, by `rtols`.
    as_twin: whether the model may also raise an error wherever the twin does.
    """

    model: object
    twin: object
    inputs: object
    refuses: dict = field(default_factory=dict)
    rtol: float = 1e-9
    rtols: dict = field(default_factory=dict)
    as_twin: bool = False

    def check(self, surrounding):
        """Raise unless model and twin agree in a surrounding, by its name, or the model refuses it as it should."""
        torch.manual_seed(0)
        twin, model = self.twin().double(), self.model().double()
        model.load_state_dict(twin.state_dict())
        run = SURROUNDINGS[surrounding]
        if surrounding in self.refuses:
            error, message = self.refuses[surrounding]
            with pytest.raises(error, match=message):
                run(model, self.inputs)
            return
        try:
            got = run(model, self.inputs)
        except Exception:
            if not self.as_twin:
                raise
            with pytest.raises(Exception):  # noqa: B017, PT011  (it is PyTorch's, or the library's)
                run(twin, self.inputs)
            return
        want = TWINS.get(surrounding, run)(copy.deepcopy(twin), self.inputs)
        rtol = max(self.rtols.get(surrounding, self.rtol), LOOSE.get(surrounding, 0))
        theirs = self._of_twin(surrounding, twin, want)
        assert len(got) == len(want) > 0
        for a, b, other in zip(got, want, theirs, strict=True):
            assert a.dtype in self._dtypes(surrounding, b, other) and a.shape == b.shape, (a.dtype, b.dtype, a.shape)
            scale = b.abs().nan_to_num().max().item() + 1e-3 if b.numel() else 1.0
            lost = (other.double() - b.double()).abs().max().item() if surrounding in HALF else 0.0
            torch.testing.assert_close(a.to(b.dtype), b, rtol=0, atol=rtol * scale + 4 * lost, equal_nan=True)

    def _of_twin(self, surrounding, twin, want):
        """What the twin itself gives in half precision, of which PyTorch has not all operations."""
        if surrounding not in HALF:
            return want
        try:
            return SURROUNDINGS[surrounding](twin, self.inputs)
        except RuntimeError:
            return want

    def _dtypes(self, surrounding, wanted, of_twin):
        """Those that a result may have; a library's layer may compute in half precision under autocast."""
        if self.as_twin and surrounding in HALF:
            return (of_twin.dtype, wanted.dtype) if surrounding == "autocast" else (of_twin.dtype,)
        return (wanted.dtype,)


SURROUNDINGS = {
    "eager": eager,
    "replica": modules.replica,
    "functional_call": modules.functional_call,
    "parametrization": modules.parametrized,
    "frozen weights": derivatives.frozen,
    "inputs without gradients": derivatives.inputs_without_gradients,
    "checkpoint": derivatives.checkpointed,
    "reentrant checkpoint": derivatives.checkpointed_by_reentry,
    "saved tensors elsewhere": derivatives.saved_elsewhere,
    "two backwards": derivatives.twice,
    "batched gradients": derivatives.batched_gradients,
    "vmap of gradients": partial(derivatives.batched_gradients, mapped=True),
    "second derivatives": derivatives.second_derivatives,
    "jacrev": derivatives.torch_func,
    "jacfwd": partial(derivatives.torch_func, transform=torch.func.jacfwd),
    "vmap": derivatives.vmapped,
    "ensemble": derivatives.ensemble,
    "forward mode": derivatives.forward_mode,
    "complex": derivatives.complex_state,
    "bfloat16": derivatives.half,
    "float16": partial(derivatives.half, dtype=torch.float16),
    "autocast": derivatives.autocast,
    "jit trace": modules.traced,
    "export": modules.exported,
    "compile": modules.compiled,
    "without a graph": derivatives.without_a_graph,
    "strided": modules.strided,
    "empty": modules.empty,
    "copy": modules.copied,
    "threads": modules.threads,
    "fork": modules.forked,
}
# What the twin does in place of the same: it need not withstand the surrounding itself.
TWINS = {
    "replica": eager,
    "checkpoint": eager,
    "reentrant checkpoint": eager,
    "saved tensors elsewhere": eager,
    "batched gradients": derivatives.gradients_one_by_one,
    "vmap of gradients": derivatives.gradients_one_by_one,
    "jacrev": derivatives.jacobian,
    "jacfwd": derivatives.jacobian,
    "vmap": derivatives.batch_by_batch,
    "ensemble": derivatives.looped,
    "forward mode": derivatives.tangents,
    "bfloat16": derivatives.rounded,
    "float16": partial(derivatives.rounded, dtype=torch.float16),
    "autocast": partial(derivatives.rounded, dtype=torch.float32),
    "jit trace": partial(values, rows=5),
    "export": partial(values, rows=5),
    "compile": lambda model, inputs: (*eager(model, inputs), *eager(model, inputs, rows=5)),
    "empty": modules.none_of_three,
    "copy": eager,
    "threads": modules.one_after_another,
    "fork": values,
}
# Where few digits are kept; of half precision no fewer than the twin keeps of them.
HALF = ("bfloat16", "float16", "autocast")
LOOSE = {"bfloat16": 0.1, "float16": 0.1, "autocast": 0.1, "compile": 1e-8}
