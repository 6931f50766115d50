// What the torch side (cuda.cpp) asks of the kernels (cuda.cu), which know nothing of torch.
#pragma once

#include "cpu.h"

namespace flowkern {
namespace cuda {

// `stream` is a cudaStream_t. Throws std::runtime_error where the kernel cannot be launched.
void path_forward(const PathProblem<float>&, void* stream);
void path_forward(const PathProblem<double>&, void* stream);
void path_backward(const PathProblem<float>&, void* stream);
void path_backward(const PathProblem<double>&, void* stream);

}  // namespace cuda
}  // namespace flowkern
