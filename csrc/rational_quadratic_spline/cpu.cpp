// The spline on the CPU: threads, and registration; the loops are in simd.cpp.
#include "../common/cpu.h"
#include "torch.h"

namespace flowkern {
namespace {

struct SplineOnCpu {
  explicit SplineOnCpu(const Tensor&) {}

  const std::int64_t* index(const std::optional<Tensor>& index, const Tensor& x,
                            const Tensor& params) const {
    return index_pointer(index, params.size(1), x.size(1));
  }

  template <class S> static void check_bounds(const SplineProblem<S>& p) {
    for (std::int64_t t = 0; p.bounds && t < p.features; ++t)
      FLOWKERN_CHECK(p.bounds[t] > S(0) && p.bounds[t] < S(__builtin_inff()),
                     "bound: expected finite entries > 0 in the precision of x, got ", p.bounds[t]);
  }

  template <class S> void forward(const SplineProblem<S>& p) const {
    check_bounds(p);
    const auto loop = [&](auto... rows) { FLOWKERN_BY_ISA(spline_forward, p, rows...); };
    in_parallel(p.rows, p.features, 1024, loop);
  }
  template <class S> void backward(SplineProblem<S> p) const {
    check_bounds(p);
    p.streams = beyond_cache(2 * sizeof(S) * p.rows * p.features * p.parameters);
    const auto loop = [&](auto... rows) { FLOWKERN_BY_ISA(spline_backward, p, rows...); };
    in_parallel(p.rows, p.features, 1024, loop);
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("rational_quadratic_spline", TORCH_BOX(&SplineOp<SplineOnCpu>::forward));
  m.impl("rational_quadratic_spline_backward", TORCH_BOX(&SplineOp<SplineOnCpu>::backward));
}

}  // namespace
}  // namespace flowkern
