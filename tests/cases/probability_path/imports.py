"""What the op's modules may import, as tests/test_imports.py has it for the others."""

MODULES = {
    "kinds": set(),
    "reference": {"_random", "kinds"},
    "native": {"_library", "_dispatcher"},
    "triton": {"_dispatcher", "_triton_random", "kinds", "native"},
    "function": {"_function", "kinds", "native", "reference", "triton"},
    "__init__": {"backends", "_arguments", "function", "kinds", "native"},
}
