// The neural ODE solve in the emulation: from what emulated.py passes to the problem that its kernels take.
#include "neural_ode/cuda.h"
#include "../../gpu/emulation/call.h"

namespace {

constexpr int kLayers = 25;  // one more than the kernels take
struct SolveCall {
  std::int64_t rows, features, layers, stages, intervals, steps, every, directions;
  std::int64_t kinetic, jacobian, adjoint, backward, units[kLayers], activations[kLayers];
  double weight, slopes[kLayers], a[28], b[8], c[8];
  Tensor y, starts, sizes, row_bias, time, frequencies, closed, epsilon, ends, sums, kept, grad_ends, grad_sums;
  Tensor grad_y, grad_starts, grad_sizes, grad_row_bias, grad_time, grad_frequencies, grad_closed;
  Tensor weights[kLayers], biases[kLayers], grad_weights[kLayers], grad_biases[kLayers];
};

template <class S> flowkern::cuda::OdeSolve<S> solve(const SolveCall& c) {
  flowkern::cuda::check_ode_table(c.layers, c.stages);
  flowkern::cuda::OdeSolve<S> p{};
  p.rows = c.rows, p.features = int(c.features), p.layers = int(c.layers), p.stages = int(c.stages);
  p.intervals = int(c.intervals), p.steps = int(c.steps), p.every = int(c.every), p.directions = int(c.directions);
  p.closed = c.closed.data, p.kinetic = c.kinetic, p.jacobian = c.jacobian;
  p.backward = c.backward, p.adjoint = c.adjoint, p.weight = S(c.weight);
  for (int i = 0; i < 28; ++i) p.a[i] = S(c.a[i]);
  for (int i = 0; i < 8; ++i) p.b[i] = S(c.b[i]), p.c[i] = S(c.c[i]);
  p.y = c.y.at<S>(), p.starts = c.starts.at<S>(), p.sizes = c.sizes.at<S>(), p.row_bias = c.row_bias.at<S>();
  p.time = c.time.at<S>(), p.omega = c.frequencies.at<S>();
  p.frequencies = int(c.frequencies.bytes / sizeof(S)), p.phi = p.omega ? 2 * p.frequencies : p.time ? 1 : 0;
  p.closed_form = c.closed.at<S>(), p.epsilon = c.epsilon.at<S>();
  for (int d = 0; d < 3; ++d) p.epsilon_stride[d] = c.epsilon.stride[d];
  p.ends = c.ends.at<S>(), p.sums = c.sums.at<S>(), p.kept = c.kept.at<S>();
  p.grad_ends = c.grad_ends.at<S>(), p.grad_sums = c.grad_sums.at<S>(), p.grad_y = c.grad_y.at<S>();
  p.grad_starts = c.grad_starts.at<S>(), p.grad_sizes = c.grad_sizes.at<S>();
  p.grad_time = c.grad_time.at<S>(), p.grad_omega = c.grad_frequencies.at<S>();
  p.grad_row_bias = c.grad_row_bias.at<S>(), p.grad_closed = c.grad_closed.at<S>();
  for (int l = 0; l < p.layers; ++l) {
    auto& layer = p.layer[l];
    layer.units = int(c.units[l]), layer.inputs = int(l > 0 ? c.units[l - 1] : c.features);
    layer.weight = c.weights[l].at<S>(), layer.bias = c.biases[l].at<S>();
    layer.activation = int(c.activations[l]), layer.slope = S(c.slopes[l]);
    layer.grad_weight = c.grad_weights[l].at<S>(), layer.grad_bias = c.grad_biases[l].at<S>();
  }
  return p;
}

template <class S> void run_solve(const SolveCall& c) {
  auto p = solve<S>(c);
  flowkern::cuda::ode_plan(p);
  const Scratch<S> scratch(p.scratch_size);
  p.scratch = scratch.data;
  flowkern::cuda::ode_solve(p, nullptr);
}

void watch_all(const SolveCall& c) {
  watch({
      {"y", c.y, Use::kInput},
      {"starts", c.starts, Use::kInput},
      {"sizes", c.sizes, Use::kInput},
      {"row_bias", c.row_bias, Use::kInput},
      {"time", c.time, Use::kInput},
      {"frequencies", c.frequencies, Use::kInput},
      {"closed", c.closed, Use::kInput},
      {"directions", c.epsilon, Use::kInput},
      {"ends", c.ends, c.backward ? Use::kInput : Use::kOutput},
      {"sums", c.sums, Use::kOutput},
      {"kept", c.kept, c.backward ? Use::kInput : Use::kOutput},
      {"grad_ends", c.grad_ends, Use::kInput},
      {"grad_sums", c.grad_sums, Use::kInput},
      {"grad_y", c.grad_y, Use::kOutput},
      {"grad_starts", c.grad_starts, Use::kOutput},
      {"grad_sizes", c.grad_sizes, Use::kOutput},
      {"grad_row_bias", c.grad_row_bias, Use::kOutput},
      {"grad_time", c.grad_time, Use::kOutput},
      {"grad_frequencies", c.grad_frequencies, Use::kOutput},
      {"grad_closed", c.grad_closed, Use::kOutput},
  });
  const auto layers = [&](const Tensor* all, const char* name, Use use) {
    for (int l = 0; l < c.layers; ++l)
      if (all[l].data) emulation::watch(all[l].data, std::size_t(all[l].bytes), name, use);
  };
  layers(c.weights, "weight", Use::kInput), layers(c.biases, "bias", Use::kInput);
  layers(c.grad_weights, "grad_weight", Use::kOutput), layers(c.grad_biases, "grad_bias", Use::kOutput);
}

}  // namespace

extern "C" const char* neural_ode(const SolveCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_solve<double>(*c) : run_solve<float>(*c); });
}
