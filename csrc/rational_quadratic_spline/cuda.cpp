// Registration of the spline on CUDA; the kernels are in cuda.cu.
#include "../common/cuda.h"
#include "cuda.h"
#include "torch.h"

namespace flowkern {
namespace {

struct SplineOnCuda : OnDevice {
  using OnDevice::OnDevice;
  // Entries outside [0, width) give NaN: looking at them here would wait for the device.
  const std::int64_t* index(const std::optional<Tensor>& index, const Tensor& x, const Tensor& params) const {
    return index_values(index, x, params);
  }
  template <class S> void forward(const SplineProblem<S>& p) const { cuda::spline_forward(p, stream); }
  template <class S> void backward(const SplineProblem<S>& p) const { cuda::spline_backward(p, stream); }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CUDA, m) {
  m.impl("rational_quadratic_spline", TORCH_BOX(&SplineOp<SplineOnCuda>::forward));
  m.impl("rational_quadratic_spline_backward", TORCH_BOX(&SplineOp<SplineOnCuda>::backward));
}

}  // namespace
}  // namespace flowkern
