// The neural ODE solve on CUDA: from tensors to what the kernels take, and registration; they are in cuda.cu.
#include "../common/cuda.h"
#include "cuda.h"
#include "torch.h"

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
    p.stages = int(call.stages()), p.intervals = int(call.intervals());
    p.steps = int(set.steps), p.every = int(set.every);
    p.frequencies = call.frequencies ? int(call.frequencies->size(0)) : 0;
    p.phi = call.time ? int(call.time->size(1)) : 0;
    p.closed = call.closed.has_value(), p.kinetic = set.kinetic, p.jacobian = set.jacobian;
    p.backward = call.grad_ends != nullptr, p.adjoint = call.adjoint, p.weight = S(set.weight);
    std::copy(set.a.begin(), set.a.end(), p.a), std::copy(set.b.begin(), set.b.end(), p.b);
    std::copy(set.c.begin(), set.c.end(), p.c);
    read(call.y, p.y), read(call.starts, p.starts), read(call.sizes, p.sizes);
    read(call.time, p.time), read(call.frequencies, p.omega);
    read(call.row_bias, p.row_bias), read(call.closed, p.closed_form), read(call.directions, p.epsilon);
    if (call.directions) {
      p.directions = int(call.directions->size(0));
      for (int d = 0; d < 3; ++d) p.epsilon_stride[d] = call.directions->stride(d);
    }
    write(call.ends, p.ends), write(call.kept, p.kept);
    if (!p.backward) return write(call.sums, p.sums);
    read(*call.grad_ends, p.grad_ends), read(*call.grad_sums, p.grad_sums);
    S** grads[] = {&p.grad_y,    &p.grad_starts, &p.grad_sizes, &p.grad_row_bias,
                   &p.grad_time, &p.grad_omega,  &p.grad_closed};
    for (int i = 0; i < OdeCall::kGradOfTensors; ++i) write(call.grads[i], *grads[i]);
  }

  template <class S> static void describe(OdeCall& call, int l, cuda::OdeLayer<S>& layer) {
    layer.units = int(call.weight(l).size(0)), layer.inputs = int(call.weight(l).size(1));
    read(call.weight(l), layer.weight);
    read(call.bias(l), layer.bias);
    if (l + 1 < call.layers()) layer.activation = int(call.set.activations[l]), layer.slope = S(call.set.slopes[l]);
    if (!call.grad_ends) return;
    write(call.grads[OdeCall::kGradOfTensors + l], layer.grad_weight);
    write(call.grads[OdeCall::kGradOfTensors + call.layers() + l], layer.grad_bias);
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
