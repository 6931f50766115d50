// What launches all of the op's CUDA kernels, at typical sizes (tests/gpu/compiled).
#include "../../../csrc/affine_coupling/cuda.h"
#include "../../../csrc/common/kinds.h"

namespace {

constexpr std::int64_t kRows = 4096, kFeatures = 32;

template <class S> void launches() {
  alignas(16) const S some{};
  for (int kind = 0; kind < flowkern::kScaleMaps; ++kind)
    for (bool inverse : {false, true}) {
      flowkern::AffineProblem<S> p{};
      p.rows = kRows, p.width = p.features = kFeatures, p.kind = kind, p.inverse = inverse;
      flowkern::cuda::affine_forward(p, nullptr);
      flowkern::cuda::affine_backward(p, nullptr);
      p.x.feature = p.y.feature = p.shift.feature = p.raw.feature = 1;  // features that are neighbours
      flowkern::cuda::affine_forward(p, nullptr);
      p.grad_y.base = &some, p.grad_y.feature = p.grad_shift.feature = p.grad_raw.feature = 1;
      flowkern::cuda::affine_backward(p, nullptr);
    }
}

}  // namespace
