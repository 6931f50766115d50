"""What each flow layer of normflows adds to a program. Its forward goes from noise to data."""

from functools import partial

from torch import nn

from flowkern.adapters import _made, _traced, normflows
from flowkern.adapters._parts import CACHED, Library, autoregressive, caches, compared, coupling, element, ranks
from flowkern.adapters._plan import changed, overridden, stranger
from flowkern.adapters._trust import agreed, bare, strip
from flowkern.ops import AffineElement, ScaleMap
from flowkern.ops._flow_program import LU, Conditioned, Permutation, Scale
from flowkern.programs import Computed, Part, hooked, missing, outputs, side_by_side, stacked

name_of = normflows._name


def kind(module):
    """The name of the first class of normflows that the module's class is or derives from."""
    return next(filter(None, map(name_of, type(module).__mro__)), None)


def part_of(module, with_context, features):
    """The `Part` of a flow layer, or why it has none; features: of the whole, where they are known."""
    read, relies_on, inner = _PARTS.get(kind(module), (None, (), ()))
    if read is None:
        return "there is no step for it"
    plain = bare(module)
    reason = changed(plain, relies_on) or overridden(plain, ("forward", "inverse", *relies_on), name_of)
    reason = reason or next(filter(None, (_unlike(module, *one) for one in inner)), None)
    if reason or hooked(module.modules()):
        return reason or "it has hooks"
    if with_context and read in _WITHOUT_CONTEXT:
        return "it takes no context"
    part = read(module, with_context, features)
    width = None if isinstance(part, str) else part.features or features
    if width is None:
        return part if isinstance(part, str) else "its number of features is not known"
    return agreed(module, part, width, partial(_comparisons, module, with_context, width)) or part


def _unlike(module, path, name, relies_on):
    """Why what stands at that path of the module is not the library's, or None."""
    inner = module.get_submodule(path)
    if name_of(type(inner)) != name:
        return f"it holds {type(inner).__name__}"
    return overridden(bare(inner), relies_on, name_of)


def watched(module):
    """Whether all modules in a flow layer are known not to change themselves at a call."""
    return kind(module) in _PARTS and all(
        name_of(type(m)) or type(m).__module__.startswith("torch.nn.") for m in module.modules()
    )


def tensors(modules):
    """Places of the tensors in modules whose values matter, and of those that are exchanged."""
    names = ("mask", "perm", "_permutation", "identity_features", "transform_features")
    places = [(m._buffers, key) for m in modules for key in m._buffers if key in names]
    flags = [(m._buffers, "data_dep_init_done") for m in modules if "data_dep_init_done" in m._buffers]
    return (*places, *missing(modules)), tuple(flags)


def _comparisons(module, with_context, features):
    """A flow layer with such a structure, by its own methods and by a program."""
    copied = strip(stranger(module))
    part = _PARTS[kind(module)][0](copied, with_context, features)

    def run(method, x, context):
        return _summed(method(copied, x, **({} if context is None else {"context": context})))

    yield from compared(copied, part, features, partial(run, type(copied).forward), partial(run, type(copied).inverse))


def _summed(found):
    """y and the log-det in float64 for each sample, of which some layers give one for all."""
    return found[0], found[0].new_zeros(found[0].shape[0]) + found[1]


# Coupling layers.


def _affine(module, with_context, features):
    """AffineCouplingBlock: the second half of the features by what the first one says, [shift, scale] of each."""
    split, inner, merge = module.flows
    if features is None or features < 2:
        return "its number of features is not known"
    halves = _halves(split.mode, features)
    if halves is None or merge.mode != split.mode:
        return f"it splits by {split.mode}"
    if inner.scale and inner.scale_map not in _AFFINE:
        return f"its scale map is {inner.scale_map}"
    if any(m.training and m.p > 0 for m in inner.param_map.modules() if isinstance(m, nn.Dropout)):
        return "its dropout is active"
    identity, transformed = halves
    found = _traced.chain(inner.param_map, len(identity), False, lambda net, x, c: net(x))
    if isinstance(found, str):
        return found
    specs, slots = stacked(found[0])
    widths = outputs(found[0])
    h, count = (_AFFINE[inner.scale_map], 2) if inner.scale else (_ADDITIVE, 1)
    if widths[-1] != count * len(transformed):
        return f"its network has {widths[-1]} outputs for {len(transformed)} features"
    degrees = ranks(features, transformed, [[1] * width for width in widths[:-1]])
    step = Conditioned(specs, degrees, h, count, tuple(transformed), tuple(identity))
    return Part((step,), slots, 0, features)


def _masked(module, with_context, features):
    """MaskedAffineFlow: where the mask is 0, by two networks of the features where it is 1, which read and give all."""
    mask = module.b.flatten().tolist()
    if module.b.dim() != 2 or not set(mask) <= {0.0, 1.0} or len(set(mask)) < 2:
        return "its mask is no row of zeros and ones"
    identity, transformed = ([i for i, m in enumerate(mask) if m == kept] for kept in (1.0, 0.0))
    nets = [net for net in (module._modules.get("s"), module._modules.get("t")) if net is not None]
    if not isinstance(module._modules.get("t"), nn.Module):
        return "it has no network for its shift"
    if any(m.training and m.p > 0 for net in nets for m in net.modules() if isinstance(m, nn.Dropout)):
        return "its dropout is active"
    found = [_traced.chain(net, len(mask), False, lambda net, x, c: net(x)) for net in nets]
    reason = next((one for one in found if isinstance(one, str)), None)
    if reason:
        return reason
    layers = found[0][0] if len(nets) == 1 else side_by_side(*(layers for layers, _ in found))
    if layers is None:
        return "its networks for scale and shift are wide, or differ in activations or length"
    widths = outputs(layers)
    if widths[-1] != len(nets) * len(mask):
        return "its networks give something else than a number for each feature"
    rows = [k * len(mask) + feature for k in range(len(nets)) for feature in transformed]
    specs, slots = stacked(_cut(layers, identity, rows))
    degrees = ranks(len(mask), transformed, [[1] * width for width in widths[:-1]])
    h = _ADDITIVE if len(nets) == 1 else AffineElement("exp", scale_first=True)
    step = Conditioned(specs, degrees, h, len(nets), tuple(transformed), tuple(identity), interleaved=False)
    return Part((step,), slots, 0, len(mask))


def _cut(layers, columns, rows):
    """The layers with these columns of the first weight alone, and these outputs of the last layer."""
    weights = [[weight, bias] for _, (weight, bias, *_) in layers]
    weights[0][0] = _indexed(weights[0][0], (slice(None), columns))
    weights[-1] = [slot and _indexed(slot, rows) for slot in weights[-1]]
    return [(spec, (*pair, *slots[2:])) for (spec, slots), pair in zip(layers, weights)]


def _indexed(slot, index):
    if not isinstance(slot, Computed):
        slot = Computed(lambda dtype, tensor: tensor, (slot,))
    return Computed(lambda dtype, *tensors: slot.function(dtype, *tensors)[index], slot.places)


def _halves(mode, features):
    """(identity, transformed) features by a mode of `Split`, or None."""
    if mode in ("channel", "channel_inv"):
        first = (features + 1) // 2
        halves = list(range(first)), list(range(first, features))
    elif mode in ("checkerboard", "checkerboard_inv") and features % 2 == 0:
        halves = list(range(1, features, 2)), list(range(0, features, 2))
    else:
        return None
    return halves[::-1] if mode.endswith("_inv") else halves


# Linear and elementwise layers.


def _lu(module, with_context, features):
    linear, order = module.linear, module.permutation
    if order._dim != 1 or caches(linear):
        return CACHED if order._dim == 1 else "it permutes another dimension"
    names = ("lower_entries", "upper_entries", "unconstrained_upper_diag", "bias")
    steps = LU(linear.eps, inverse=True), Permutation(tuple(order._permutation.tolist()), inverse=True)
    return Part(steps, tuple((linear._parameters, name) for name in names), features=linear.features)


def _permute(module, with_context, features):
    count = module.num_channels
    if module.mode == "shuffle":
        return Part((Permutation(tuple(module.perm.tolist())),), features=count)
    order = (*range(count // 2, count), *range(count // 2))
    return Part((Permutation(order),), features=count) if module.mode == "swap" else f"its mode is {module.mode}"


def _constant(module, with_context, features):
    if module.s.dim() != 2 or module.s.shape[0] != 1 or module.t.shape != module.s.shape:
        return "it transforms images"
    if getattr(module, "data_dep_init_done", True) <= 0:
        return "its first batch sets its parameters"
    held = [module._parameters if name in module._parameters else module._buffers for name in ("s", "t")]
    slots = tuple(Computed(lambda dtype, row: row.flatten(), ((place, name),)) for place, name in zip(held, ("s", "t")))
    return Part((Scale(logarithmic=True),), slots, features=module.s.shape[1])


_AFFINE = {
    "exp": AffineElement("exp"),
    "sigmoid": AffineElement(ScaleMap("reciprocal_sigmoid", a=2.0, b=0.0)),
    "sigmoid_inv": AffineElement(ScaleMap("sigmoid", a=2.0, b=0.0)),
}
_ADDITIVE = AffineElement("additive")
_SPLINES = "flows.neural_spline.coupling."
_LIBRARY = Library(name_of, "nets.resnet", _SPLINES + "PiecewiseRationalQuadraticCDF", normflows._unsuitable_spline)
_WITHOUT_CONTEXT = (_affine, _masked, _constant)
_METHODS = ("forward", "inverse")
# name of a class: (module, whether there is a context, features → its `Part`, or why it has none; attributes of the
# class that the part reproduces; [(path of a submodule, its class, attributes that the part reproduces)])
_PARTS = {
    **{
        name: (partial(autoregressive, normflows._MADE, own), (*_made._FORMULAS, *own.relies_on), ())
        for name, own in normflows._KINDS.items()
    },
    _SPLINES + "PiecewiseRationalQuadraticCoupling": (
        partial(coupling, _LIBRARY, element, True),
        ("_coupling_transform", "_piecewise_cdf", "_coupling_transform_forward", "_coupling_transform_inverse"),
        (),
    ),
    "flows.affine.coupling.AffineCouplingBlock": (
        _affine,
        (),
        (
            ("flows.0", "flows.reshape.Split", _METHODS),
            ("flows.1", "flows.affine.coupling.AffineCoupling", _METHODS),
            ("flows.2", "flows.reshape.Merge", _METHODS),
        ),
    ),
    "flows.affine.coupling.MaskedAffineFlow": (_masked, (), ()),
    "flows.affine.coupling.AffineConstFlow": (_constant, (), ()),
    "flows.normalization.ActNorm": (_constant, (), ()),
    "flows.mixing.Permute": (_permute, (), ()),
    "flows.mixing.LULinearPermute": (
        _lu,
        (),
        (
            ("linear", "flows.mixing._LULinear", (*_METHODS, "forward_no_cache", "inverse_no_cache", "logabsdet")),
            ("permutation", "flows.mixing._RandomPermutation", (*_METHODS, "_permute")),
        ),
    ),
}
