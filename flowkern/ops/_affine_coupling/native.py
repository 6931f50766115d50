"""The C++ and CUDA kernels of the affine coupling."""

from flowkern.ops._native import coupling_kernels

ARGUMENTS = (
    "Tensor x, Tensor params, Tensor? index, bool inverse, bool scale_first, int kind, float a, "
    "float b, float prefactor, float shift_prefactor"
)
forward, backward, KERNELS = coupling_kernels("affine_coupling", ARGUMENTS)
