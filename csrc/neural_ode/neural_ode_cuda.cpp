// The neural ODE solve on CUDA: from tensors to what the kernels take, and registration; they are in …_cuda.cu.
#include "../common/cuda.h"
#include "neural_ode_cuda.h"
#include "neural_ode_torch.h"

#include <algorithm>

namespace flowkern {
namespace {

struct OdeOnCuda : OnDevice {
  using OnDevice::OnDevice;

  void run(OdeCall& call) const {
    cuda::check_ode_table(call.layers(), call.stages());
    if (call.rows() == 0) return;
    if (call.y.scalar_type() == ScalarType::Double) run_as<double>(call);
    else run_as<float>(call);
  }

  template <class S> void run_as(OdeCall& call) const {
    cuda::OdeSolve<S> p{};
    describe(call, p);
    for (int l = 0; l < p.layers; ++l) describe(call, l, p.layer[l]);
    cuda::ode_plan(p);
    Tensor scratch = torch::stable::new_empty(call.y, {p.scratch_size});
    p.scratch = static_cast<S*>(scratch.mutable_data_ptr());
    cuda::ode_solve(p, stream);
  }

  template <class S> static void describe(OdeCall& call, cuda::OdeSolve<S>& p) {
    const OdeSettings& set = call.set;
    p.rows = call.rows(), p.features = int(call.features()), p.layers = int(call.layers());
    p.stages = int(call.stages()), p.steps = int(call.steps.size(0)), p.every = int(set.every);
    p.closed = call.closed.has_value(), p.kinetic = set.kinetic, p.jacobian = set.jacobian;
    p.backward = call.grad_path != nullptr, p.adjoint = call.adjoint, p.weight = S(set.weight);
    std::copy(set.a.begin(), set.a.end(), p.a), std::copy(set.b.begin(), set.b.end(), p.b);
    read(call.y, p.y), read(call.steps, p.h), read(call.first, p.first);
    read(call.row_bias, p.row_bias), read(call.closed, p.closed_form), read(call.directions, p.epsilon);
    if (call.directions) {
      p.directions = int(call.directions->size(0));
      for (int d = 0; d < 3; ++d) p.epsilon_stride[d] = call.directions->stride(d);
    }
    if (!p.backward) return write(call.path, p.path), write(call.sums, p.sums);
    read(*call.grad_path, p.grad_path), read(*call.grad_sums, p.grad_sums), read(call.path, p.kept);
    S** grads[] = {&p.grad_y, &p.grad_h, &p.grad_first, &p.grad_row_bias, &p.grad_closed};
    for (int i = 0; i < 5; ++i) write(call.grads[i], *grads[i]);
  }

  template <class S> static void describe(OdeCall& call, int l, cuda::OdeLayer<S>& layer) {
    layer.units = int(call.weight(l).size(0)), layer.inputs = int(call.weight(l).size(1));
    read(call.weight(l), layer.weight);
    if (l > 0) read(call.bias(l), layer.bias);
    if (l + 1 < call.layers()) layer.activation = int(call.set.activations[l]), layer.slope = S(call.set.slopes[l]);
    if (!call.grad_path) return;
    write(call.grads[5 + l], layer.grad_weight);
    if (l > 0) write(call.grads[4 + call.layers() + l], layer.grad_bias);
  }

  template <class S> static void read(const Tensor& t, const S*& to) { to = static_cast<const S*>(t.const_data_ptr()); }
  template <class S> static void read(const std::optional<Tensor>& t, const S*& to) { if (t) read(*t, to); }
  template <class S> static void write(const Tensor& t, S*& to) { to = static_cast<S*>(t.mutable_data_ptr()); }
  template <class S> static void write(const std::optional<Tensor>& t, S*& to) { if (t) write(*t, to); }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CUDA, m) {
  m.impl("neural_ode", TORCH_BOX(&OdeOp<OdeOnCuda>::forward));
  m.impl("neural_ode_backward", TORCH_BOX(&OdeOp<OdeOnCuda>::backward));
}

}  // namespace
}  // namespace flowkern
