"""What the op's modules may import, as tests/test_imports.py has it for the others."""

# It applies the formulas of the couplings.
_AFFINE, _SPLINE = "_affine_coupling", "_rational_quadratic_spline"
MODULES = {
    "conditioner": {"_activation", "_plain"},
    "element": {f"{_AFFINE}.scale_map", _SPLINE},
    "reference": {
        *("_activation", "_arguments", "conditioner", "element"),
        *(f"{_AFFINE}.reference", f"{_SPLINE}.reference"),
    },
    "gradients": {"_precision", "conditioner"},
    "native": {"_library", "_dispatcher", "gradients", "reference"},
    "triton": {
        *("_dispatcher", "_tables", "_triton", "element", "gradients", "native", "reference", "triton_kernels"),
        *("triton_layers", f"{_SPLINE}.triton_element"),
    },
    "triton_kernels": {"_triton", "triton_layers", f"{_AFFINE}.triton", f"{_SPLINE}.triton_element"},
    "triton_layers": {"_triton_activation"},
    "function": {"_function", "_trace", "native", "reference", "triton"},
    "__init__": {
        *("backends", "_activation", "_arguments", "_function", "conditioner", "element", "function", "native"),
        "reference",
    },
}
