// Runge-Kutta stages on the CPU: threads, and registration; the loops are in simd.cpp.
#include "../common/cpu.h"
#include "torch.h"

namespace flowkern {
namespace {

struct StageOnCpu {
  explicit StageOnCpu(const Tensor&) {}

  template <class S> void stage(const StageProblem<S>& p) const {
    const auto& c = p.combination;
    in_parallel(c.rows, c.width, 32768, [&](auto begin, auto end) { FLOWKERN_BY_ISA(runge_kutta_stage, p, begin, end); });
  }
  template <class S> void error(const ErrorProblem<S>& p) const {
    const auto& c = p.combination;
    in_parallel(c.rows, c.width, 16384, [&](auto begin, auto end) { FLOWKERN_BY_ISA(runge_kutta_error, p, begin, end); });
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("runge_kutta_stage", TORCH_BOX(&StageOp<StageOnCpu>::stage));
  m.impl("runge_kutta_error", TORCH_BOX(&StageOp<StageOnCpu>::error));
}

}  // namespace
}  // namespace flowkern
