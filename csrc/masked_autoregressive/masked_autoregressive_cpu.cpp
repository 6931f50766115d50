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
    // A tile as wide as need be: samples that it lacks are computed all the same.
    const bool wide = p.rows > shape.narrow;
    const std::int64_t width = wide ? shape.wide : shape.narrow, tiles = (p.rows + width - 1) / width;
    // Each chunk has sums of its own, so that they do not depend on the number of threads.
    const std::int64_t chunks = plan.chunk_size > 0 ? chunk_count<S>(tiles, plan.chunk_size) : tiles;
    S* sums = scratch<S, 2>(plan.chunk_size * chunks);
    std::fill_n(sums, plan.chunk_size * chunks, S(0));
    // Waking a thread costs as much as so many multiplications.
    const std::int64_t tiles_at_least = kMultiplications / (plan.packed * width + 1) + 1;
    const std::int64_t grain = (tiles_at_least * chunks + tiles - 1) / tiles;
    torch::stable::parallel_for(0, chunks, grain, [&](std::int64_t begin, std::int64_t end) {
      S* memory = scratch<S, 1>(p.memory * width);
      for (std::int64_t chunk = begin; chunk < end; ++chunk)
        for (std::int64_t tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; ++tile) {
          const std::int64_t row = tile * width;
          const int samples = int(std::min(width, p.rows - row));
          const MaskedMemory<S> own{memory, sums + chunk * plan.chunk_size};
          if (call.grads) FLOWKERN_BY_ISA(masked_backward, p, row, samples, wide, own);
          else FLOWKERN_BY_ISA(masked_forward, p, row, samples, wide, own);
        }
    });
    if (call.grads) plan.finish(sums, int(chunks));
  }

  static constexpr std::int64_t kMultiplications = 1 << 18;

  // Eight tiles or more to a chunk, but two chunks wherever there are two tiles; 32 MiB at the most.
  template <class S> static std::int64_t chunk_count(std::int64_t tiles, std::int64_t size) {
    const std::int64_t most = std::min<std::int64_t>(64, (32 << 20) / (size * std::int64_t(sizeof(S))));
    return std::min(tiles, std::max<std::int64_t>(2, std::min(tiles / 8, most)));
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("masked_autoregressive", TORCH_BOX(&MaskedOp<MaskedOnCpu>::forward));
  m.impl("masked_autoregressive_gradients", TORCH_BOX(&MaskedOp<MaskedOnCpu>::gradients));
}

}  // namespace
}  // namespace flowkern
