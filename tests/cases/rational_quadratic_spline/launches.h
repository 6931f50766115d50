// What launches all of the op's CUDA kernels, at typical sizes (tests/gpu/compiled).
#include "../../../csrc/common/kinds.h"
#include "../../../csrc/rational_quadratic_spline/cuda.h"

namespace {

constexpr std::int64_t kRows = 4096, kFeatures = 32;

template <class S> void launches() {
  for (int bins : {4, 8, 10, 16, 32})
    for (int knots = 0; knots < flowkern::kKnotMaps; ++knots)
      for (bool inverse : {false, true}) {
        flowkern::SplineProblem<S> p{};
        p.rows = kRows, p.width = p.features = kFeatures, p.parameters = 3 * bins - 1;
        p.knots = knots, p.inverse = inverse;
        flowkern::cuda::spline_forward(p, nullptr);
        flowkern::cuda::spline_backward(p, nullptr);
      }
}

}  // namespace
