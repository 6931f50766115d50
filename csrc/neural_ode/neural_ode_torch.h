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

// What is no tensor; schema order, see flowkern/ops/neural_ode/native.py.
struct OdeSettings {
  std::vector<std::int64_t> activations;
  std::vector<double> slopes, a, b;
  std::int64_t every;
  double weight;
  bool kinetic, jacobian;
};

// One call. The forward fills path and sums; the backward is given path, and fills grads, one for
// each of y, steps, first, row_bias, closed and tensors that there is.
struct OdeCall {
  const Tensor &y, &steps, &first;
  const std::optional<Tensor>&row_bias, &closed, &directions;
  const OptionalTensors& tensors;
  const OdeSettings& set;
  const Tensor &path, &sums;
  const Tensor *grad_path, *grad_sums;
  bool adjoint;
  std::vector<std::optional<Tensor>> grads;

  std::int64_t rows() const { return y.size(0); }
  std::int64_t features() const { return y.size(1); }
  std::int64_t layers() const { return std::int64_t(set.activations.size()) + 1; }
  std::int64_t stages() const { return std::int64_t(set.b.size()); }
  const Tensor& weight(std::int64_t l) const { return *tensors[l]; }
  const std::optional<Tensor>& bias(std::int64_t l) const { return tensors[layers() + l - 1]; }
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
  const std::int64_t count = 2 * c.layers() - 1;
  FLOWKERN_CHECK(std::int64_t(c.tensors.size()) == count, "tensors: expected ", count);
  std::int64_t inputs = c.features();
  for (std::int64_t l = 0; l < c.layers(); ++l) {
    FLOWKERN_CHECK(c.tensors[l].has_value() && c.weight(l).dim() == 2,
                   "tensors: layer ", l, " has no weight");
    const std::int64_t units = l + 1 < c.layers() ? c.weight(l).size(0) : c.features();
    check_ode_tensor("tensors", c.weight(l), c.y, {units, inputs});
    check_contiguous("tensors", c.weight(l));
    if (l > 0 && c.bias(l)) {
      check_ode_tensor("tensors", *c.bias(l), c.y, {units});
      check_contiguous("tensors", *c.bias(l));
    }
    inputs = units;
  }
}

inline void check_settings(const OdeCall& c) {
  const OdeSettings& set = c.set;
  FLOWKERN_CHECK(set.slopes.size() == set.activations.size(), "slopes: expected one for each activation");
  for (const std::int64_t code : set.activations)
    FLOWKERN_CHECK(code >= 0 && code <= 7, "activations: expected 0 to 7, got ", code);
  FLOWKERN_CHECK(c.stages() >= 1 && std::int64_t(set.a.size()) == c.stages() * (c.stages() - 1) / 2,
                 "a, b: do not fit each other");
  FLOWKERN_CHECK(set.every >= 1 && c.steps.size(0) % set.every == 0,
                 "every: expected a divisor of the number of steps");
  FLOWKERN_CHECK(!set.jacobian || c.directions, "jacobian: needs directions");
}

inline void check(const OdeCall& c) {
  FLOWKERN_CHECK(c.y.dim() == 2 && c.features() > 0, "y: expected shape (N, D)");
  FLOWKERN_CHECK(c.y.scalar_type() == ScalarType::Float || c.y.scalar_type() == ScalarType::Double,
                 "y: expected float32 or float64");
  FLOWKERN_CHECK(c.steps.dim() == 1, "steps: expected shape (S,)");
  check_ode_tensor("steps", c.steps, c.y, {c.steps.size(0)});
  check_layers(c);
  check_settings(c);
  const std::int64_t units = c.weight(0).size(0);
  check_ode_tensor("first", c.first, c.y, {c.steps.size(0), c.stages(), units});
  for (const Tensor* t : {&c.y, &c.steps, &c.first}) check_contiguous("y, steps, first", *t);
  if (c.row_bias) {
    check_ode_tensor("row_bias", *c.row_bias, c.y, {c.rows(), units});
    check_contiguous("row_bias", *c.row_bias);
  }
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
  static std::tuple<Tensor, Tensor> forward(
      Tensor y, Tensor steps, Tensor first, std::optional<Tensor> row_bias, std::optional<Tensor> closed,
      std::optional<Tensor> directions, OptionalTensors tensors, std::vector<std::int64_t> activations,
      std::vector<double> slopes, std::vector<double> a, std::vector<double> b, std::int64_t every,
      double weight, bool kinetic, bool jacobian) {
    const OdeSettings set{activations, slopes, a, b, every, weight, kinetic, jacobian};
    FLOWKERN_CHECK(every >= 1, "every: expected 1 or more");
    const std::int64_t kept = steps.size(0) / every;
    const Tensor path = torch::stable::new_empty(y, {kept, y.size(0), y.size(1)});
    const Tensor sums = torch::stable::new_empty(y, {kept, 3, y.size(0)});
    OdeCall call{y,   steps, first, row_bias, closed,  directions, tensors,
                 set, path,  sums,  nullptr,  nullptr, false,      {}};
    check(call);
    Device(y).run(call);
    return {path, sums};
  }

  static std::vector<Tensor> backward(
      Tensor grad_path, Tensor grad_sums, Tensor path, bool adjoint, Tensor y, Tensor steps, Tensor first,
      std::optional<Tensor> row_bias, std::optional<Tensor> closed, std::optional<Tensor> directions,
      OptionalTensors tensors, std::vector<std::int64_t> activations, std::vector<double> slopes,
      std::vector<double> a, std::vector<double> b, std::int64_t every, double weight, bool kinetic,
      bool jacobian) {
    const OdeSettings set{activations, slopes, a, b, every, weight, kinetic, jacobian};
    OdeCall call{y,   steps, first, row_bias,   closed,     directions, tensors,
                 set, path,  path,  &grad_path, &grad_sums, adjoint,    {}};
    check(call);
    const std::int64_t kept = steps.size(0) / every;
    for (const Tensor* t : {&grad_path, &path}) {
      check_ode_tensor("grad_path, path", *t, y, {kept, y.size(0), y.size(1)});
      check_contiguous("grad_path, path", *t);
    }
    check_ode_tensor("grad_sums", grad_sums, y, {kept, 3, y.size(0)});
    check_contiguous("grad_sums", grad_sums);
    call.grads = {zeros(y), zeros(steps), zeros(first)};
    for (const auto* t : {&row_bias, &closed}) call.grads.push_back(zeros(*t));
    for (const auto& t : tensors) call.grads.push_back(zeros(t));
    Device(y).run(call);
    std::vector<Tensor> given;
    for (const auto& grad : call.grads) if (grad) given.push_back(*grad);
    return given;
  }

 private:
  static std::optional<Tensor> zeros(const std::optional<Tensor>& like) {
    if (!like) return std::nullopt;
    Tensor zero = torch::stable::empty_like(*like);
    torch::stable::zero_(zero);
    return zero;
  }
};

}  // namespace
}  // namespace flowkern
