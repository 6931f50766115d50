// The neural ODE solve on the CPU: tiles on threads, and registration; the loops are in simd.cpp.
#include "../common/cpu.h"
#include "../common/tiles.h"
#include "plan.h"

namespace flowkern {
namespace {

struct OdeOnCpu {
  explicit OdeOnCpu(const Tensor&) {}

  void run(OdeCall& call) const {
    if (call.rows() == 0) return;
    if (call.y.scalar_type() == ScalarType::Double) run_as<double>(call);
    else run_as<float>(call);
  }

  template <class S> static void run_as(OdeCall& call) {
    const OdeShape shape = FLOWKERN_BY_ISA(ode_shape, S());
    OdePlan<S> plan(call, shape);
    const OdeProblem<S>& p = plan.problem;
    const bool wide = p.rows > shape.narrow;
    const Tiles<S> tiles(p.rows, wide ? shape.wide : shape.narrow, plan.chunk_size);
    const auto memory = [&] {
      const std::int64_t size = p.memory * tiles.width + p.numbers;
      S* memory = scratch<S, 1>(size);
      std::fill_n(memory, size, S(0));  // padding is read, and must be numbers
      return memory;
    };
    tiles.each(1, memory, [&](S* tile, S* chunk, std::int64_t row, int samples) {
      const OdeMemory<S> own{tile, chunk};
      if (p.backward) FLOWKERN_BY_ISA(ode_backward, p, row, samples, wide, own);
      else FLOWKERN_BY_ISA(ode_forward, p, row, samples, wide, own);
    });
    if (p.backward) plan.finish(tiles.total());
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("neural_ode", TORCH_BOX(&OdeOp<OdeOnCpu>::forward));
  m.impl("neural_ode_backward", TORCH_BOX(&OdeOp<OdeOnCpu>::backward));
}

}  // namespace
}  // namespace flowkern
