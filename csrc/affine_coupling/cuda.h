// What the torch side (cuda.cpp) asks of the kernels (cuda.cu), which know nothing of torch.
#pragma once

#include "cpu.h"

namespace flowkern {
namespace cuda {

// `stream` is a cudaStream_t. Throws std::runtime_error where the kernel cannot be launched.
void affine_forward(const AffineProblem<float>&, void* stream);
void affine_forward(const AffineProblem<double>&, void* stream);
void affine_backward(const AffineProblem<float>&, void* stream);
void affine_backward(const AffineProblem<double>&, void* stream);

}  // namespace cuda
}  // namespace flowkern
