"""Coupling blocks of FrEIA 0.2 on vectors, and SequenceINN: each block in one call, consecutive blocks in one.

Blocks take and return tuples: forward((x,), c=[…], rev=False) → ((y,), log-det). anomalib's copies are recognised, too.
"""

import functools
import re

import torch
from torch import nn

from flowkern import programs
from flowkern.adapters import _traced
from flowkern.adapters._parts import ranks
from flowkern.adapters._plan import Plan, changed, overridden, points, qualified_name, stranger
from flowkern.adapters._trust import agreed, bare, strip
from flowkern.ops import AffineElement, ScaleMap
from flowkern.ops._flow_program import Conditioned, Linear, Permutation, Program, Scale, evaluate
from flowkern.programs import (
    Computed,
    Found,
    Fusion,
    Part,
    Reader,
    hooked,
    missing,
    outputs,
    pieces,
    reflections,
    run,
    side_by_side,
    stacked,
    why,
)

HANDLES = (
    "FrEIA (and anomalib's copy): AllInOneBlock, RNVPCouplingBlock, GLOWCouplingBlock, NICECouplingBlock, "
    "AffineCouplingOneSided on vectors, SequenceINN"
)
_PACKAGE = re.compile(r"(?:.*\.)?(?:freia\.(?:modules|framework)|anomalib\.models\.components\.flow)\.", re.IGNORECASE)
_SEQUENCE = "sequence_inn.SequenceINN"


def _name(cls):
    """A class's qualified name from behind the package's modules, or None for others' classes."""
    return qualified_name(_PACKAGE, cls)


def _kind(module):
    """The name of the first class of the package that the module's class is or derives from."""
    return _kind_of(type(module))


@functools.lru_cache(256)
def _kind_of(cls):
    return next(filter(None, map(_name, cls.__mro__)), None)


# The methods that take the place of the library's.


def _block(fusion, module, x, c=(), rev=False, jac=True):
    """forward of a block."""
    c = tuple(c or ())
    found = programs.known(fusion, module, x[0]) if len(x) == 1 else None
    takes = _condition(module)
    if not isinstance(found, tuple) or takes and not c:
        return type(module).forward(module, x, c=list(c), rev=rev, jac=jac)
    context = (c[0] if len(c) == 1 else torch.cat(c, 1)) if takes else None
    result = found[bool(takes)][0](x[0], context, rev)
    if result is None:
        return type(module).forward(module, x, c=list(c), rev=rev, jac=jac)
    return (result[0],), 0.0 if _kind(module) == _NICE else result[1]


def _sequence(fusion, module, x_or_z, c=None, rev=False, jac=True):
    """SequenceINN.forward."""
    x = x_or_z if torch.is_tensor(x_or_z) else x_or_z[0] if len(x_or_z) == 1 else None
    found = programs.known(fusion, module, x) if torch.is_tensor(x) else None
    used = {condition for condition in module.conditions if condition is not None}
    context = c[min(used)] if isinstance(found, tuple) and used and c is not None and len(c) > min(used) else None
    several = found[bool(used)] if isinstance(found, tuple) and (not used or context is not None) else None
    call = functools.partial(_apart, dict(zip(map(id, module.module_list), module.conditions)))
    result = several and run(several, call, x, context, rev)
    if result is None:
        return type(module).forward(module, x_or_z, c, rev, jac)
    return ((result[0],) if module.force_tuple_output else result[0]), result[1]


def _apart(conditions, module, inverse, x, context):
    given = {} if conditions[id(module)] is None else {"c": [context]}
    (y,), logabsdet = module((x,), jac=True, rev=inverse, **given)
    return y, x.new_zeros(x.shape[0]) + logabsdet


# Which modules are accelerated.


def plan(module):
    """The `Plan` for a coupling block or a SequenceINN, or None for other modules."""
    names = [_name(cls) for cls in type(module).__mro__]
    if _SEQUENCE in names:
        fusion = Fusion(_of_sequence)
        fused = functools.partial(_sequence, fusion)
        return None if isinstance(fusion(module), str) else Plan({"forward": fused})
    kind = next(filter(None, names), None)
    if kind not in _PARTS or kind == _PERMUTE:
        is_block = kind is not None and kind.startswith("coupling_layers.")
        return Plan({}, "there is no fused kernel for this layer") if is_block else None
    fusion = Fusion(_of_block)
    reason = fusion(module)
    return Plan({}, reason) if isinstance(reason, str) else Plan({"forward": functools.partial(_block, fusion)})


def _of_block(module):
    part = _part(module)
    if isinstance(part, str):
        return Found(part, module.modules(), _places(module))
    takes = bool(_condition(module))
    found = pieces([((module, False), part)])
    fused = found if found[0].fused else None
    result = ((None, fused) if takes else (fused, None)) if fused else why([found])
    return Found(result, list(module.modules()), _places(module))


def _of_sequence(module):
    reason = overridden(bare(module), ("forward",), _name)
    used = {condition for condition in module.conditions if condition is not None}
    if reason or len(used) > 1:
        return Found(reason or "its blocks take several conditions", (module,))
    leaves = list(module.module_list)
    if {_kind(leaf) for leaf in leaves} <= {_NICE, _PERMUTE}:
        return Found("its log-determinant is no tensor", module.modules())
    found = pieces([((leaf, False), _in_sequence(leaf, c)) for leaf, c in zip(leaves, module.conditions)])
    fused = found if any(piece.fused for piece in found) else None
    known = {id(leaf) for piece in found if piece.fused for leaf, _ in piece.transforms}
    strange = {id(inner) for leaf in leaves if id(leaf) not in known for inner in leaf.modules()}
    modules = [inner for inner in module.modules() if id(inner) not in strange]
    result = ((None, fused) if used else (fused, None)) if fused else why([found])
    return Found(result, modules, _places(*modules))


def _in_sequence(leaf, condition):
    if condition is None and _condition(leaf):
        return "its condition is not given"
    return _part(leaf)


def _places(*modules):
    """Places of the tensors whose values matter: the permutations, which are parameters without gradient."""
    inner = [m for module in modules for m in module.modules()]
    places = {(id(m), n): (m._parameters, n) for m in inner for n in _FIXED if m._parameters.get(n) is not None}
    return (*places.values(), *missing({id(m): m for m in inner}.values()))


def _condition(module):
    """How many features of a condition a block takes."""
    return getattr(module, "condition_channels", getattr(module, "condition_length", 0))


def _part(module):
    """The `Part` of a block, or why it has none."""
    read, relies_on = _PARTS.get(_kind(module), (None, ()))
    if read is None:
        return "there is no step for it"
    plain = bare(module)
    reason = changed(plain, relies_on) or overridden(plain, ("forward", *relies_on), _name)
    if reason or hooked(module.modules()):
        return reason or "it has hooks"
    if any(m.training and m.p > 0 for m in module.modules() if isinstance(m, nn.Dropout)):
        return "its dropout is active"
    part = read(module)
    if isinstance(part, str):
        return part
    return agreed(module, part, part.features, functools.partial(_comparisons, module)) or part


def _comparisons(module):
    """A block with such a structure, by its own forward and by a program."""
    copied = strip(stranger(module))
    for name in _FIXED:
        if module._parameters.get(name) is not None:
            copied._parameters[name].data = module._parameters[name].detach().cpu().to(copied._parameters[name].dtype)
    part = _PARTS[_kind(module)][0](copied)
    program = Program(part.features, part.steps, part.context)
    x, context = points(part.features), points(part.context) if part.context else None
    call = functools.partial(evaluate, program=program, tensors=Reader(part.slots)(x.dtype), context=context)
    c = {} if context is None else {"c": [context]}
    for rev in (False, True):
        (wanted,), logabsdet = type(copied).forward(copied, (x,), **c, rev=rev)
        yield "forward", (wanted, x.new_zeros(len(x)) + logabsdet), call(x, inverse=rev)


# What each block adds to a program.


def _coupling(module, net, identity, transformed, element, count):
    """(step, slots) of a coupling, whose network gives parameter 0 of all, then parameter 1; or why there is none.

    net: one network, or one for each parameter.
    """
    context = _condition(module)

    def joined(net, x, c):
        return net(x if c is None else torch.cat([x, c], 1))

    nets = net if isinstance(net, tuple) else (net,)
    found = [_traced.chain(one, len(identity), bool(context), joined) for one in nets]
    reason = next((one for one in found if isinstance(one, str)), None)
    if reason:
        return reason
    layers = found[0][0] if len(nets) == 1 else side_by_side(*(layers for layers, _ in found))
    if layers is None:
        return "its networks for scale and shift are wide, or differ in activations or length"
    if any(takes != context for _, takes in found) or not identity:
        return "its network does not read the condition"
    specs, slots = stacked(layers)
    widths = outputs(layers)
    if widths[-1] != count * len(transformed):
        return f"its network has {widths[-1]} outputs for {len(transformed)} features"
    degrees = ranks(len(identity) + len(transformed), transformed, [[1] * width for width in widths[:-1]])
    return Conditioned(specs, degrees, element, count, tuple(transformed), tuple(identity), interleaved=False), slots


def _all_in_one(module):
    if module.input_rank or module.GIN:
        return "it transforms images" if module.input_rank else "it subtracts the mean of its log-scales"
    first, second = module.splits
    identity, transformed = list(range(first)), list(range(first, first + second))
    clamp = AffineElement(ScaleMap("tanh", a=module.clamp, prefactor=0.1, shift_prefactor=0.1), scale_first=True)
    found = _coupling(module, module.subnet, identity, transformed, clamp, 2)
    if isinstance(found, str):
        return found
    step, slots = found
    if not (module.householder or _is_orthogonal(module)):
        return "its w_perm is not orthogonal, or w_perm_inv is not its transpose"
    permuted, of_matrix = _rotation(module)
    before = (permuted._replace(inverse=True),) if module.reverse_pre_permute else ()
    scale = Computed(
        lambda dtype, raw: module.global_scale_activation(raw).flatten(), ((module._parameters, "global_scale"),)
    )
    shift = Computed(lambda dtype, row: row.flatten(), ((module._parameters, "global_offset"),))
    slots = (*of_matrix * len(before), *slots, scale, shift, *of_matrix)
    return Part((*before, step, Scale(), permuted), slots, _condition(module), module.in_channels)


def _is_orthogonal(module):
    matrix, back = module.w_perm.detach(), module.w_perm_inv.detach()
    one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.equal(matrix.mT, back) and torch.allclose(matrix @ back, one, atol=1e-4)


def _rotation(module):
    """The step of an AllInOneBlock's orthogonal matrix, and its slots."""
    if module.householder:
        names = ((module._parameters, name) for name in ("w_0", "vk_householder"))
        return Linear(orthogonal=True), (
            Computed(lambda dtype, start, vectors: start @ reflections(dtype, vectors), tuple(names)),
        )
    order = _order(module.w_perm)
    held = module._parameters, "w_perm"
    return (Linear(orthogonal=True), (held,)) if order is None else (Permutation(order), ())


def _order(matrix):
    """The order that a permutation matrix puts features in, or None for any other matrix."""
    matrix = matrix.detach()
    if matrix.dim() != 2 or not bool(((matrix == 0) | (matrix == 1)).all() and (matrix.sum(0) == 1).all()):
        return None
    return tuple(matrix.argmax(1).tolist()) if bool((matrix.sum(1) == 1).all()) else None


def _two_sided(module, nets, element):
    """The first half given the second one, and then the second given the first."""
    if module.ndims != 1:
        return "it transforms images"
    if element is None:
        return "its clamp has no kernel"
    count = 1 if element is _ADDITIVE else 2
    first, second = list(range(module.split_len1)), list(range(module.split_len1, module.channels))
    sides = [(second, first), (first, second)][-len(nets) :]
    found = [_coupling(module, net, *side, element, count) for net, side in zip(nets, sides)]
    reason = next((one for one in found if isinstance(one, str)), None)
    if reason:
        return reason
    slots = tuple(slot for _, own in found for slot in own)
    return Part(tuple(step for step, _ in found), slots, _condition(module), module.channels)


def _glow(module):
    return _two_sided(module, (module.subnet2, module.subnet1), _clamped(module))


def _rnvp(module):
    sides = (module.subnet_s2, module.subnet_t2), (module.subnet_s1, module.subnet_t1)
    return _two_sided(module, sides, _clamped(module))


def _one_sided(module):
    return _two_sided(module, (module.subnet,), _clamped(module))


def _nice(module):
    return _two_sided(module, (module.F, module.G), _ADDITIVE)


def _clamped(module):
    """log s = clamp·f(u), where f is one of the library's three by its values; None for others."""
    u = torch.linspace(-6, 6, 13, dtype=torch.float64, device="cpu")
    maps = (
        (0.636 * u.atan(), ScaleMap("atan", a=0.636 * module.clamp) if module.clamp > 0 else None),
        (u.tanh(), ScaleMap("tanh", a=module.clamp) if module.clamp > 0 else None),
        (2 * (u.sigmoid() - 0.5), ScaleMap("tanh", a=module.clamp, prefactor=0.5) if module.clamp > 0 else None),
    )
    values = module.f_clamp(u.clone())
    found = next((scale for wanted, scale in maps if torch.allclose(values, wanted, 1e-12, 1e-12)), None)
    return found and AffineElement(found, scale_first=True)


def _permute_random(module):
    order = tuple(module.perm.tolist())
    return Part((Permutation(order),), features=len(order))


_ADDITIVE = AffineElement("additive")
_FIXED = ("w_perm", "w_perm_inv", "w_0", "perm", "perm_inv")  # parameters that are not trained
_ALL_IN_ONE, _NICE = "all_in_one_block.AllInOneBlock", "coupling_layers.NICECouplingBlock"
_PERMUTE = "fixed_transforms.PermuteRandom"
_COUPLINGS = ("_coupling1", "_coupling2")
# name of a class: (module → its `Part`, or why it has none; attributes of the class that the part reproduces)
_PARTS = {
    _ALL_IN_ONE: (_all_in_one, ("_permute", "_pre_permute", "_affine")),
    "coupling_layers.GLOWCouplingBlock": (_glow, _COUPLINGS),
    "coupling_layers.RNVPCouplingBlock": (_rnvp, _COUPLINGS),
    "coupling_layers.AffineCouplingOneSided": (_one_sided, ()),
    _NICE: (_nice, _COUPLINGS),
    _PERMUTE: (_permute_random, ()),
}
