// The affine coupling on the CPU: threads, and registration; the loops are in …_simd.cpp.
#include "../common/cpu.h"
#include "affine_coupling_torch.h"

namespace flowkern {
namespace {

// A call that reads and writes more than this writes past the caches, which could not hold it.
// Rows of which a part is copied do not: their cache lines are written twice.
constexpr std::int64_t kCacheBytes = 32 << 20;

template <class S> bool streams(const AffineProblem<S>& p) {
  const std::int64_t per_row = 2 * p.width + (p.raw.base ? 2 : 1) * p.features;
  return !p.columns_in.base && p.rows * per_row * std::int64_t(sizeof(S)) >= kCacheBytes;
}

// Calls loop(p, begin, end) on several threads, with rows enough to be worth a thread's while.
template <class S, class F> void in_parallel(AffineProblem<S> p, const F& loop) {
  p.streams = streams(p);
  const std::int64_t grain = p.features < 16384 ? 16384 / p.features : 1;
  const auto task = [&](std::int64_t begin, std::int64_t end) { loop(p, begin, end); };
  if (p.rows > 0) torch::stable::parallel_for(0, p.rows, grain, task);
}

struct AffineOnCpu {
  explicit AffineOnCpu(const Tensor&) {}

  // Evenly spaced columns need no index.
  Columns columns(const std::optional<Tensor>& index, const Tensor& x, const Tensor& params) const {
    const std::int64_t features = params.size(1);
    const std::int64_t* i = index_pointer(index, features, x.size(1));
    if (!i) return {nullptr, 0, 1};
    const std::int64_t step = features > 1 ? i[1] - i[0] : 1;
    for (std::int64_t t = 1; t < features; ++t)
      if (step <= 0 || i[t] - i[t - 1] != step) return {i, 0, 0};
    return {i, features > 0 ? i[0] : 0, step};
  }

  template <class S> void forward(const AffineProblem<S>& p) const {
    in_parallel(p, [](const auto&... rows) { FLOWKERN_BY_ISA(affine_forward, rows...); });
  }
  template <class S> void backward(const AffineProblem<S>& p) const {
    in_parallel(p, [](const auto&... rows) { FLOWKERN_BY_ISA(affine_backward, rows...); });
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("affine_coupling", TORCH_BOX(&AffineOp<AffineOnCpu>::forward));
  m.impl("affine_coupling_backward", TORCH_BOX(&AffineOp<AffineOnCpu>::backward));
}

}  // namespace
}  // namespace flowkern
