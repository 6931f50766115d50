// What launches all of the op's CUDA kernels, at typical sizes (tests/gpu/compiled).
#include "../../../csrc/masked_autoregressive/cuda.h"

namespace {

constexpr std::int64_t kRows = 4096, kFeatures = 32;

// Two hidden layers of 128; with bins, a spline of so many.
template <class S> void launches() {
  for (int bins : {0, 8})
    for (int knots = 0; knots < flowkern::kKnotMaps; ++knots)
      for (bool inverse : {false, true})
        for (bool backward : {false, true}) {
          const S some{};
          flowkern::MaskedTransform<S> t{};
          t.rows = kRows, t.features = t.levels = kFeatures, t.parameters = bins ? 3 * bins - 1 : 2;
          t.element = bins ? flowkern::ElementCode{flowkern::kSpline, flowkern::kIdentity, knots, {}}
                           : flowkern::ElementCode{flowkern::kAffine, flowkern::kExp, 0, {}};
          t.inverse = inverse;
          if (backward) t.grad_out.base = &some;
          std::vector<flowkern::MaskedLayer<S>> layers(3);
          for (auto& layer : layers) layer.units = 128, layer.skip = -1;
          layers.back().units = t.features * t.parameters;
          std::vector<S> scratch(flowkern::cuda::masked_scratch(t, layers));
          flowkern::cuda::masked_autoregressive(t, layers, scratch.data(), nullptr);
        }
}

}  // namespace
