"""Values and gradients of a module, as all surroundings compare them."""

import torch


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
    """The inputs, lying as they lie, with gradients."""
    return tuple(x.detach().requires_grad_() for x in inputs)


def trained(model):
    """The parameters that have gradients, by name; others stand for orders or settings in some libraries."""
    return {name: w for name, w in model.named_parameters() if w.requires_grad}


def derived(results, inputs, weights):
    """The outputs, and the gradients of a loss of them."""
    wanted = [*inputs, *(w for w in weights if w.requires_grad)]
    if not wanted:
        return tuple(r.detach() for r in results)
    grads = torch.autograd.grad(loss(results), wanted, allow_unused=True, materialize_grads=True)
    return *(r.detach() for r in results), *grads


def eager(model, inputs, call=None, rows=3):
    inputs = leaves(inputs(rows))
    return derived(outputs(model if call is None else call, inputs), inputs, model.parameters())


def values(model, inputs, rows=3):
    with torch.no_grad():
        return outputs(model, inputs(rows))
