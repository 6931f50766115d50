"""What each transform of nflows adds to a program."""

import re
from functools import partial

import torch
import torch.nn.functional as F

from flowkern.adapters import _made, nflows
from flowkern.adapters._parts import (
    CACHED,
    Library,
    autoregressive,
    caches,
    compared,
    coupling,
    element,
    spline_alone,
)
from flowkern.adapters._plan import changed, overridden, qualified_name, stranger
from flowkern.adapters._trust import agreed, bare, strip
from flowkern.ops import AffineElement
from flowkern.ops._flow_program import LU, Linear, Permutation, Scale
from flowkern.programs import Computed, Part, hooked, missing, reflections

_PACKAGE = re.compile(r"(?:.*\.)?nflows\.(?=(?:transforms|flows|distributions|nn)\.)")
_WATCHED = frozenset(("mask", "_permutation", "identity_features", "transform_features", "_scale", "_log_z"))


def name_of(cls):
    """A class's qualified name from behind `nflows.`, or None for others' classes."""
    return qualified_name(_PACKAGE, cls)


def _kind(module):
    """The name of the first class of nflows that the module's class is or derives from."""
    return next(filter(None, map(name_of, type(module).__mro__)), None)


def part_of(module, with_context, features):
    """The `Part` of a transform, or why it has none; features: of the flow, where they are known."""
    read, relies_on = _PARTS.get(_kind(module), (None, ()))
    if read is None:
        return "there is no step for it"
    plain = bare(module)
    reason = changed(plain, relies_on) or overridden(plain, ("forward", "inverse", *relies_on), name_of)
    if reason or hooked(module.modules()):
        return reason or "it has hooks"
    part = read(module, with_context, features)
    if isinstance(part, str):
        return part
    width = part.features or features
    if width is None:
        return "its number of features is not known"
    return agreed(module, part, width, partial(_comparisons, module, with_context, width)) or part


def watched(module):
    """Whether all modules in a transform are known not to change themselves at a call."""
    return _kind(module) in _PARTS and all(map(_is_known, module.modules()))


def _is_known(module):
    return bool(name_of(type(module))) or type(module).__module__.startswith("torch.nn.")


def tensors(modules):
    """Places of the tensors in modules whose values matter, and of those written to uncounted."""
    buffers = [(m._buffers, key) for m in modules for key in m._buffers]
    places = [place for place in buffers if place[1] in _WATCHED]
    return (*places, *missing(modules)), tuple(
        (m._buffers, "initialized") for m in modules if "initialized" in m._buffers and m.training
    )


def _comparisons(module, with_context, features):
    """A transform with such a structure, by its own methods and by a program."""
    copied = strip(stranger(module))
    copied.using_cache = False  # of a linear transform
    read, _ = _PARTS[_kind(module)]
    part = read(copied, with_context, features)
    forward, inverse = (partial(method, copied) for method in (type(copied).forward, type(copied).inverse))
    yield from compared(copied, part, features, forward, inverse)


# Linear and elementwise transforms.


def _cdf(module, with_context, features):
    width = module.unnormalized_widths.shape[0]
    return spline_alone(module, list(range(width)), width)


def _permutation(module, with_context, features):
    if module._dim != 1:
        return "it permutes another dimension"
    order = tuple(module._permutation.tolist())
    return Part((Permutation(order),), features=len(order))


def _lu(module, with_context, features):
    if caches(module):
        return CACHED
    names = ("lower_entries", "upper_entries", "unconstrained_upper_diag", "bias")
    return Part((LU(module.eps),), tuple((module._parameters, name) for name in names), features=module.features)


def _householder(module, with_context, features):
    return Part((Linear(orthogonal=True),), (_orthogonal(module),), features=module.features)


def _orthogonal(module):
    """The slot of the matrix of a HouseholderSequence, which multiplies rows."""
    return Computed(lambda dtype, vectors: reflections(dtype, vectors).mT, ((module._parameters, "q_vectors"),))


def _svd(module, with_context, features):
    if caches(module):
        return CACHED

    def diagonal(dtype, raw):
        return module.eps + F.softplus(raw)

    steps = Linear(orthogonal=True), Scale(shift=False), Linear(orthogonal=True), Scale()
    scale = Computed(diagonal, ((module._parameters, "unconstrained_diagonal"),))
    orthogonal = [_orthogonal(inner) for inner in (module.orthogonal_2, module.orthogonal_1)]
    return Part(steps, (orthogonal[0], scale, orthogonal[1], *_shifted(module)), features=module.features)


def _shifted(module):
    """The slots of a scale of 1 and the bias of a linear transform."""
    one = Computed(lambda dtype: torch.ones(module.features, dtype=dtype), ())
    return one, (module._parameters, "bias")


def _qr(module, with_context, features):
    if caches(module):
        return CACHED

    def zero(dtype, entries):
        return torch.zeros_like(entries)

    def raw(dtype, log):  # whose softplus is exp(log)
        return log.exp() + (-torch.expm1(-log.exp())).log()

    upper = module._parameters, "upper_entries"
    triangular = Computed(zero, (upper,)), upper, Computed(raw, ((module._parameters, "log_upper_diag"),))
    steps = LU(0.0, bias=False), Linear(orthogonal=True), Scale()
    return Part(steps, (*triangular, _orthogonal(module.orthogonal), *_shifted(module)), features=module.features)


def _pointwise(module, with_context, features):
    scale, shift = module._scale, module._shift
    if not bool((scale > 0).all()):
        return "its scale is not positive"
    if any(t.dim() > 1 or t.numel() not in (1, features) for t in (scale, shift)):
        return "its scale or shift has more than one dimension"
    return Part((Scale(),), tuple(_vector(module, name, features) for name in ("_scale", "_shift")))


def _vector(module, name, features):
    """The slot of a buffer that has a number for each feature, or one for all."""
    place = module._buffers, name
    if module._buffers[name].dim() == 1 and module._buffers[name].shape[0] == features:
        return place
    return Computed(lambda dtype, number: number.to(dtype).expand(features), (place,))


def _identity(module, with_context, features):
    return Part(())


def _act_norm(module, with_context, features):
    if module.training and not module.initialized:
        return "its first batch in training sets its parameters"
    both = (module._parameters, "log_scale"), (module._parameters, "shift")
    return Part((Scale(logarithmic=True),), both, features=module.shift.shape[0])


def _batch_norm(module, with_context, features):
    if module.training:
        return "it takes the statistics of the batch"
    places = (
        (module._parameters, "unconstrained_weight"), (module._parameters, "bias"),
        (module._buffers, "running_mean"), (module._buffers, "running_var"),
    )  # fmt: skip

    def scale(dtype, raw, bias, mean, var):
        return (F.softplus(raw) + module.eps) / (var + module.eps).sqrt()

    def shift(dtype, raw, bias, mean, var):
        return bias - mean * scale(dtype, raw, bias, mean, var)

    slots = Computed(scale, places), Computed(shift, places)
    return Part((Scale(),), slots, features=module.bias.shape[0])


_CDF = "transforms.nonlinearities.PiecewiseRationalQuadraticCDF"
_LIBRARY = Library(name_of, "nn.nets.resnet", _CDF, nflows._unsuitable_spline)
_AFFINE = AffineElement(nflows._SIGMOID)
_ADDITIVE = AffineElement("additive")
_COUPLINGS = {
    "coupling.AdditiveCouplingTransform": partial(coupling, _LIBRARY, lambda module: _ADDITIVE, False),
    "coupling.AffineCouplingTransform": partial(coupling, _LIBRARY, lambda module: _AFFINE, False),
    "coupling.PiecewiseRationalQuadraticCouplingTransform": partial(coupling, _LIBRARY, element, True),
}
_NO_CACHE = ("forward_no_cache", "inverse_no_cache", "logabsdet")
_PERMUTATION = _permutation, ("_permute", "_inverse_permutation")
_POINTWISE = _pointwise, ("_batch_logabsdet", "_log_scale")
# name of a class: (module, whether there is a context, features -> its `Part`, or why it has none;
# attributes of the class that the part reproduces)
_PARTS = {
    "transforms." + name: entry
    for name, entry in (
        *((n, (partial(autoregressive, nflows._MADE, kind), (*_made._FORMULAS, *kind.relies_on)))
          for n, kind in nflows._AUTOREGRESSIVE.items()),
        *((n, (read, nflows._KINDS[n].relies_on)) for n, read in _COUPLINGS.items()),
        ("nonlinearities.PiecewiseRationalQuadraticCDF", (_cdf, nflows._CDF[2:])),
        ("permutations.Permutation", _PERMUTATION),
        ("permutations.RandomPermutation", _PERMUTATION),
        ("permutations.ReversePermutation", _PERMUTATION),
        ("lu.LULinear", (_lu, (*_NO_CACHE, "_create_lower_upper", "upper_diag"))),
        ("orthogonal.HouseholderSequence", (_householder, ("_apply_transforms",))),
        ("svd.SVDLinear", (_svd, (*_NO_CACHE, "diagonal", "log_diagonal"))),
        ("qr.QRLinear", (_qr, (*_NO_CACHE, "_create_upper"))),
        ("standard.PointwiseAffineTransform", _POINTWISE),
        ("standard.AffineTransform", _POINTWISE),
        ("standard.IdentityTransform", (_identity, ())),
        ("normalization.ActNorm", (_act_norm, ("_broadcastable_scale_shift", "scale"))),
        ("normalization.BatchNorm", (_batch_norm, ("weight",))),
    )
}  # fmt: skip
