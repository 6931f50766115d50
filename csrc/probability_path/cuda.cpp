// Registration of the probability path on CUDA; the kernels are in cuda.cu.
#include "../common/cuda.h"
#include "cuda.h"
#include "torch.h"

namespace flowkern {
namespace {

struct PathOnCuda : OnDevice {
  using OnDevice::OnDevice;
  template <class S> void forward(const PathProblem<S>& p) const { cuda::path_forward(p, stream); }
  template <class S> void backward(const PathProblem<S>& p) const { cuda::path_backward(p, stream); }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CUDA, m) {
  m.impl("probability_path", TORCH_BOX(&PathOp<PathOnCuda>::forward));
  m.impl("probability_path_backward", TORCH_BOX(&PathOp<PathOnCuda>::backward));
}

}  // namespace
}  // namespace flowkern
