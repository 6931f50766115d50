// The masked autoregressive transform on the CPU: tiles on threads, and registration; the loops are
// in …_simd.cpp.
#include "../common/cpu.h"
#include "../common/tiles.h"
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
    // A tile as wide as need be: samples that it lacks are computed all the same.
    const bool wide = p.rows > shape.narrow;
    const Tiles<S> tiles(p.rows, wide ? shape.wide : shape.narrow, plan.chunk_size);
    // Waking a thread costs as much as so many multiplications.
    const std::int64_t tiles_at_least = kMultiplications / (plan.packed * tiles.width + 1) + 1;
    const std::int64_t grain = (tiles_at_least * tiles.chunks + tiles.count - 1) / tiles.count;
    const auto memory = [&] { return scratch<S, 1>(p.memory * tiles.width); };
    tiles.each(grain, memory, [&](S* tile, S* chunk, std::int64_t row, int samples) {
      const MaskedMemory<S> own{tile, chunk};
      if (call.grads) FLOWKERN_BY_ISA(masked_backward, p, row, samples, wide, own);
      else FLOWKERN_BY_ISA(masked_forward, p, row, samples, wide, own);
    });
    if (call.grads) plan.finish(tiles.sums, int(tiles.chunks));
  }

  static constexpr std::int64_t kMultiplications = 1 << 18;
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("masked_autoregressive", TORCH_BOX(&MaskedOp<MaskedOnCpu>::forward));
  m.impl("masked_autoregressive_gradients", TORCH_BOX(&MaskedOp<MaskedOnCpu>::gradients));
}

}  // namespace
}  // namespace flowkern
