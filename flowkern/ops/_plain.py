"""Values that are kept for later calls, made as if by a plain call, and the plain tensors behind torch.func's."""

import contextlib

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd import forward_ad


@contextlib.contextmanager
def plainly():
    """A context whose tensors can be kept: no torch.func transform, inference mode or FakeTensorMode is on.

    Compiled code is left as it is: a compiler keeps nothing of what it traces.
    """
    if torch.compiler.is_dynamo_compiling():
        yield
        return
    with temporarily_clear_interpreter_stack(), torch.inference_mode(False), unset_fake_temporarily():
        yield


def runs_formulas():
    """Whether a call runs the reference's operations as they are, without a Function around them.

    PyTorch drops the outer tangent, without a word, when forward mode is nested over a Function, torch.compile
    refuses a Function with jvp, and torch.jit.trace cannot save one.
    """
    return forward_ad._current_level >= 0 or torch.jit.is_tracing()


def is_abstract(tensor):
    """Whether it has no values, as on meta and in `torch.export`."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def common(name, tensor):
    """The plain tensor behind those of torch.func; ValueError if torch.func.vmap maps over different ones."""
    functorch, dims = torch._C._functorch, []
    while functorch.is_functorch_wrapped_tensor(tensor):
        dims.insert(0, functorch.maybe_get_bdim(tensor))
        tensor = functorch.get_unwrapped(tensor)
    mapped = [dim for dim in dims if dim >= 0]
    if not mapped or is_abstract(tensor):
        return tensor
    with plainly():
        for level, dim in enumerate(mapped):
            tensor = tensor.movedim(dim + level, level)
        tensor = tensor.flatten(0, len(mapped) - 1)
        if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
            raise ValueError(
                f"{name}: expected the same in all modules that vmap maps over, got different ones "
                "(in_dims=None for a buffer that is not mapped)"
            )
        return tensor[0]


def unmapped(name, value):
    """`common` of a tensor that a Function takes for one of all calls, inside a transform of torch.func."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return value
    return common(name, value) if isinstance(value, torch.Tensor) else value
