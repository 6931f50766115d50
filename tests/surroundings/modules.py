"""What else is done with a module: copies, traces, threads, …: (model, inputs) → results."""

import copy
import io
import multiprocessing
import pickle
import threading
from functools import partial

import torch
from torch.nn.utils import parametrize

from tests.surroundings.values import derived, eager, leaves, outputs, trained


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
    weights = {name: w.detach().clone().requires_grad_() for name, w in trained(model).items()}
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
            weight = module._parameters[name]
            if weight is not None and weight.requires_grad:
                parametrize.register_parametrization(module, name, _Scaled())
    return eager(model, inputs)


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


def strided(model, inputs):
    """Inputs that lie in steps, backwards seen through a transpose, or all one row."""
    apart = eager(model, lambda rows: [x.repeat_interleave(2, 0)[::2] for x in inputs(rows)])
    across = eager(model, lambda rows: [x.mT.contiguous().mT if x.dim() > 1 else x for x in inputs(rows)])
    same = [x[:1].expand(x.shape) for x in inputs(3)]
    return *apart, *across, *(r.detach() for r in outputs(model, same))


def empty(model, inputs):
    return eager(model, inputs, rows=0)


def none_of_three(model, inputs):
    """What `empty` is equal to; the mean over no rows is NaN."""
    given = inputs(3)
    found = eager(model, lambda rows: given)
    some = len(found) - len(trained(model))
    outputs = (part[:0] if part.dim() else torch.full_like(part, torch.nan) for part in found[:some])
    return *outputs, *map(torch.zeros_like, found[some:])


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
