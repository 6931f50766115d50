// The neural ODE solve on the CPU: tiles on threads, and registration; the loops are in …_simd.cpp.
#include "../common/cpu.h"
#include "neural_ode_plan.h"

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
    const std::int64_t width = wide ? shape.wide : shape.narrow, tiles = (p.rows + width - 1) / width;
    // Each chunk has sums of its own, so that they do not depend on the number of threads.
    const std::int64_t chunks = p.backward ? chunk_count<S>(tiles, plan.chunk_size) : tiles;
    S* sums = scratch<S, 2>(plan.chunk_size * chunks);
    std::fill_n(sums, plan.chunk_size * chunks, S(0));
    torch::stable::parallel_for(0, chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      S* memory = scratch<S, 1>(p.memory * width);
      std::fill_n(memory, p.memory * width, S(0));  // padding is read, and must be numbers
      for (std::int64_t chunk = begin; chunk < end; ++chunk)
        for (std::int64_t tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; ++tile) {
          const std::int64_t row = tile * width;
          const int samples = int(std::min(width, p.rows - row));
          const OdeMemory<S> own{memory, sums + chunk * plan.chunk_size};
          if (p.backward) FLOWKERN_BY_ISA(ode_backward, p, row, samples, wide, own);
          else FLOWKERN_BY_ISA(ode_forward, p, row, samples, wide, own);
        }
    });
    if (p.backward) plan.finish(sums, chunks);
  }

  // Eight tiles or more to a chunk, but two chunks wherever there are two tiles; 32 MiB at the most.
  template <class S> static std::int64_t chunk_count(std::int64_t tiles, std::int64_t size) {
    const std::int64_t most = std::min<std::int64_t>(64, (32 << 20) / (size * std::int64_t(sizeof(S))));
    return std::min(tiles, std::max<std::int64_t>(2, std::min(tiles / 8, most)));
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("neural_ode", TORCH_BOX(&OdeOp<OdeOnCpu>::forward));
  m.impl("neural_ode_backward", TORCH_BOX(&OdeOp<OdeOnCpu>::backward));
}

}  // namespace
}  // namespace flowkern
