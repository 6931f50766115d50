// A flow's program on the CPU: tiles on threads, and registration; the loops are in simd.cpp.
#include "../common/cpu.h"
#include "../common/tiles.h"
#include "plan.h"

namespace flowkern {
namespace {

struct FlowOnCpu {
  static void run(const FlowCall& call) {
    if (call.x.scalar_type() == ScalarType::Double) run_as<double>(call);
    else run_as<float>(call);
  }

  template <class S> static void run_as(const FlowCall& call) {
    const MaskedShape shape = FLOWKERN_BY_ISA(masked_shape, S());
    const std::int64_t width = call.x.size(0) > shape.narrow ? shape.wide : shape.narrow;
    const std::int64_t samples = (call.x.size(0) + width - 1) / width * width;
    std::optional<FlowPlan<S>> made(std::in_place, call, shape, call.grads ? call.kept->numel() > 0 : call.kept != nullptr);
    if (!call.grads && made->kept(samples) * std::int64_t(sizeof(S)) > kMostKept) made.emplace(call, shape, false);
    FlowPlan<S>& plan = *made;
    plan.keep(samples);
    if (plan.problem.rows == 0) return plan.clear();
    S* packed = scratch<S, 0>(plan.packed);
    each_step(plan, plan.packed, [&](int i) { plan.pack(i, packed); });
    const FlowProblem<S>& p = plan.problem;
    const Tiles<S> tiles(p.rows, width, plan.chunk_size);
    const std::int64_t tiles_at_least = kMultiplications / (plan.packed * tiles.width + 1) + 1;
    const std::int64_t grain = tiles.count ? (tiles_at_least * tiles.chunks + tiles.count - 1) / tiles.count : 1;
    const auto memory = [&] { return scratch<S, 1>((flow_rows(p) + p.memory) * tiles.width); };
    tiles.each(grain, memory, [&](S* tile, S* chunk, std::int64_t row, int samples) {
      const bool wide = samples > shape.narrow;
      if (call.grads) FLOWKERN_BY_ISA(flow_backward, p, row, samples, wide, tile, chunk);
      else FLOWKERN_BY_ISA(flow_forward, p, row, samples, wide, tile);
    });
    if (call.grads) {
      const S* sums = tiles.total();
      each_step(plan, plan.chunk_size, [&](int i) { plan.finish(i, sums); });
    }
  }

  // body(i) for each step, on several threads where there are many numbers to move.
  template <class S, class F> static void each_step(const FlowPlan<S>& plan, std::int64_t numbers, const F& body) {
    const std::int64_t grain = numbers < kNumbers ? plan.count() : 1;
    parallel_for(plan.count(), grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) body(int(i));
    });
  }

  // Bytes of values that are kept: more are read no sooner than they are computed again.
  static constexpr std::int64_t kMostKept = 4 << 20;
  // Waking a thread costs as much as so many multiplications, or numbers moved.
  static constexpr std::int64_t kMultiplications = 1 << 18, kNumbers = 1 << 15;
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("flow_program", TORCH_BOX(&FlowOp<FlowOnCpu>::forward));
  m.impl("flow_program_gradients", TORCH_BOX(&FlowOp<FlowOnCpu>::gradients));
}

}  // namespace
}  // namespace flowkern
