// The masked autoregressive transform on the CPU: tiles on threads, and registration; the loops are
// in …_simd.cpp.
#include "../common/cpu.h"
#include "masked_autoregressive_plan.h"

namespace flowkern {
namespace {

struct MaskedOnCpu {
  explicit MaskedOnCpu(const Tensor&) {}

  void run(const MaskedCall& call) const {
    if (call.x.size(0) == 0) return;
    if (call.x.scalar_type() == ScalarType::Double) run_as<double>(call);
    else run_as<float>(call);
  }

  template <class S> static void run_as(const MaskedCall& call) {
    const MaskedShape shape = FLOWKERN_BY_ISA(masked_shape, S());
    const MaskedPlan<S> plan(call, shape);
    const MaskedProblem<S>& p = plan.problem;
    if (call.tape && plan.leaves_units()) torch::stable::zero_(*call.tape);
    // A tile as wide as need be: samples that it lacks are computed all the same.
    const bool wide = p.rows > shape.narrow;
    const std::int64_t width = wide ? shape.wide : shape.narrow;
    torch::stable::parallel_for(0, (p.rows + width - 1) / width, 1, [&](std::int64_t begin, std::int64_t end) {
      S* memory = scratch<S, 1>(p.memory * width);
      for (std::int64_t tile = begin; tile < end; ++tile) {
        const std::int64_t row = tile * width;
        const int samples = int(std::min(width, p.rows - row));
        if (call.grad_out) FLOWKERN_BY_ISA(masked_backward, p, row, samples, wide, memory);
        else FLOWKERN_BY_ISA(masked_forward, p, row, samples, wide, memory);
      }
    });
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("masked_autoregressive", TORCH_BOX(&MaskedOp<MaskedOnCpu>::forward));
  m.impl("masked_autoregressive_backward", TORCH_BOX(&MaskedOp<MaskedOnCpu>::backward));
}

}  // namespace
}  // namespace flowkern
