// Registration of Runge-Kutta stages on CUDA; the kernels are in cuda.cu.
#include "../common/cuda.h"
#include "cuda.h"
#include "torch.h"

namespace flowkern {
namespace {

struct StageOnCuda : OnDevice {
  using OnDevice::OnDevice;
  template <class S> void stage(const StageProblem<S>& p) const { cuda::runge_kutta_stage(p, stream); }
  template <class S> void error(const ErrorProblem<S>& p) const { cuda::runge_kutta_error(p, stream); }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CUDA, m) {
  m.impl("runge_kutta_stage", TORCH_BOX(&StageOp<StageOnCuda>::stage));
  m.impl("runge_kutta_error", TORCH_BOX(&StageOp<StageOnCuda>::error));
}

}  // namespace
}  // namespace flowkern
