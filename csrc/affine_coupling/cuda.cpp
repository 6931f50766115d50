// Registration of the affine coupling on CUDA; the kernels are in cuda.cu.
#include "../common/cuda.h"
#include "cuda.h"
#include "torch.h"

namespace flowkern {
namespace {

struct AffineOnCuda : OnDevice {
  using OnDevice::OnDevice;
  // Entries outside [0, width) give NaN: looking at them here would wait for the device.
  Columns columns(const std::optional<Tensor>& index, const Tensor& x, const Tensor& params) const {
    const std::int64_t* values = index_values(index, x, params);
    return {values, 0, values ? 0 : 1};
  }
  template <class S> void forward(const AffineProblem<S>& p) const { cuda::affine_forward(p, stream); }
  template <class S> void backward(const AffineProblem<S>& p) const { cuda::affine_backward(p, stream); }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CUDA, m) {
  m.impl("affine_coupling", TORCH_BOX(&AffineOp<AffineOnCuda>::forward));
  m.impl("affine_coupling_backward", TORCH_BOX(&AffineOp<AffineOnCuda>::backward));
}

}  // namespace
}  // namespace flowkern
