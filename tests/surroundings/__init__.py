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
import io
import multiprocessing
import pickle
import threading
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint


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
    """

    model: object
    twin: object
    inputs: object
    refuses: dict = field(default_factory=dict)
    rtol: float = 1e-9
    rtols: dict = field(default_factory=dict)

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
        got = run(model, self.inputs)
        want = TWINS.get(surrounding, run)(twin, self.inputs)
        rtol = max(self.rtols.get(surrounding, self.rtol), LOOSE.get(surrounding, 0))
        assert len(got) == len(want) > 0
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, b.dtype, a.shape, b.shape)
            scale = b.abs().nan_to_num().max().item() + 1e-3 if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=0, atol=rtol * scale, equal_nan=True)


# --- values and gradients -------------------------------------------------------------------------------


def outputs(call, inputs):
    """The outputs as a tuple."""
    result = call(*inputs)
    return result if isinstance(result, tuple) else (result,)


def loss(results):
    """A number that depends on every element in another way."""
    parts = []
    for result in results:
        weights = torch.linspace(1, 2, result.numel(), dtype=torch.float64, device=result.device)
        result = result.abs() if result.is_complex() else result
        parts.append((result.reshape(-1).double() * weights).sin().sum())
    return sum(parts)


def leaves(inputs):
    return tuple(x.detach().clone().requires_grad_() for x in inputs)


def derived(results, inputs, weights):
    """The outputs, and the gradients of a loss of them."""
    wanted = [*inputs, *(w for w in weights if w.requires_grad)]
    grads = torch.autograd.grad(loss(results), wanted, allow_unused=True, materialize_grads=True)
    return *(r.detach() for r in results), *grads


def eager(model, inputs, call=None, rows=3):
    inputs = leaves(inputs(rows))
    return derived(outputs(model if call is None else call, inputs), inputs, model.parameters())


# --- surroundings: (model, inputs) → results ------------------------------------------------------------


def replica(model, inputs):
    """What torch.nn.DataParallel calls: its tensors come from the parameters, and are attributes."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, made in copies.items():
        made._former_parameters = {}
        made._modules.update({name: copies.get(child) for name, child in module._modules.items()})
        for name, parameter in module._parameters.items():
            setattr(made, name, None if parameter is None else parameter.clone())
    return eager(model, inputs, copies[model])


def functional_call(model, inputs):
    """With other weights, which are gone before the backward."""
    weights = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}
    twice = {name: 1.5 * w for name, w in weights.items()}
    inputs = leaves(inputs(3))
    results = outputs(partial(torch.func.functional_call, model, twice), (inputs,))
    return derived(results, inputs, weights.values())


class _Scaled(torch.nn.Module):
    def forward(self, weight):
        return 1.5 * weight


def parametrized(model, inputs):
    for module in list(model.modules()):
        for name in list(module._parameters):
            if module._parameters[name] is not None:
                parametrize.register_parametrization(module, name, _Scaled())
    return eager(model, inputs)


def frozen(model, inputs):
    """Gradients of the inputs alone."""
    return eager(model.requires_grad_(False), inputs)


def inputs_without_gradients(model, inputs):
    """Gradients of the weights alone."""
    results = outputs(model, inputs(3))
    return derived(results, (), model.parameters())


def checkpointed(model, inputs):
    return eager(model, inputs, lambda *x: checkpoint(model, *x, use_reentrant=False))


def checkpointed_by_reentry(model, inputs):
    """Where gradients are accumulated alone."""
    inputs = leaves(inputs(3))
    results = outputs(lambda *x: checkpoint(model, *x, use_reentrant=True), inputs)
    loss(results).backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (*inputs, *model.parameters())]
    return *(r.detach() for r in results), *grads


def saved_elsewhere(model, inputs):
    """What is saved for the backward comes back in other memory."""
    inputs = leaves(inputs(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        results = outputs(model, inputs)
    return derived(results, inputs, model.parameters())


def twice(model, inputs):
    """Two backwards through one graph."""
    inputs = leaves(inputs(3))
    total = loss(outputs(model, inputs))
    wanted = *inputs, *model.parameters()
    first, second = (torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True) for _ in range(2))
    return [a + b for a, b in zip(first, second) if a is not None]


def batched_gradients(model, inputs, mapped=False):
    """Some rows of the Jacobian at once."""
    inputs = leaves(inputs(2))
    result = outputs(model, inputs)[0]
    rows = torch.eye(result.numel(), dtype=result.dtype)[:3].view(-1, *result.shape)
    wanted = *inputs, *model.parameters()

    def gradients(row, **options):
        options |= dict(retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.autograd.grad(result, wanted, row, **options)

    return torch.func.vmap(gradients)(rows) if mapped else gradients(rows, is_grads_batched=True)


def second_derivatives(model, inputs):
    inputs = leaves(inputs(3))
    wanted = *inputs, *model.parameters()
    grads = torch.autograd.grad(loss(outputs(model, inputs)), wanted, create_graph=True, allow_unused=True)
    total = sum(g.abs().square().sum() for g in grads if g is not None)
    return torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)


def torch_func(model, inputs, transform=torch.func.jacrev):
    """Jacobians by torch.func of the first output, by the inputs and the weights."""
    weights, inputs = {n: w.detach() for n, w in model.named_parameters()}, inputs(2)

    def call(weights, *inputs):
        return outputs(partial(torch.func.functional_call, model, weights), (inputs,))[0]

    found = transform(call, argnums=tuple(range(len(inputs) + 1)))(weights, *inputs)
    return *found[0].values(), *found[1:]


def vmapped(model, inputs):
    """Over a batch of batches."""
    batches = [torch.stack((x, x.flip(0), x / 2)) for x in inputs(3)]
    with torch.no_grad():
        return outputs(torch.func.vmap(model), batches)


def ensemble(model, inputs):
    """torch's recipe for models of one shape: their weights stacked, and vmap over them."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for w in other.parameters():
            w *= 1.5
    weights, buffers = torch.func.stack_module_state([model, other])

    def call(weights, buffers, inputs):
        return torch.func.functional_call(model, (weights, buffers), inputs)

    return outputs(torch.func.vmap(call, in_dims=(0, 0, None)), (weights, buffers, inputs(3)))


def looped(model, inputs):
    """What `ensemble` is equal to."""
    results = []
    for factor in (1.0, 1.5):
        member = copy.deepcopy(model)
        with torch.no_grad():
            for w in member.parameters():
                w *= factor
        results.append(outputs(member, inputs(3)))
    return [torch.stack(parts) for parts in zip(*results)]


def forward_mode(model, inputs):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, x.sin()) for x in inputs(3)]
        results = [forward_ad.unpack_dual(r) for r in outputs(model, duals)]
        return [part.detach() for r in results for part in r if part is not None]


def complex_state(model, inputs):
    """Inputs and weights."""
    return eager(model.to(torch.complex128), lambda rows: [torch.complex(x, x.sin()) for x in inputs(rows)])


def half(model, inputs, dtype=torch.bfloat16):
    return eager(model.to(dtype), lambda rows: [x.to(dtype) for x in inputs(rows)])


def autocast(model, inputs):
    model.float()
    inputs = leaves([x.float() for x in inputs(3)])
    with torch.autocast("cpu", torch.bfloat16):
        results = outputs(model, inputs)
    return derived(results, inputs, model.parameters())


def _rounded(model, inputs, dtype=torch.bfloat16, to=None):
    """By float64, of weights and inputs rounded to a dtype: what `half` and `autocast` come near to."""
    results = eager(model.to(dtype).double(), lambda rows: [x.to(dtype).double() for x in inputs(rows)])
    return [r.to(to or dtype) for r in results]


def traced(model, inputs):
    """Recorded by one batch, saved, loaded, and run with another, of another size."""
    script, memory = torch.jit.trace(model, tuple(inputs(2)), check_trace=False), io.BytesIO()
    torch.jit.save(script, memory)
    memory.seek(0)
    with torch.no_grad():
        return outputs(torch.jit.load(memory), inputs(5))


def exported(model, inputs):
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs(4))
    program = torch.export.export(model, tuple(inputs(4)), dynamic_shapes=(sizes,) if _takes_any(model) else sizes)
    with torch.no_grad():
        return outputs(program.module(), inputs(5))


def _takes_any(model):
    """Whether forward is (*inputs): then torch.export sees one argument, a tuple."""
    return bool(model.forward.__func__.__code__.co_flags & 0x04)


def compiled(model, inputs):
    """Forward and backward, and another size."""
    torch.compiler.reset()
    call = torch.compile(model, backend="aot_eager", dynamic=True)
    return *eager(model, inputs, call), *eager(model, inputs, call, rows=5)


def without_a_graph(model, inputs):
    """In inference mode and under no_grad, first and then with gradients."""
    with torch.inference_mode():
        first = outputs(model, inputs(3))
    with torch.no_grad():
        second = outputs(model, inputs(3))
    return *(r.clone() for r in first), *second, *eager(model, inputs)


def strided(model, inputs):
    """Inputs that lie in steps, backwards seen through a transpose, or all one row."""
    apart = eager(model, lambda rows: [x.repeat_interleave(2, 0)[::2] for x in inputs(rows)])
    across = eager(model, lambda rows: [x.mT.contiguous().mT if x.dim() > 1 else x for x in inputs(rows)])
    same = [x[:1].expand(x.shape) for x in inputs(3)]
    return *apart, *across, *(r.detach() for r in outputs(model, same))


def empty(model, inputs):
    return eager(model, inputs, rows=0)


def copied(model, inputs):
    """By deepcopy, and of its weights by pickle."""
    model = copy.deepcopy(model)
    model.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    return eager(model, inputs)


def threads(model, inputs):
    """Four at once, with a backward each."""
    results = [None] * 4

    def work(n):
        results[n] = eager(model, inputs, rows=n + 1)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [part for result in results for part in result]


def one_after_another(model, inputs):
    return [part for n in range(4) for part in eager(model, inputs, rows=n + 1)]


def forked(model, inputs):
    """In a child process, without gradients, which PyTorch has no threads for there."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work():
        torch.set_num_threads(1)
        with torch.no_grad():
            theirs.send([r.numpy() for r in outputs(model, inputs(3))])

    child = context.Process(target=work)
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        return [torch.from_numpy(r) for r in ours.recv()]
    finally:
        child.kill(), child.join()


def _values(model, inputs, rows=3):
    with torch.no_grad():
        return outputs(model, inputs(rows))


SURROUNDINGS = {
    "eager": eager,
    "replica": replica,
    "functional_call": functional_call,
    "parametrization": parametrized,
    "frozen weights": frozen,
    "inputs without gradients": inputs_without_gradients,
    "checkpoint": checkpointed,
    "reentrant checkpoint": checkpointed_by_reentry,
    "saved tensors elsewhere": saved_elsewhere,
    "two backwards": twice,
    "batched gradients": batched_gradients,
    "vmap of gradients": partial(batched_gradients, mapped=True),
    "second derivatives": second_derivatives,
    "jacrev": torch_func,
    "jacfwd": partial(torch_func, transform=torch.func.jacfwd),
    "vmap": vmapped,
    "ensemble": ensemble,
    "forward mode": forward_mode,
    "complex": complex_state,
    "bfloat16": half,
    "float16": partial(half, dtype=torch.float16),
    "autocast": autocast,
    "jit trace": traced,
    "export": exported,
    "compile": compiled,
    "without a graph": without_a_graph,
    "strided": strided,
    "empty": empty,
    "copy": copied,
    "threads": threads,
    "fork": forked,
}
# What the twin does in place of the same: it need not withstand the surrounding itself.
TWINS = {
    "replica": eager,
    "checkpoint": eager,
    "reentrant checkpoint": eager,
    "saved tensors elsewhere": eager,
    "ensemble": looped,
    "bfloat16": _rounded,
    "float16": partial(_rounded, dtype=torch.float16),
    "autocast": partial(_rounded, dtype=torch.float32),
    "jit trace": partial(_values, rows=5),
    "export": partial(_values, rows=5),
    "compile": lambda model, inputs: (*eager(model, inputs), *eager(model, inputs, rows=5)),
    "copy": eager,
    "threads": one_after_another,
    "fork": _values,
}
# Where few digits are kept.
LOOSE = {"bfloat16": 0.1, "float16": 0.1, "autocast": 0.1, "compile": 1e-8}
