// The torch side of the neural ODE solve, the same on every device: checks and outputs.
// A Device has
//   explicit Device(y)   for the duration of a call
//   run(call)            computes what the call asks for
#pragma once

#include "../common/checks.h"

#include <vector>

namespace flowkern {
namespace {

using OptionalTensors = std::vector<std::optional<Tensor>>;

// What is no tensor; schema order, see flowkern/ops/_neural_ode/native.py.
struct OdeSettings {
  std::vector<std::int64_t> activations;
  std::vector<double> slopes, a, b, c;
  std::int64_t steps, every;
  double weight;
  bool kinetic, jacobian;
};

// One call. The forward fills ends, sums and kept; the backward is given ends and kept, and fills grads, one
// for each of y, starts, sizes, row_bias, time, frequencies, closed and tensors that there is.
struct OdeCall {
  const Tensor &y, &starts, &sizes;
  const std::optional<Tensor>&row_bias, &time, &frequencies, &closed, &directions;
  const OptionalTensors& tensors;
  const OdeSettings& set;
  const Tensor &ends, &sums, &kept;
  const Tensor *grad_ends, *grad_sums;
  bool adjoint;
  std::vector<std::optional<Tensor>> grads;

  static constexpr std::int64_t kGradOfTensors = 7;  // where in grads those of tensors begin

  std::int64_t rows() const { return y.size(0); }
  std::int64_t features() const { return y.size(1); }
  std::int64_t layers() const { return std::int64_t(set.activations.size()) + 1; }
  std::int64_t stages() const { return std::int64_t(set.b.size()); }
  const Tensor& weight(std::int64_t l) const { return *tensors[l]; }
  const std::optional<Tensor>& bias(std::int64_t l) const { return tensors[layers() + l]; }
  std::int64_t intervals() const { return starts.size(0); }
};

inline void check_ode_tensor(const char* name, const Tensor& t, const Tensor& y,
                             std::vector<std::int64_t> shape) {
  bool fits = t.dim() == std::int64_t(shape.size());
  for (std::size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(d) == shape[d];
  FLOWKERN_CHECK(fits, name, ": has the wrong shape");
  FLOWKERN_CHECK(t.scalar_type() == y.scalar_type(), name, ": expected the dtype of y");
  check_device(name, t, y);
}

inline void check_contiguous(const char* name, const Tensor& t) {
  FLOWKERN_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor");
}

inline void check_layers(const OdeCall& c) {
  const std::int64_t count = 2 * c.layers();
  FLOWKERN_CHECK(std::int64_t(c.tensors.size()) == count, "tensors: expected ", count);
  std::int64_t inputs = c.features();
  for (std::int64_t l = 0; l < c.layers(); ++l) {
    FLOWKERN_CHECK(c.tensors[l].has_value() && c.weight(l).dim() == 2,
                   "tensors: layer ", l, " has no weight");
    const std::int64_t units = l + 1 < c.layers() ? c.weight(l).size(0) : c.features();
    check_ode_tensor("tensors", c.weight(l), c.y, {units, inputs});
    check_contiguous("tensors", c.weight(l));
    if (c.bias(l)) {
      check_ode_tensor("tensors", *c.bias(l), c.y, {units});
      check_contiguous("tensors", *c.bias(l));
    }
    inputs = units;
  }
}

inline void check_settings(const OdeCall& c) {
  const OdeSettings& set = c.set;
  FLOWKERN_CHECK(set.slopes.size() == set.activations.size(), "slopes: expected one for each activation");
  for (const std::int64_t code : set.activations) check_kind("activations", code, kActivations);
  FLOWKERN_CHECK(c.stages() >= 1 && std::int64_t(set.a.size()) == c.stages() * (c.stages() - 1) / 2 &&
                     set.c.size() == set.b.size(),
                 "a, b, c: do not fit each other");
  FLOWKERN_CHECK(!set.jacobian || c.directions, "jacobian: needs directions");
}

inline void check_time(const OdeCall& c, std::int64_t units) {
  FLOWKERN_CHECK(c.time || !c.frequencies, "frequencies: need time");
  if (!c.time) return;
  std::int64_t columns = 1;
  if (c.frequencies) {
    FLOWKERN_CHECK(c.frequencies->dim() == 1, "frequencies: expected shape (P/2,)");
    check_ode_tensor("frequencies", *c.frequencies, c.y, {c.frequencies->size(0)});
    check_contiguous("frequencies", *c.frequencies);
    columns = 2 * c.frequencies->size(0);
  }
  check_ode_tensor("time", *c.time, c.y, {units, columns});
  check_contiguous("time", *c.time);
}

inline void check(const OdeCall& c) {
  FLOWKERN_CHECK(c.y.dim() == 2 && c.features() > 0, "y: expected shape (N, D)");
  FLOWKERN_CHECK(c.y.scalar_type() == ScalarType::Float || c.y.scalar_type() == ScalarType::Double,
                 "y: expected float32 or float64");
  FLOWKERN_CHECK(c.starts.dim() == 1, "starts: expected shape (I,)");
  check_ode_tensor("starts", c.starts, c.y, {c.intervals()});
  check_ode_tensor("sizes", c.sizes, c.y, {c.intervals()});
  check_layers(c);
  check_settings(c);
  const std::int64_t units = c.weight(0).size(0);
  for (const Tensor* t : {&c.y, &c.starts, &c.sizes}) check_contiguous("y, starts, sizes", *t);
  if (c.row_bias) {
    check_ode_tensor("row_bias", *c.row_bias, c.y, {c.rows(), units});
    check_contiguous("row_bias", *c.row_bias);
  }
  check_time(c, units);
  if (c.directions)
    check_ode_tensor("directions", *c.directions, c.y, {c.directions->size(0), c.rows(), c.features()});
  if (!c.closed) return;
  FLOWKERN_CHECK(!c.directions && (c.layers() == 2 || c.layers() == 3),
                 "closed: of one or two hidden layers, without directions");
  check_contiguous("closed", *c.closed);
  if (c.layers() == 2) check_ode_tensor("closed", *c.closed, c.y, {units});
  else check_ode_tensor("closed", *c.closed, c.y, {c.weight(1).size(0), units});
}

template <class Device> struct OdeOp {
  static std::tuple<Tensor, Tensor, Tensor> forward(
      Tensor y, Tensor starts, Tensor sizes, std::optional<Tensor> row_bias, std::optional<Tensor> time,
      std::optional<Tensor> frequencies, std::optional<Tensor> closed, std::optional<Tensor> directions,
      OptionalTensors tensors, std::vector<std::int64_t> activations, std::vector<double> slopes,
      std::vector<double> a, std::vector<double> b, std::vector<double> c, std::int64_t steps,
      std::int64_t every, double weight, bool kinetic, bool jacobian) {
    const OdeSettings set{activations, slopes, a, b, c, steps, every, weight, kinetic, jacobian};
    check_every(set);
    check_matrix("y", y);
    FLOWKERN_CHECK(starts.dim() == 1, "starts: expected shape (I,)");
    const std::int64_t intervals = starts.size(0), inner = steps / every - 1;
    const Tensor ends = torch::stable::new_empty(y, {intervals, y.size(0), y.size(1)});
    const Tensor sums = torch::stable::new_empty(y, {intervals, 3, y.size(0)});
    const Tensor kept = torch::stable::new_empty(y, {intervals, inner, y.size(0), y.size(1)});
    OdeCall call{y,   starts, sizes, row_bias, time,    frequencies, closed, directions, tensors,
                 set, ends,   sums,  kept,     nullptr, nullptr,     false,  {}};
    check(call);
    Device(y).run(call);
    return {ends, sums, kept};
  }

  static std::vector<Tensor> backward(
      Tensor grad_ends, Tensor grad_sums, Tensor ends, Tensor kept, bool adjoint, Tensor y, Tensor starts,
      Tensor sizes, std::optional<Tensor> row_bias, std::optional<Tensor> time,
      std::optional<Tensor> frequencies, std::optional<Tensor> closed, std::optional<Tensor> directions,
      OptionalTensors tensors, std::vector<std::int64_t> activations, std::vector<double> slopes,
      std::vector<double> a, std::vector<double> b, std::vector<double> c, std::int64_t steps,
      std::int64_t every, double weight, bool kinetic, bool jacobian) {
    const OdeSettings set{activations, slopes, a, b, c, steps, every, weight, kinetic, jacobian};
    check_every(set);
    OdeCall call{y,   starts, sizes, row_bias, time,       frequencies, closed,  directions, tensors,
                 set, ends,   ends,  kept,     &grad_ends, &grad_sums,  adjoint, {}};
    check(call);
    const std::int64_t intervals = starts.size(0), inner = steps / every - 1;
    for (const Tensor* t : {&grad_ends, &ends}) {
      check_ode_tensor("grad_ends, ends", *t, y, {intervals, y.size(0), y.size(1)});
      check_contiguous("grad_ends, ends", *t);
    }
    check_ode_tensor("kept", kept, y, {intervals, inner, y.size(0), y.size(1)});
    check_contiguous("kept", kept);
    check_ode_tensor("grad_sums", grad_sums, y, {intervals, 3, y.size(0)});
    check_contiguous("grad_sums", grad_sums);
    call.grads = {zeros(y), zeros(starts), zeros(sizes)};
    for (const auto* t : {&row_bias, &time, &frequencies, &closed}) call.grads.push_back(zeros(*t));
    for (const auto& t : tensors) call.grads.push_back(zeros(t));
    Device(y).run(call);
    std::vector<Tensor> given;
    for (const auto& grad : call.grads) if (grad) given.push_back(*grad);
    return given;
  }

 private:
  static void check_every(const OdeSettings& set) {
    FLOWKERN_CHECK(set.every >= 1 && set.steps >= 1 && set.steps % set.every == 0,
                   "every: expected a divisor of the number of steps");
  }
  static std::optional<Tensor> zeros(const std::optional<Tensor>& like) {
    if (!like) return std::nullopt;
    Tensor zero = torch::stable::empty_like(*like);
    torch::stable::zero_(zero);
    return zero;
  }
};

}  // namespace
}  // namespace flowkern
