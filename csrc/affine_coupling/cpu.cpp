// The affine coupling on the CPU: threads, and registration; the loops are in simd.cpp.
#include "../common/cpu.h"
#include "torch.h"

namespace flowkern {
namespace {

// Rows of which a part is copied do not pass the caches by: their cache lines are written twice.
template <class S> bool streams(const AffineProblem<S>& p) {
  const std::int64_t per_row = 2 * p.width + (p.raw.base ? 2 : 1) * p.features;
  return !p.columns_in.base && beyond_cache(p.rows * per_row * std::int64_t(sizeof(S)));
}

// Calls loop(p, begin, end) on several threads.
template <class S, class F> void run(AffineProblem<S> p, const F& loop) {
  p.streams = streams(p);
  in_parallel(p.rows, p.features, 16384, [&](auto begin, auto end) { loop(p, begin, end); });
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
    run(p, [](const auto&... rows) { FLOWKERN_BY_ISA(affine_forward, rows...); });
  }
  template <class S> void backward(const AffineProblem<S>& p) const {
    run(p, [](const auto&... rows) { FLOWKERN_BY_ISA(affine_backward, rows...); });
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("affine_coupling", TORCH_BOX(&AffineOp<AffineOnCpu>::forward));
  m.impl("affine_coupling_backward", TORCH_BOX(&AffineOp<AffineOnCpu>::backward));
}

}  // namespace
}  // namespace flowkern
