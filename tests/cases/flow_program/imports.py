"""What the op's modules may import, as tests/test_imports.py has it for the others."""

_MASKED = "_masked_autoregressive"  # it takes tiles through that op's kernel
MODULES = {
    "steps": {"_activation", f"{_MASKED}.conditioner", f"{_MASKED}.element"},
    "reference": {
        *("_activation", "_arguments", "steps", "_affine_coupling.reference", "_rational_quadratic_spline.reference"),
        *(f"{_MASKED}.{name}" for name in ("conditioner", "element", "reference")),
    },
    "native": {"_library", "_dispatcher"},
    "function": {"_arguments", "_function", "native", "reference", f"{_MASKED}.reference"},
    "problem": {"_problem", "_flow_program", _MASKED},
    "__init__": {"backends", "_arguments", "function", "native", "steps"},
}
