"""The C++ and CUDA kernels of the affine coupling."""

from flowkern.ops._dispatcher import define
from flowkern.ops._native import coupling_kernels, coupling_ops

ARGUMENTS = (
    "Tensor x, Tensor params, Tensor? index, bool inverse, bool scale_first, int kind, float a, "
    "float b, float prefactor, float shift_prefactor"
)
OPS = coupling_ops("affine_coupling", ARGUMENTS)
_library = define("flowkern", OPS)
forward, backward, KERNELS = coupling_kernels("affine_coupling")
