"""What a library's module says about one layer, and the check that a fused layer keeps its numbers."""

import contextlib
import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from flowkern.backends import backend
from flowkern.ops._plain import plainly


class Plan(NamedTuple):
    """How one layer of a library is treated.

    methods: name → function(module, …) that takes the place of the bound method; empty to leave
        the layer as it is.
    reason: why the layer is not accelerated.
    by_ode: options of `accelerate`'s `ode` → methods, for a layer whose steps these can name.
    remark: what `explain` says beside that.
    """

    methods: dict
    reason: str = ""
    by_ode: Callable | None = None
    remark: str = ""


@contextlib.contextmanager
def one_thread():
    """A context in which PyTorch starts no threads, which a process that forks afterwards must not have."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def qualified_name(package, cls):
    """A class's qualified name from behind what `package` matches, or None for others' classes."""
    match = package.match(cls.__module__ + ".")
    return match and f"{cls.__module__}.{cls.__qualname__}"[match.end() :]


def overridden(module, relies_on, name):
    """Why the layer is not accelerated, if its class or instance changes what the fused methods rely on.

    relies_on: names of attributes; name: class → its name within the library, or None.
    """

    def is_peers_own(attribute):
        definers = (cls for cls in type(module).__mro__ if attribute in vars(cls))
        return attribute not in module.__dict__ and bool(name(next(definers, object)))

    changed = [attribute for attribute in relies_on if not is_peers_own(attribute)]
    return f"{type(module).__name__} overrides {', '.join(changed)}" if changed else None


def changed(module, formulas):
    """Why a library computes its layer: methods of these names were put on it after `accelerate`; or None."""
    for name in formulas:
        if name in module.__dict__:
            return f"it has {name} of its own"
    return None


def disagreement(comparisons):
    """Why fused methods are not known to give a layer's own numbers, or None if they do.

    Forks change formulas under unchanged names, so numbers are compared, not versions.

    Args:
        comparisons: comparisons() gives (name of a method, wanted tensors, fused tensors) again and
            again, of copies of the layer in float64 on the CPU.
    """
    try:
        with torch.no_grad(), plainly(), backend("reference"):
            for name, wanted, got in comparisons():
                if not all(torch.allclose(w, g, 1e-6, 1e-6) for w, g in zip(wanted, got)):
                    return f"its {name} gives other numbers than the fused one"
    except Exception as error:  # a fork may fail in any way, and its layer is then not accelerated
        return f"a trial call failed: {type(error).__name__}: {error}"
    return None


def twin(module, stand_ins):
    """A copy of the layer in float64 on the CPU, with some submodules exchanged, others shared."""
    copied = copy.copy(module)
    for store in ("_parameters", "_buffers"):
        copied.__dict__[store] = {
            name: None if tensor is None else _on_cpu(tensor) for name, tensor in getattr(module, store).items()
        }
    copied.__dict__["_modules"] = {**module._modules, **stand_ins}
    return copied


def _on_cpu(tensor):
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def stranger(module):
    """A deep copy of the layer in float64 on the CPU, in evaluation mode, with weights of its own.

    Trained or zero weights could hide what a layer does.
    """
    copied = copy.deepcopy(module).cpu().double().eval()
    generator = torch.Generator("cpu").manual_seed(0)

    def fill(tensor, low, high):
        tensor.detach().copy_(torch.empty_like(tensor).uniform_(low, high, generator=generator))

    for parameter in filter(torch.is_floating_point, copied.parameters()):
        bound = 2 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 1.0
        fill(parameter, -bound, bound)
    for norm in filter(lambda m: getattr(m, "running_var", None) is not None, copied.modules()):
        fill(norm.running_mean, -1.0, 1.0)
        fill(norm.running_var, 0.5, 2.0)
    return copied


def interval(module):
    """low and high for `points`: the domain of a layer, and beyond that of its spline with tails."""
    if not hasattr(module, "tails"):
        return {}
    if module.tails is None:
        return {"low": 0.0, "high": 1.0}
    return {"low": -1.3 * module.tail_bound, "high": 1.3 * module.tail_bound}


def points(*shape, low=-3.0, high=3.0):
    """(4, *shape) points from low to high, in float64 on the CPU."""
    count = 4 * math.prod(shape)
    return torch.linspace(low, high, count, dtype=torch.float64, device="cpu").view(4, *shape)
