// What launches all of the op's CUDA kernels, at typical sizes (tests/gpu/compiled).
#include "../../../csrc/common/kinds.h"
#include "../../../csrc/rational_quadratic_spline/cuda.h"

namespace {

constexpr std::int64_t kRows = 4096, kFeatures = 32;

template <class S> void launches() {
  alignas(16) S some{};
  for (int bins : {4, 8, 10, 16, 32})
    for (int knots = 0; knots < flowkern::kKnotMaps; ++knots)
      for (bool inverse : {false, true}) {
        flowkern::SplineProblem<S> p{};
        p.rows = kRows, p.width = p.features = kFeatures, p.parameters = 3 * bins - 1;
        p.knots = knots, p.inverse = inverse;
        flowkern::cuda::spline_forward(p, nullptr);
        flowkern::cuda::spline_backward(p, nullptr);
        // Contiguous tensors.
        p.x_row = p.grad_y_row = kFeatures, p.x_feature = p.grad_y_feature = 1;
        p.params_one = p.grad_params_one = 1;
        for (int more : {0, 1}) {  // then those of circular splines
          p.parameters += more, p.tails = more ? flowkern::kCircular : p.tails;
          p.params_feature = p.grad_params_feature = p.parameters, p.params_row = p.grad_params_row = kFeatures * p.parameters;
          p.grad_params = nullptr;
          flowkern::cuda::spline_forward(p, nullptr);
          p.grad_params = &some;
          flowkern::cuda::spline_backward(p, nullptr);
        }
      }
}

}  // namespace
