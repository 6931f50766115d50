"""Other ways to derivatives, and other dtypes: (model, inputs) → results."""

import copy
from functools import partial

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tests.surroundings.values import derived, eager, leaves, loss, outputs, trained


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
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (*inputs, *trained(model).values())]
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
    wanted, options = (*inputs, *trained(model).values()), dict(retain_graph=True, allow_unused=True)
    first, second = (torch.autograd.grad(total, wanted, materialize_grads=True, **options) for _ in range(2))
    return [a + b for a, b in zip(first, second)]


def batched_gradients(model, inputs, mapped=False):
    """Some rows of the Jacobian at once."""
    inputs = leaves(inputs(2))
    result = outputs(model, inputs)[0]
    rows = torch.eye(result.numel(), dtype=result.dtype)[:3].view(-1, *result.shape)
    wanted = *inputs, *trained(model).values()

    def gradients(row, **options):
        options |= dict(retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.autograd.grad(result, wanted, row, **options)

    if mapped:
        return torch.func.vmap(gradients)(rows)
    grads = zip(gradients(rows, is_grads_batched=True), wanted)
    return [g if g.dim() > w.dim() else g.expand(3, *g.shape) for g, w in grads]  # zeros are of one row alone


def gradients_one_by_one(model, inputs):
    """What `batched_gradients` is equal to."""
    inputs = leaves(inputs(2))
    result = outputs(model, inputs)[0]
    wanted, options = (*inputs, *trained(model).values()), dict(retain_graph=True, allow_unused=True)
    rows = [torch.autograd.grad(entry, wanted, materialize_grads=True, **options) for entry in result.flatten()[:3]]
    return [torch.stack(parts) for parts in zip(*rows)]


def second_derivatives(model, inputs):
    inputs = leaves(inputs(3))
    wanted = *inputs, *trained(model).values()
    grads = torch.autograd.grad(loss(outputs(model, inputs)), wanted, create_graph=True, allow_unused=True)
    total = sum(g.abs().square().sum() for g in grads if g is not None)
    return torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)


def torch_func(model, inputs, transform=torch.func.jacrev):
    """Jacobians by torch.func of the first output, by the inputs and the weights."""
    weights, inputs = {n: w.detach() for n, w in trained(model).items()}, inputs(2)

    def call(weights, *inputs):
        return outputs(partial(torch.func.functional_call, model, weights), (inputs,))[0]

    found = transform(call, argnums=tuple(range(len(inputs) + 1)))(weights, *inputs)
    return *found[0].values(), *found[1:]


def jacobian(model, inputs):
    """What `torch_func` is equal to."""
    inputs = leaves(inputs(2))
    result = outputs(model, inputs)[0]
    wanted, options = (*trained(model).values(), *inputs), dict(retain_graph=True, allow_unused=True)
    rows = [torch.autograd.grad(entry, wanted, materialize_grads=True, **options) for entry in result.flatten()]
    return [torch.stack(parts).view(*result.shape, *w.shape) for w, parts in zip(wanted, zip(*rows))]


def vmapped(model, inputs):
    """Over a batch of batches."""
    batches = [torch.stack((x, _turned(x), _halved(x))) for x in inputs(3)]
    with torch.no_grad():
        return outputs(torch.func.vmap(model), batches)


def batch_by_batch(model, inputs):
    """What `vmapped` is equal to."""
    with torch.no_grad():
        results = [outputs(model, [change(x) for x in inputs(3)]) for change in (torch.clone, _turned, _halved)]
        return [torch.stack(parts) for parts in zip(*results)]


def _turned(x):
    return x.flip(0)


def _halved(x):
    return x / 2


def ensemble(model, inputs):
    """torch's recipe for models of one shape: their weights stacked, and vmap over them."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for w in trained(other).values():
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
            for w in trained(member).values():
                w *= factor
        results.append(outputs(member, inputs(3)))
    return [torch.stack(parts) for parts in zip(*results)]


def forward_mode(model, inputs):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, x.sin()) for x in inputs(3)]
        results = [forward_ad.unpack_dual(r) for r in outputs(model, duals)]
        return [part.detach() for r, t in results for part in (r, torch.zeros_like(r) if t is None else t)]


def tangents(model, inputs):
    """What `forward_mode` is equal to, by two backwards."""
    inputs = leaves(inputs(3))
    results, found = outputs(model, inputs), []
    for result in results:
        result = result + 0 * sum(x.sum() for x in inputs)  # some depend on no input
        v = torch.zeros_like(result, requires_grad=True)
        grads = torch.autograd.grad(result, inputs, v, create_graph=True, allow_unused=True, materialize_grads=True)
        total = sum((g * x.detach().sin()).sum() for g, x in zip(grads, inputs)) + 0 * v.sum()
        found += [result.detach(), *torch.autograd.grad(total, v, retain_graph=True)]
    return found


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


def rounded(model, inputs, dtype=torch.bfloat16, to=None):
    """By float64, of weights and inputs rounded to a dtype: what `half` and `autocast` come near to."""
    results = eager(model.to(dtype).double(), lambda rows: [x.to(dtype).double() for x in inputs(rows)])
    return [r.to(to or dtype) for r in results]


def without_a_graph(model, inputs):
    """In inference mode and under no_grad, first and then with gradients."""
    with torch.inference_mode():
        first = outputs(model, inputs(3))
    with torch.no_grad():
        second = outputs(model, inputs(3))
    return *(r.clone() for r in first), *second, *eager(model, inputs)
