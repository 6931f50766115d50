"""Other ways to derivatives, and other dtypes: (model, inputs) → results."""

import copy
from functools import partial

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tests.surroundings.values import derived, eager, leaves, loss, outputs


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
