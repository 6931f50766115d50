// What launches all of the op's CUDA kernels, at typical sizes (tests/gpu/compiled).
#include "../../../csrc/probability_path/cuda.h"

namespace {

constexpr std::int64_t kRows = 4096, kFeatures = 32;

template <class S> void launches() {
  for (int kind = 0; kind < 4; ++kind)
    for (bool given : {false, true}) {
      const S some{};
      flowkern::PathProblem<S> p{};
      p.rows = kRows, p.features = kFeatures, p.kind = kind, p.draws_noise = !given;
      if (given) p.given_t = p.noise = &some;
      flowkern::cuda::path_forward(p, nullptr);
      flowkern::cuda::path_backward(p, nullptr);
    }
}

}  // namespace
