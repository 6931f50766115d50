"""What a call of an op runs, and its derivatives: the autograd.Functions of all ops and all their backends.

A call is `rule.apply(backend, plain, *tensors)`: `plain` is a tuple of what is no tensor, and any of the tensors may
be None. Forward mode and torch.jit.trace run the reference's operations, compilers and torch.func a Function that
they can look into, and plain calls with gradients one that costs 30 µs less; without gradients there is none.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from flowkern import _torch
from flowkern.ops._batched import one_by_one
from flowkern.ops._plain import runs_formulas
from flowkern.ops._trace import traced

Tensors = Sequence[Any]  # tensors, any of which may be None


class Rule:
    """What an op says of itself; the defaults are those of an op whose formulas torch.func sees.

    Args:
        native, reference: the modules of its backends.
        triton: a function that imports the module of that backend, or None if there is none.
    """

    differentiable = 2  # how many of the outputs, the first ones, have derivatives
    kept: tuple[int, ...] = ()  # places of the outputs that a backward takes
    materialize = True  # whether a backward gets zeros for an output that is not used, instead of None
    settings: tuple[int, ...] = ()  # places of the tensors whose numbers belong to the description of a call

    def __init__(
        self, native: ModuleType, reference: ModuleType, triton: Callable[[], ModuleType] | None = None
    ) -> None:
        self._modules = {"reference": reference, "cpu": native, "cuda": native}
        self._triton: Any = triton
        self.reference = reference
        self.name = reference.__name__.split(".")[-2].removeprefix("_")

    def kernels(self, backend: str) -> ModuleType:
        """The module that holds the kernels of a backend."""
        return self._modules[backend] if backend in self._modules else self._triton()

    def forward(self, kernels: ModuleType, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        """The outputs, by a backend's module."""
        raise NotImplementedError

    def backward(
        self,
        kernels: ModuleType,
        plain: Any,
        needs: Sequence[bool],
        cotangents: Tensors,
        outputs: Tensors,
        tensors: Tensors,
    ) -> Tensors:
        """A gradient or None for each tensor; `needs` says which are wanted, and outputs are those kept."""
        raise NotImplementedError

    def gradients(self, backend: str, *arguments: Any) -> Tensors:
        """`backward` on a backend."""
        return self.backward(self.kernels(backend), *arguments)

    def forward_to_differentiate(self, kernels: ModuleType, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        """`forward` where a backward may come."""
        return self.forward(kernels, plain, *tensors)

    def transformed(self, backend: str, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        """The outputs within transforms of torch.func."""
        return self.forward(self.reference, plain, *tensors)

    def differentiate(
        self, backend: str, plain: Any, needs: Sequence[bool], cotangents: Tensors, outputs: Tensors, tensors: Tensors
    ) -> Tensors:
        """`backward` where it will be differentiated again: that of the reference, by autograd."""

        def run(*tensors: Any) -> Tensors:
            return self.forward(self.reference, plain, *tensors)

        return _pulled(run, tensors, needs, cotangents)

    def save(self, ctx: Any, tensors: Tensors, outputs: Tensors) -> None:
        """Keep what a backward takes."""
        ctx.save_for_backward(*tensors, *[outputs[i] for i in self.kept])

    def saved(self, ctx: Any) -> tuple[Tensors, Tensors]:
        """The tensors, and the outputs that are kept."""
        values = ctx.saved_tensors
        count = len(values) - len(self.kept)
        return values[:count], values[count:]

    @traced
    def apply(self, backend: str, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        """The outputs on a backend, differentiable in the tensors."""
        compiling = torch.compiler.is_compiling()
        if compiling or _torch.observed():
            if runs_formulas():
                return self.forward(self.reference, plain, *tensors)
            if not compiling:
                return self.transformed(backend, plain, *tensors)
        if needs_gradient(tensors):
            if compiling:
                return Fused.apply(self, backend, plain, *tensors)
            return _torch.apply_plainly(EagerFused, (self, backend, plain), tensors)
        return self.forward(self.kernels(backend), plain, *tensors)


def needs_gradient(tensors: Tensors) -> bool:
    """Whether a backward may come; in inference mode none does, even within enable_grad. Any tensor may be None."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()
    return False


def is_plain(tensors: Tensors) -> bool:
    """Whether a call computes values alone: no gradient, forward mode or transform of torch.func."""
    observed = runs_formulas() if torch.compiler.is_compiling() else _torch.observed()
    return not observed and not needs_gradient(tensors)


class Fused(torch.autograd.Function):
    """An op on one backend, for compilers and transforms of torch.func."""

    @staticmethod
    def forward(rule: Any, backend: str, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return rule.forward_to_differentiate(rule.kernels(backend), plain, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
        rule, backend, plain, *tensors = inputs
        _remember(ctx, rule, backend, plain, tensors, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensors:
        rule, backend, plain = ctx.call
        tensors, outputs = rule.saved(ctx)
        compiling = torch.compiler.is_compiling()
        # Compiled code differentiates once only, and traces the plain kernel more easily.
        recorded = not compiling and torch.is_grad_enabled()
        arguments = backend, plain, ctx.needs_input_grad[3:]
        run = rule.differentiate if recorded else rule.gradients
        cotangents = grads[: rule.differentiable]
        if not compiling and _torch.any_mapped(cotangents):
            values = *cotangents, *outputs, *tensors
            of_tensors = one_by_one(lambda *values: run(*arguments, *_split(rule, values)), *values)
        else:
            of_tensors = run(*arguments, cotangents, outputs, tensors)
        return None, None, None, *of_tensors

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[Any], rule: Any, backend: str, plain: Any, *tensors: Any
    ) -> tuple[Tensors, Tensors]:
        def run(*tensors: Any) -> Tensors:
            return rule.apply(backend, plain, *tensors)

        return _mapped(run, info, in_dims[3:], tensors, rule.ranks(plain, tensors))


class EagerFused(torch.autograd.Function):
    """The same for plain calls: without setup_context, each costs 30 µs less."""

    @staticmethod
    def forward(ctx: Any, rule: Any, backend: str, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        outputs = rule.forward_to_differentiate(rule.kernels(backend), plain, *tensors)
        _remember(ctx, rule, backend, plain, tensors, outputs)
        return outputs

    backward = staticmethod(Fused.backward)


class FusedVjp(torch.autograd.Function):
    """The backward of a `MappedRule`, which torch.func sees: its own derivatives are those of the reference's."""

    @staticmethod
    def forward(rule: Any, backend: str, plain: Any, needs: Sequence[bool], *values: Any) -> tuple[torch.Tensor, ...]:
        return tuple(rule.gradients(backend, plain, needs, *_split(rule, values)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
        rule, _, plain, needs, *values = inputs
        ctx.call = rule, plain, needs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Tensors:
        rule, plain, needs = ctx.call

        def run(*values: Any) -> Tensors:
            return rule.backward(rule.reference, plain, needs, *_split(rule, values))

        grads = _pulled(run, ctx.saved_tensors, ctx.needs_input_grad[4:], cotangents)
        return None, None, None, None, *grads

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[Any], rule: Any, backend: str, plain: Any, needs: Sequence[bool], *values: Any
    ) -> tuple[Tensors, Tensors]:
        def run(*values: Any) -> Tensors:
            return FusedVjp.apply(rule, backend, plain, needs, *values)

        return _mapped(run, info, in_dims[4:], values, rule.vjp_ranks(plain, needs, values))


class MappedRule(Rule):
    """That of an op whose calls torch.func.vmap makes one, by joining the mapped dimension to the rows."""

    output_ranks = (2, 1)

    def ranks(self, plain: Any, tensors: Tensors) -> Sequence[int] | None:
        """How many dimensions each tensor has with one for rows; 0 if it has none. None: one call for each element."""
        raise NotImplementedError

    def vjp_ranks(self, plain: Any, needs: Sequence[bool], values: Tensors) -> Sequence[int] | None:
        """The same for a backward, where a gradient of what all rows share is a sum over them."""
        tensors = _split(self, values)[2]
        ranks = self.ranks(plain, tensors)
        if ranks is None or any(need and not rank for need, rank in zip(needs, ranks)):
            return None
        outputs = self.output_ranks
        return *outputs[: self.differentiable], *(outputs[i] for i in self.kept), *ranks

    def transformed(self, backend: str, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return Fused.apply(self, backend, plain, *tensors)

    def differentiate(
        self, backend: str, plain: Any, needs: Sequence[bool], cotangents: Tensors, outputs: Tensors, tensors: Tensors
    ) -> Tensors:
        return FusedVjp.apply(self, backend, plain, needs, *cotangents, *outputs, *tensors)


class Coupling(MappedRule):
    """Of backends with forward(x, params, *shared, *plain), where only x (N, D) and params (N, T, P) have gradients."""

    settings = (3,)  # the spline's bound, one for each feature

    def forward(self, kernels: ModuleType, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return kernels.forward(*tensors, *plain)

    def backward(
        self,
        kernels: ModuleType,
        plain: Any,
        needs: Sequence[bool],
        cotangents: Tensors,
        outputs: Tensors,
        tensors: Tensors,
    ) -> Tensors:
        return *kernels.backward(*cotangents, *tensors, *plain), *(None,) * (len(tensors) - 2)

    def ranks(self, plain: Any, tensors: Tensors) -> Sequence[int] | None:
        return 2, 3, *(0,) * (len(tensors) - 2)


def _remember(ctx: Any, rule: Any, backend: str, plain: Any, tensors: Tensors, outputs: Tensors) -> None:
    ctx.call = rule, backend, plain
    if len(outputs) > rule.differentiable:
        ctx.mark_non_differentiable(*outputs[rule.differentiable :])
    if not rule.materialize:
        ctx.set_materialize_grads(False)
    rule.save(ctx, tensors, outputs)


def _split(rule: Any, values: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """(cotangents, outputs that are kept, tensors)."""
    first, second = rule.differentiable, rule.differentiable + len(rule.kept)
    return values[:first], values[first:second], values[second:]


def _pulled(function: Callable[..., Tensors], inputs: Tensors, needs: Sequence[bool], cotangents: Tensors) -> Tensors:
    """The vector-Jacobian product of the function for each input that needs one, else None, by autograd."""
    wanted = [i for i, need in enumerate(needs) if need]
    used = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]
    grads = [None] * len(inputs)
    if not used:
        return grads

    def run(*some: Any) -> Tensors:
        every = list(inputs)
        for i, value in zip(wanted, some):
            every[i] = value
        outputs = function(*every)
        return tuple(outputs[i] for i in used)

    pull = torch.func.vjp(run, *(inputs[i] for i in wanted))[1]
    for i, grad in zip(wanted, pull(tuple(cotangents[i] for i in used))):
        grads[i] = grad
    return grads


def _mapped(
    run: Callable[..., Tensors], info: Any, dims: Sequence[int | None], tensors: Tensors, ranks: Sequence[int]
) -> tuple[Tensors, Tensors]:
    """run(*tensors), mapped over these dimensions, and the dimensions of its outputs."""
    if ranks is None or any(dim is not None and not rank for dim, rank in zip(dims, ranks)):
        outputs = _one_by_one(run, info, dims, tensors)
        return outputs, tuple(None if output is None else 0 for output in outputs)
    return _joined(run, info, dims, tensors, ranks)


def _one_by_one(run: Callable[..., Tensors], info: Any, dims: Sequence[int | None], tensors: Tensors) -> Tensors:
    """The outputs of a call for each element of the batch, stacked."""
    calls = []
    for n in range(info.batch_size):
        calls.append(run(*(t if dim is None else t.select(dim, n) for t, dim in zip(tensors, dims))))
    return tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*calls))


def _joined(
    run: Callable[..., Tensors], info: Any, dims: Sequence[int | None], tensors: Tensors, ranks: Sequence[int]
) -> tuple[Tensors, Tensors]:
    """The same of one call, where the rows of all elements of the batch are one after the other."""
    rows = tensors[0].movedim(dims[0], 0).shape[1] if dims[0] is not None else tensors[0].shape[0]
    pairs = zip(tensors, dims, ranks)
    outputs = run(*(_with_rows(t, dim, rank, info.batch_size, rows) for t, dim, rank in pairs))
    mapped = [output is not None and len(output) == info.batch_size * rows for output in outputs]  # others are empty
    outputs = tuple(o.unflatten(0, (info.batch_size, rows)) if some else o for o, some in zip(outputs, mapped))
    return outputs, tuple(0 if some else None for some in mapped)


def _with_rows(tensor: Any, dim: int | None, rank: int, batch: int, rows: int) -> Any:
    """(batch, rows, …) as (batch·rows, …); what is not mapped, or the same in all rows, repeats."""
    if tensor is None or not rank or dim is None and tensor.dim() < rank:
        return tensor
    tensor = tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    if tensor.dim() == rank:
        tensor = tensor.unsqueeze(1).expand(batch, rows, *tensor.shape[1:])
    return tensor.flatten(0, 1)
