// The probability path on the CPU: threads, and registration; the loops are in simd.cpp.
#include "../common/cpu.h"
#include "torch.h"

namespace flowkern {
namespace {

struct PathOnCpu {
  explicit PathOnCpu(const Tensor&) {}

  static std::int64_t blocks(std::int64_t count) { return (count + kPathBlock - 1) / kPathBlock; }

  // Calls loop(p, begin, end) for the blocks of `count` elements or times on several threads.
  template <class S, class F> static void run(std::int64_t count, const PathProblem<S>& p, const F& loop) {
    in_parallel(blocks(count), kPathBlock, 16384, [&](auto begin, auto end) { loop(p, begin, end); });
  }

  template <class S> void forward(PathProblem<S> p) const {
    const std::int64_t count = p.rows * p.features;
    p.streams = beyond_cache(4 * count * std::int64_t(sizeof(S))) && aligned(p.x_t) && aligned(p.u_t);
    if (!p.given_t) run(p.rows, p, [](const auto&... some) { FLOWKERN_BY_ISA(path_times, some...); });
    run(count, p, [](const auto&... some) { FLOWKERN_BY_ISA(path_forward, some...); });
  }
  template <class S> void backward(const PathProblem<S>& p) const {
    run(p.rows * p.features, p, [](const auto&... some) { FLOWKERN_BY_ISA(path_backward, some...); });
  }

  static bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 64 == 0; }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("probability_path", TORCH_BOX(&PathOp<PathOnCpu>::forward));
  m.impl("probability_path_backward", TORCH_BOX(&PathOp<PathOnCpu>::backward));
}

}  // namespace
}  // namespace flowkern
