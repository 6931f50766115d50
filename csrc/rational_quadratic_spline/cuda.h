// What the torch side (cuda.cpp) asks of the kernels (cuda.cu), which know nothing of torch.
#pragma once

#include "cpu.h"

namespace flowkern {
namespace cuda {

// `stream` is a cudaStream_t. Throws std::runtime_error where the kernel cannot be launched.
void spline_forward(const SplineProblem<float>&, void* stream);
void spline_forward(const SplineProblem<double>&, void* stream);
void spline_backward(const SplineProblem<float>&, void* stream);
void spline_backward(const SplineProblem<double>&, void* stream);

}  // namespace cuda
}  // namespace flowkern
