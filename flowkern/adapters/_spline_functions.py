"""`spline_functions(module)`: the fused op in place of a copy of nflows' spline functions.

The functions `rational_quadratic_spline` and `unconstrained_rational_quadratic_spline` live on as text in many packages
(VITS and what descends from it, forks of nflows), whose layers are the packages' own.
"""

import functools
import inspect
import math
import numbers
import sys
import types

import torch

from flowkern import _torch
from flowkern.adapters._plan import disagreement, one_thread
from flowkern.ops import SoftplusKnots, rational_quadratic_spline
from flowkern.ops._arguments import in_dtype

_RAW = tuple(f"unnormalized_{name}" for name in ("widths", "heights", "derivatives"))
_MINIMA = ("min_bin_width", "min_bin_height", "min_derivative")
_BOX = ("left", "right", "bottom", "top")
# name of a function: the names of its arguments, in order; further ones must have defaults, and keep them
_SIGNATURES = {
    "rational_quadratic_spline": ("inputs", *_RAW, "inverse", *_BOX, *_MINIMA),
    "unconstrained_rational_quadratic_spline": ("inputs", *_RAW, "inverse", "tails", "tail_bound", *_MINIMA),
}
_TAILS = {None: ("none", 1), "linear": ("identity", -1)}  # slopes − K
_MOST_BINS = 256


class SplineFunctions:
    """What `spline_functions` did; as a context manager, it restores the functions at the end.

    replaced: names of the functions that are replaced. left: name → why a function is not.
    """

    def __init__(self, replaced, left):
        self._originals, self.left = replaced, left

    @property
    def replaced(self):
        """Names of the functions that are replaced."""
        return tuple(self._originals)

    def restore(self):
        """Put the functions back wherever they were replaced."""
        for original, places in self._originals.values():
            for held, name in places:
                if getattr(held.get(name), "__wrapped__", None) is original:
                    held[name] = original
        self._originals = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.restore()

    def __str__(self):
        lines = [f"{name}: replaced" for name in self.replaced]
        return "\n".join(lines + [f"{name}: {reason}" for name, reason in self.left.items()])


def spline_functions(module):
    """Replace a module's copy of nflows' spline functions by the fused op, with the same numbers.

    The functions are `rational_quadratic_spline` and `unconstrained_rational_quadratic_spline`, each with the arguments
    of nflows 0.14, as VITS, Piper and forks of nflows have them. Each is first compared with the op on some points,
    and left as it is if they differ. It is replaced wherever a loaded module has it under its name. Calls that the op
    cannot compute (tails in a list, a bound that is a tensor, an input outside the interval where the function has no
    tails) go to the original. In a trace or an ONNX export, the op is the reference's plain operations.

    Args:
        module: a Python module, such as `piper.vits.transforms`.

    Returns:
        A `SplineFunctions`, which says what was replaced, and restores it.

    Raises:
        TypeError: module is no Python module.
        ValueError: it has no such function.
    """
    if not isinstance(module, types.ModuleType):
        raise TypeError(f"module: expected a Python module, got {type(module).__name__}")
    found = {name: vars(module)[name] for name in _SIGNATURES if name in vars(module)}
    if not found:
        raise ValueError(f"module: expected one with {' or '.join(_SIGNATURES)}, got {module.__name__}")
    replaced, left = {}, {}
    with one_thread():
        for name, original in found.items():
            reason = _unfamiliar(name, original) or disagreement(functools.partial(_comparisons, name, original))
            if reason:
                left[name] = reason
            else:
                replaced[name] = original, _places(name, original)
    for name, (original, places) in replaced.items():
        fused = _fused(name, original)
        for held, key in places:
            held[key] = fused
    return SplineFunctions(replaced, left)


def _places(name, original):
    """(dictionary, name) of each loaded module that has the function."""
    modules = [vars(m) for m in list(sys.modules.values()) if isinstance(m, types.ModuleType)]
    own = vars(sys.modules[original.__module__]) if original.__module__ in sys.modules else original.__globals__
    held = {id(one): one for one in (*modules, own, original.__globals__) if one.get(name) is original}
    return [(one, name) for one in held.values()]


def _unfamiliar(name, original):
    """Why a function is not one of nflows' by its arguments, or None."""
    if hasattr(original, "__wrapped__"):
        return "it is replaced already"
    if not isinstance(original, types.FunctionType):
        return f"it is no function but {type(original).__name__}"
    parameters = list(inspect.signature(original).parameters.values())
    wanted = _SIGNATURES[name]
    if tuple(p.name for p in parameters[: len(wanted)]) != wanted:
        return f"its arguments are {', '.join(p.name for p in parameters)}"
    if any(p.default is p.empty for p in parameters[4:]):
        return "some of its arguments have no default"
    return None


def _fused(name, original):
    """The function that takes the place of the original."""
    parameters = inspect.signature(original).parameters
    names, defaults = tuple(parameters), {p.name: p.default for p in parameters.values() if p.default is not p.empty}
    further = {key: value for key, value in defaults.items() if key not in _SIGNATURES[name]}

    @functools.wraps(original)
    def fused(*args, **kwargs):
        given = {**defaults, **dict(zip(names, args)), **kwargs}
        if len(args) > len(names) or any(given[key] is not value for key, value in further.items()):
            return original(*args, **kwargs)
        return _spline(given) or original(*args, **kwargs)

    return fused


def _spline(given):
    """outputs and log|derivative| of each input, or None where the original must compute them."""
    inputs, raw = given.get("inputs"), [given.get(name) for name in _RAW]
    tails = _TAILS.get(given.get("tails")) if isinstance(given.get("tails"), (str, type(None))) else None
    bound = given["tail_bound"] if "tail_bound" in given else tuple(given[name] for name in _BOX)
    minima = [given[name] for name in _MINIMA]
    if "tail_bound" in given and given["tails"] is None:  # the original raises an error
        return None
    if tails is None or not _are_tensors(inputs, *raw) or not _are_numbers(bound, *minima):
        return None
    bins = raw[0].shape[-1]
    if not _fits(inputs, raw, bins, bins + tails[1], minima) or (tails[0] == "none" and _is_outside(inputs, given)):
        return None
    params = torch.cat(raw, -1)
    y, logabsdet = rational_quadratic_spline(
        inputs.reshape(-1, 1), params.reshape(-1, 1, params.shape[-1]), tails=tails[0], bound=bound,
        knot_map=SoftplusKnots(*map(float, minima)), inverse=bool(given["inverse"]),
    )  # fmt: skip
    return y.reshape(inputs.shape), in_dtype(logabsdet.reshape(inputs.shape), inputs.dtype)


def _are_tensors(*values):
    dtypes = {value.dtype if isinstance(value, torch.Tensor) else None for value in values}
    return len(dtypes) == 1 and None not in dtypes and values[0].is_floating_point()


def _are_numbers(bound, *minima):
    bounds = bound if isinstance(bound, tuple) else (bound,)
    ordered = bounds[0] > 0 if len(bounds) == 1 and isinstance(bounds[0], numbers.Real) else True
    real = all(isinstance(value, numbers.Real) and math.isfinite(value) for value in (*bounds, *minima))
    return real and ordered and (len(bounds) == 1 or bounds[0] < bounds[1] and bounds[2] < bounds[3])


def _fits(inputs, raw, bins, slopes, minima):
    shapes = [one.shape for one in raw] == [(*inputs.shape, count) for count in (bins, bins, slopes)]
    return (
        shapes and 0 < bins <= _MOST_BINS and all(m >= 0 and m * bins <= 1 for m in minima[:2]) and 0 <= minima[2] < 1
    )


def _is_outside(inputs, given):
    """Whether an input is outside the interval; not known of a graph or a mapped tensor, where the op gives NaN."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _torch.maps_over(inputs) or not inputs.numel():
        return False
    low, high = (given["bottom"], given["top"]) if given["inverse"] else (given["left"], given["right"])
    return bool((inputs < low).any() or (inputs > high).any())


def _comparisons(name, original):
    """The function on points inside and outside, with settings of its own and its defaults, against the op."""
    generator = torch.Generator("cpu").manual_seed(0)
    bounded = name == "rational_quadratic_spline"
    own = dict(zip(_BOX, (-1.0, 2.0, 0.5, 1.5))) if bounded else {"tails": "linear", "tail_bound": 1.5}
    minima = dict(zip(_MINIMA, (0.02, 0.03, 0.04)))
    defaults = {p.name: p.default for p in inspect.signature(original).parameters.values() if p.default is not p.empty}
    counts = 5, 5, 6 if bounded else 4
    raw = [torch.randn(3, 4, k, dtype=torch.float64, device="cpu", generator=generator) for k in counts]
    for inverse in (False, True):
        low, high = ((0.5, 1.5) if inverse else (-1.0, 2.0)) if bounded else (-2.0, 2.0)
        inputs = torch.linspace(low, high, 12, dtype=torch.float64, device="cpu").view(3, 4)
        for settings in ({**own, **minima}, own):
            given = {"inputs": inputs, **dict(zip(_RAW, raw)), "inverse": inverse, **settings}
            wanted = original(**{key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in given.items()})
            yield name, wanted, _known(_spline({**defaults, **given}))


def _known(found):
    if found is None:
        raise ValueError("the op does not take its arguments")
    return found
