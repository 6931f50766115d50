// What the torch side (cuda.cpp) asks of the kernels (cuda.cu), which know nothing of torch.
#pragma once

#include "cpu.h"

namespace flowkern {
namespace cuda {

// `stream` is a cudaStream_t. Throws std::runtime_error where the kernel cannot be launched.
void runge_kutta_stage(const StageProblem<float>&, void* stream);
void runge_kutta_stage(const StageProblem<double>&, void* stream);
void runge_kutta_error(const ErrorProblem<float>&, void* stream);
void runge_kutta_error(const ErrorProblem<double>&, void* stream);

}  // namespace cuda
}  // namespace flowkern
