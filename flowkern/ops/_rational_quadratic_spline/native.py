"""The C++ and CUDA kernels of the spline."""

from flowkern.ops._dispatcher import define
from flowkern.ops._native import coupling_kernels, coupling_ops

ARGUMENTS = (
    "Tensor x, Tensor params, Tensor? index, Tensor? bound, bool inverse, int tails, float left, "
    "float right, float bottom, float top, int knots, float min_width, float min_height, float min_slope, "
    "float softclip, float scale"
)
OPS = coupling_ops("rational_quadratic_spline", ARGUMENTS)
_library = define("flowkern", OPS)
forward, backward, KERNELS = coupling_kernels("rational_quadratic_spline")
