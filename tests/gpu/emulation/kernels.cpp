// Entry points for Python (device.py) to the ops' CUDA sources, which are compiled as C++ beside this.
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.h"
#include "problems.h"
#include "scheduler.h"
#include "symbols.h"

namespace {

template <class S> void run_spline(const Call& c) {
  if (c.grad_y.data) flowkern::cuda::spline_backward(spline<S>(c), nullptr);
  else flowkern::cuda::spline_forward(spline<S>(c), nullptr);
}
template <class S> void run_affine(const Call& c) {
  if (c.grad_y.data) flowkern::cuda::affine_backward(affine<S>(c), nullptr);
  else flowkern::cuda::affine_forward(affine<S>(c), nullptr);
}

template <class S> void run_path(const PathCall& c) {
  if (c.grad_x.data) flowkern::cuda::path_backward(path<S>(c), nullptr);
  else flowkern::cuda::path_forward(path<S>(c), nullptr);
}

template <class S> void run_stage(const StageCall& c) {
  if (c.y1.data) flowkern::cuda::runge_kutta_error(stage_error<S>(c), nullptr);
  else flowkern::cuda::runge_kutta_stage(stage<S>(c), nullptr);
}

template <class S> void run_solve(const SolveCall& c) {
  auto p = solve<S>(c);
  flowkern::cuda::ode_plan(p);
  std::vector<S> scratch(p.scratch_size);
  p.scratch = scratch.data();
  emulation::watch(p.scratch, scratch.size() * sizeof(S), "scratch", emulation::Use::kOutput);
  flowkern::cuda::ode_solve(p, nullptr);
}

template <class S> void run_masked(const MaskedCall& c) {
  const auto transform = masked<S>(c);
  const auto layers = masked_layers<S>(c);
  std::vector<S> scratch(flowkern::cuda::masked_scratch(transform, layers));
  emulation::watch(scratch.data(), scratch.size() * sizeof(S), "scratch", emulation::Use::kOutput);
  flowkern::cuda::masked_autoregressive(transform, layers, scratch.data(), nullptr);
}

using emulation::Use;
struct Watched { const char* name; const Tensor& tensor; Use use; };

void watch(std::initializer_list<Watched> all) {
  emulation::forget_all();
  for (const auto& [name, tensor, use] : all)
    if (tensor.data) emulation::watch(tensor.data, std::size_t(tensor.bytes), name, use);
}

void watch_all(const Call& c) {
  watch({
      {"x", c.x, Use::kInput},
      {"params", c.params, Use::kInput},
      {"index", c.index, Use::kInput},
      {"bound", c.bounds, Use::kInput},
      {"grad_y", c.grad_y, Use::kInput},
      {"grad_logabsdet", c.grad_logabsdet, Use::kInput},
      {c.grad_y.data ? "grad_x" : "y", c.y, Use::kOutput},
      {"logabsdet", c.logabsdet, Use::kOutput},
      {"grad_params", c.grad_params, Use::kOutput},
  });
}

void watch_all(const PathCall& c) {
  watch({
      {"t", c.t, Use::kInput},
      {"noise", c.noise, Use::kInput},
      {"seed", c.seed, Use::kInput},
      {"x0", c.x0, Use::kInput},
      {"x1", c.x1, Use::kInput},
      {"grad_x", c.grad_x, Use::kInput},
      {"grad_u", c.grad_u, Use::kInput},
      {"x_t", c.x_t, Use::kOutput},
      {"u_t", c.u_t, Use::kOutput},
      {"drawn", c.drawn, Use::kOutput},
      {"grad_x0", c.grad_x0, Use::kOutput},
      {"grad_x1", c.grad_x1, Use::kOutput},
      {"grad_t", c.grad_t, Use::kOutput},
  });
}

void watch_all(const StageCall& c) {
  watch({
      {"y", c.y, Use::kInput},
      {"y1", c.y1, Use::kInput},
      {"weights", c.weights, Use::kInput},
      {"out", c.out, Use::kOutput},
  });
  for (int j = 0; j < c.stages; ++j) emulation::watch(c.k[j].data, std::size_t(c.k[j].bytes), "k", Use::kInput);
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

void watch_all(const MaskedCall& c) {
  watch({
      {"x", c.given, Use::kInput},
      {"known", c.known, Use::kInput},
      {"order", c.order, Use::kInput},
      {"ends", c.ends, Use::kInput},
      {"grad_out", c.grad_out, Use::kInput},
      {"grad_logabsdet", c.grad_logabsdet, Use::kInput},
      {c.grad_out.data ? "grad_x" : "y", c.out, Use::kOutput},
      {"logabsdet", c.logabsdet, Use::kOutput},
      {"tape", c.tape, Use::kOutput},
  });
  const char* const names[] = {"weight", "bias", "gate", "gain", "offset"};
  for (int i = 0; i < 5 * c.layers; ++i)
    if (const Tensor& t = c.tensors[i]; t.data) emulation::watch(t.data, std::size_t(t.bytes), names[i % 5], Use::kInput);
  const char* const of_terms[] = {"context", "context's weight", "context's bias"};
  for (int i = 0; i < 3 * c.layers; ++i)
    if (const Tensor& t = c.terms[i]; t.data) emulation::watch(t.data, std::size_t(t.bytes), of_terms[i % 3], Use::kInput);
}

// What was wrong, or null.
template <class C, class F> const char* reported(const C& c, const F& run) {
  static std::string report;
  try {
    watch_all(c);
    run();
    return nullptr;
  } catch (const std::runtime_error& error) {
    report = error.what();
    return report.c_str();
  }
}

template <class Names> const char* lines(const Names& names) {
  static std::string text;
  text.clear();
  for (const std::string& name : names) text += name + "\n";
  return text.c_str();
}

}  // namespace

extern "C" {
const char* launched_kernels() { return lines(emulation::launched); }
const char* all_functions() { return lines(emulation::function_names()); }
const char* rational_quadratic_spline(const Call* c, bool wide) {
  return reported(*c, [&] { wide ? run_spline<double>(*c) : run_spline<float>(*c); });
}
const char* affine_coupling(const Call* c, bool wide) {
  return reported(*c, [&] { wide ? run_affine<double>(*c) : run_affine<float>(*c); });
}
const char* probability_path(const PathCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_path<double>(*c) : run_path<float>(*c); });
}
const char* neural_ode(const SolveCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_solve<double>(*c) : run_solve<float>(*c); });
}
const char* runge_kutta_stage(const StageCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_stage<double>(*c) : run_stage<float>(*c); });
}
const char* masked_autoregressive(const MaskedCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_masked<double>(*c) : run_masked<float>(*c); });
}
void settings(int schedule, unsigned seed, unsigned most_blocks) {
  emulation::settings = {schedule, seed, most_blocks};
}
}
