"""Layers of nflows 0.14 and of its forks, each as one fused op.

A coupling layer's op is put around its conditioner; that of an autoregressive layer (_made.py)
contains it.

Layers are recognised by the end of their class's qualified name, so that nflows is not imported
and a fork under another name (glasflow.nflows) is recognised too. Forward maps data to noise; the
conditioner is called exactly as nflows calls it; settings are read at every call, as nflows does.
"""

import functools
import math
import numbers
import re
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from flowkern import _torch
from flowkern.adapters import _made
from flowkern.adapters._plan import (
    Plan,
    changed,
    disagreement,
    interval,
    overridden,
    points,
    qualified_name,
    twin,
)
from flowkern.ops import (
    AffineElement,
    ScaleMap,
    SoftplusKnots,
    affine_coupling,
    rational_quadratic_spline,
)
from flowkern.ops._arguments import in_dtype

HANDLES = (
    "nflows (and forks of it): AdditiveCouplingTransform, AffineCouplingTransform, "
    "PiecewiseRationalQuadraticCouplingTransform, PiecewiseRationalQuadraticCDF, "
    "MaskedAffineAutoregressiveTransform, MaskedPiecewiseRationalQuadraticAutoregressiveTransform "
    "and the inverse of LULinear"
)
_PACKAGE = re.compile(r"(?:.*\.)?nflows\.transforms\.")
_CONTAINERS = frozenset(("base.CompositeTransform", "base.InverseTransform", "base.MultiscaleCompositeTransform"))
_NO_KERNEL = "there is no fused kernel for this layer"
_COUPLING_METHODS = (
    "forward",
    "inverse",
    "_coupling_transform_forward",
    "_coupling_transform_inverse",
    "_transform_dim_multiplier",
)
_FORMULAS = (
    *_COUPLING_METHODS[2:],
    "_scale_and_shift",
    "_coupling_transform",
    "_piecewise_cdf",
    "_spline",
    "_create_lower_upper",
    "logabsdet",
)
_CDF = ("forward", "inverse", "_spline")
_NET_WIDTHS = ("hidden_features", "hidden_channels")
_SIGMOID = ScaleMap("sigmoid", a=2.0, b=1e-3)


# The coupling layer (nflows CouplingTransform): x is (B, D), or (B, D, H, W) for images.


def _coupling_forward(transform, module, inputs, context=None):
    """y and Σ log|dy/dx| of a coupling layer; `transform` acts on the transformed half."""
    if left(module) or inputs.is_complex():
        return type(module).forward(module, inputs, context)
    identity = _identity_half(module, inputs)
    params = module.transform_net(identity, context)
    y, logabsdet = transform(module, inputs, params, False)
    if module.unconditional_transform is None:
        return y, logabsdet
    identity, more = module.unconditional_transform(identity, context)
    y = y.index_copy(1, module.identity_features, identity)
    return _in_format_of(inputs, y), logabsdet + more


def _coupling_inverse(transform, module, inputs, context=None):
    """The inverse of `_coupling_forward`: the conditioner sees the identity half already undone."""
    if left(module) or inputs.is_complex():
        return type(module).inverse(module, inputs, context)
    identity = _identity_half(module, inputs)
    if module.unconditional_transform is None:
        return transform(module, inputs, module.transform_net(identity, context), True)
    identity, more = module.unconditional_transform.inverse(identity, context)
    params = module.transform_net(identity, context)
    x, logabsdet = transform(module, inputs, params, True)
    x = x.index_copy(1, module.identity_features, identity)
    return _in_format_of(inputs, x), logabsdet + more


def left(module):
    """Why nflows computes a coupling layer or an LULinear as it is now; None if it does not."""
    return changed(module, _FORMULAS)


def _identity_half(module, inputs):
    if inputs.dim() not in (2, 4):
        raise ValueError("Inputs must be a 2D or a 4D tensor.")
    if inputs.shape[1] != module.features:
        raise ValueError(f"Expected features = {module.features}, got {inputs.shape[1]}.")
    return inputs.index_select(1, module.identity_features)


def _additive(module, inputs, params, inverse):
    # This one op of PyTorch is faster than a kernel of ours, from one sample to thousands.
    shift = _split(params, module.transform_features.shape[0], 1).squeeze(2).to(inputs.dtype)
    sign = -1 if inverse else 1
    if torch.jit.is_tracing():  # ONNX has no alpha
        shift, sign = sign * shift, 1
    y = inputs.index_add(1, module.transform_features, shift, alpha=sign)
    return _in_format_of(inputs, y), inputs.new_zeros(inputs.shape[0])


def _affine(module, inputs, params, inverse):
    # [all shifts | all raw scales] is (2, T), whose transpose is a view.
    params = _split(params, 2, module.transform_features.shape[0]).transpose(1, 2)
    return _on_half(affine_coupling, module, inputs, params, scale_map=_SIGMOID, inverse=inverse)


def _spline(module, inputs, params, inverse):
    index = module.transform_features
    if module.tails is None:
        _check_domain(module, inputs.index_select(1, index))
    columns = 3 * module.num_bins + (1 if module.tails is None else -1)
    params = _split(params, index.shape[0], columns)
    options = _spline_options(module, _softmax_scale(module.transform_net))
    return _on_half(rational_quadratic_spline, module, inputs, params, inverse=inverse, **options)


def _split(params, rows, columns):
    """(B, rows·columns, …) as a view (B, rows, columns, …)."""
    if params.shape[1] != rows * columns:
        raise ValueError(f"transform_net: expected {rows * columns} outputs per sample, got {params.shape[1]}")
    return params.view(params.shape[0], rows, columns, *params.shape[2:])


def _on_half(op, module, inputs, params, **options):
    """op on the transformed features of inputs (B, D, …) by params (B, T, P, …)."""
    index = module.transform_features
    if inputs.dim() == 2:
        y, logabsdet = op(inputs, params, index=index, **options)
        return y, _in_dtype_of(inputs, params, logabsdet)
    pixels = inputs.permute(0, 2, 3, 1)
    y, logabsdet = op(pixels, params.permute(0, 3, 4, 1, 2), index=index, **options)
    return _in_format_of(inputs, y.permute(0, 3, 1, 2)), _in_dtype_of(inputs, params, logabsdet.sum((1, 2)))


def _in_dtype_of(inputs, params, logabsdet):
    """The log-det in the dtype of inputs and params, where that is one."""
    return in_dtype(logabsdet, inputs.dtype) if inputs.dtype == params.dtype else logabsdet


def _in_format_of(inputs, y):
    """y in the memory format of inputs, as nflows has it: callers may take views of y. vmap cannot tell it."""
    known = inputs.dim() == 4 and (torch.compiler.is_compiling() or not _torch.maps_over(inputs))
    last = known and inputs.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# The spline (nflows rational_quadratic.py) and its settings, which two classes share.


def _spline_options(module, scale):
    knot_map = SoftplusKnots(
        min_width=module.min_bin_width,
        min_height=module.min_bin_height,
        min_slope=module.min_derivative,
        scale=scale,
    )
    if module.tails is None:
        return {"tails": "none", "bound": (0.0, 1.0, 0.0, 1.0), "knot_map": knot_map}
    return {"tails": "identity", "bound": module.tail_bound, "knot_map": knot_map}


def _softmax_scale(net):
    """The factor of raw widths and heights: 1/√(width of the conditioner), where it tells it."""
    for name in _NET_WIDTHS:
        if hasattr(net, name):
            return 1 / math.sqrt(getattr(net, name))
    if not torch.compiler.is_compiling():  # a graph cannot warn
        warnings.warn("Inputs to the softmax are not scaled down: initialization might be bad.", stacklevel=2)
    return 1.0


def _check_domain(module, inputs):
    """Raise the library's InputOutsideDomain unless all inputs are in [0, 1].

    A compiled or traced graph, and torch.func.vmap, cannot raise on data: there, the op answers an input
    outside with NaN.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _torch.maps_over(inputs) or inputs.numel() == 0:
        return
    if inputs.min() < 0 or inputs.max() > 1:
        raise _input_outside_domain(module)


def _cdf(inverse, module, inputs, context=None):
    """One spline per feature for the whole batch (nflows PiecewiseRationalQuadraticCDF)."""
    if left(module) or inputs.is_complex():
        return (type(module).inverse if inverse else type(module).forward)(module, inputs, context)
    raw = (
        module.unnormalized_widths,
        module.unnormalized_heights,
        module.unnormalized_derivatives,
    )
    if inputs.shape[1:] != raw[0].shape[:-1]:
        raise ValueError(
            f"Expected inputs of shape (batch, {', '.join(map(str, raw[0].shape[:-1]))}), got {tuple(inputs.shape)}."
        )
    if module.tails is None:
        _check_domain(module, inputs)
    y, logabsdet = rational_quadratic_spline(
        inputs.flatten(1),
        torch.cat(raw, dim=-1).flatten(0, -2),
        inverse=inverse,
        **_spline_options(module, 1.0),
    )
    return _in_format_of(inputs, y.reshape(inputs.shape)), _in_dtype_of(inputs, raw[0], logabsdet)


def _lu_inverse(module, inputs):
    """x = U⁻¹L⁻¹(y − b) by rows, without the transposed copies of `torch.triangular_solve`.

    nflows raises its errors at what is no (N, D) of the layer's dtype.
    """
    if left(module) or inputs.dim() != 2 or inputs.dtype != module.bias.dtype:
        return type(module).inverse_no_cache(module, inputs)
    lower, upper = module._create_lower_upper()
    x = torch.linalg.solve_triangular(lower.mT, inputs - module.bias, upper=True, left=False, unitriangular=True)
    x = torch.linalg.solve_triangular(upper.mT, x, upper=False, left=False).contiguous()
    return x, -module.logabsdet() * inputs.new_ones(inputs.shape[0])


# The element transforms of autoregressive layers.


def _softplus(module):
    return _softplus_of(module._epsilon)


@functools.cache
def _softplus_of(epsilon):
    return AffineElement(ScaleMap("softplus", b=epsilon), scale_first=True)


def _check_unit_interval(module, inputs):
    if module.tails is None:
        _check_domain(module, inputs)


# Which layers are accelerated.


def plan(module):
    """The `Plan` for a transform of nflows, or None for other modules and for mere containers."""
    names = [_name(cls) for cls in type(module).__mro__]
    if "base.Transform" not in names or _CONTAINERS.intersection(names):
        return None
    name = next(filter(None, names))
    if name in _AUTOREGRESSIVE:
        return _made.plan(_MADE, _AUTOREGRESSIVE[name], module)
    kind = _KINDS.get(name)
    if kind is None:
        return Plan({}, _NO_KERNEL)
    reason = (
        overridden(module, kind.relies_on, _name)
        or kind.unsuitable(module)
        or (kind.trial and disagreement(functools.partial(_comparisons, kind, module)))
    )
    if reason and hasattr(module, "scale_activation"):
        reason += " (of all scale_activations, only sigmoid(u + 2) + 1e-3 is fused)"
    return Plan({}, reason) if reason else Plan(kind.methods)


def _name(cls):
    """A class's qualified name from behind `nflows.transforms.`, or None for others' classes."""
    return qualified_name(_PACKAGE, cls)


def _input_outside_domain(module):
    cls = next(cls for cls in type(module).__mro__ if _name(cls))
    package = _PACKAGE.match(cls.__module__).group()
    return sys.modules[package + "base"].InputOutsideDomain()


def _suitable(module):
    return None


def _unsuitable_spline(module):
    if module.tails not in (None, "linear"):
        return f"it has tails {module.tails!r}, which raise an error in nflows"
    if not isinstance(module.tail_bound, numbers.Real):
        return f"its tail_bound is no plain number but {type(module.tail_bound).__name__}"
    return None


class _Constant(torch.nn.Module):
    """Stands in for a conditioner in a trial: fixed raw parameters for any input."""

    def __init__(self, net, params):
        super().__init__()
        self.params = params
        self.hidden_features = 1  # no scaling and, unlike no width at all, no warning about it
        for name in filter(functools.partial(hasattr, net), reversed(_NET_WIDTHS)):
            self.hidden_features = getattr(net, name)

    def forward(self, inputs, context=None):
        return self.params.clone()


def _coupling_trial(module):
    count = module.transform_features.shape[0] * module._transform_dim_multiplier()
    generator = torch.Generator("cpu").manual_seed(0)
    params = torch.randn(4, count, dtype=torch.float64, device="cpu", generator=generator)
    stand_ins = {"transform_net": _Constant(module.transform_net, params)}
    if "unconditional_transform" in module._modules:
        stand_ins["unconditional_transform"] = None
    return points(module.features, **interval(module)), stand_ins


def _cdf_trial(module):
    return points(*module.unnormalized_widths.shape[:-1], **interval(module)), {}


def _comparisons(kind, module):
    """The layer's own methods and the fused ones, with a stand-in for the conditioner."""
    x, stand_ins = kind.trial(module)
    copied = twin(module, stand_ins)
    for name, fused in kind.methods.items():
        yield name, getattr(type(module), name)(copied, x), fused(copied, x)


class _Kind(NamedTuple):
    methods: dict
    relies_on: tuple  # attributes of the library's class that the methods replace or reproduce
    unsuitable: Callable  # module -> why this layer cannot be taken, or None
    trial: Callable | None  # module -> (x, stand-ins for submodules)


def _coupling(transform, *relies_on, unsuitable=_suitable):
    return _Kind(
        {
            "forward": functools.partial(_coupling_forward, transform),
            "inverse": functools.partial(_coupling_inverse, transform),
        },
        (*_COUPLING_METHODS, *relies_on),
        unsuitable,
        _coupling_trial,
    )


_KINDS = {
    "coupling.AdditiveCouplingTransform": _coupling(_additive, "_scale_and_shift"),
    "coupling.AffineCouplingTransform": _coupling(_affine, "_scale_and_shift"),
    "coupling.PiecewiseRationalQuadraticCouplingTransform": _coupling(
        _spline, "_coupling_transform", "_piecewise_cdf", unsuitable=_unsuitable_spline
    ),
    "nonlinearities.PiecewiseRationalQuadraticCDF": _Kind(
        {
            "forward": functools.partial(_cdf, False),
            "inverse": functools.partial(_cdf, True),
        },
        _CDF,
        _unsuitable_spline,
        _cdf_trial,
    ),
    "lu.LULinear": _Kind(
        {"inverse_no_cache": _lu_inverse},
        ("inverse_no_cache", "_create_lower_upper", "logabsdet"),
        _suitable,
        None,
    ),
}

_MADE = _made.MadeStyle(_name, "made", gated=False)
_AUTOREGRESSIVE = {
    "autoregressive.MaskedAffineAutoregressiveTransform": _made.Kind(_softplus, ("_unconstrained_scale_and_shift",)),
    "autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform": _made.Kind(
        _made.spline, ("_elementwise",), _unsuitable_spline, _check_unit_interval
    ),
}
