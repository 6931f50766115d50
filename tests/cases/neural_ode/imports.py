"""What the op's modules may import, as tests/test_imports.py has it for the others."""

MODULES = {
    "field": {"_activation"},
    "reference": {"_activation", "field"},
    "native": {"_library", "_dispatcher"},
    "triton": {
        *("_dispatcher", "_tables", "_triton", "native", "reference"),
        *("triton_field", "triton_kernels", "triton_layout"),
    },
    "triton_kernels": {"triton_field", "triton_gradients"},
    "triton_gradients": {"_triton_random", "triton_field"},
    "triton_field": {"_triton_activation", "_triton_random"},
    "triton_layout": {"triton_field"},
    "pieces": set(),
    "function": {"_function", "native", "pieces", "reference", "triton"},
    "__init__": {
        *("backends", "_activation", "_arguments", "_function", "_status", "_tableau"),
        *("field", "function", "native", "reference"),
    },
}
