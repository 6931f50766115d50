// What launches all of the op's CUDA kernels, at typical sizes (tests/gpu/compiled).
#include "../../../csrc/runge_kutta_stage/cuda.h"

namespace {

constexpr std::int64_t kRows = 4096, kFeatures = 32;

template <class S> void launches() {
  for (int stages = 1; stages <= flowkern::kMostStages; ++stages) {
    flowkern::StageProblem<S> step{};
    flowkern::ErrorProblem<S> error{};
    for (auto* c : {&step.combination, &error.combination}) c->rows = kRows, c->width = kFeatures, c->stages = stages;
    flowkern::cuda::runge_kutta_stage(step, nullptr);
    flowkern::cuda::runge_kutta_error(error, nullptr);
  }
}

}  // namespace
