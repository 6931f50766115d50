// The torch side of a flow's program: what its numbers say, checked against its tensors.
//
// `code` and `numbers` are written by flowkern/ops/_flow_program/steps.py, in the order in which they are read here.
#pragma once

#include "../common/checks.h"

#include <vector>

namespace flowkern {
namespace {

using Tensors = std::vector<Tensor>;

// What a layer may take, in order; a bit of its code says whether it does.
enum FlowTensor { kWeight, kBiasOf, kGainOf, kOffsetOf, kTermWeight, kTermBias, kGateWeight, kGateBias, kFlowTensors };
enum FlowCode { kConditionedCode = 0, kLuCode = 1, kPermutationCode = 2, kScaleCode = 3, kLinearCode = 4 };

struct FlowActivation { int kind; double slope; };  // kind −1: none

struct FlowLayer {
  int units, skip;
  FlowActivation activation, term, gate;
  int tensors[kFlowTensors];  // which of the call's they are; −1: none
};

struct FlowStepCode {
  int kind;
  bool inverse;
  int first_tensor, count;  // which of the call's tensors are those of LU, a scale or a linear step
  // Conditioned.
  ElementCode element;
  int levels, passive, parameters;
  bool joint;
  std::vector<FlowLayer> layers;
  const std::int64_t *order, *columns, *outputs, *ends;  // order also of a permutation
  double epsilon;    // of LU
  bool logarithmic;  // of a scale
  bool orthogonal;   // of a linear step
};

// The numbers in turn; past their end there are none.
struct FlowReader {
  const std::int64_t *at, *end;
  const double *real, *real_end;

  const std::int64_t* take(std::int64_t count) {
    FLOWKERN_CHECK(count >= 0 && count <= end - at, "code: ends inside a step");
    return (at += count) - count;
  }
  double number() {
    FLOWKERN_CHECK(real < real_end, "numbers: end inside a step");
    return *real++;
  }
  std::int64_t integer(const char* name, std::int64_t least, std::int64_t most) {
    const std::int64_t value = *take(1);
    FLOWKERN_CHECK(value >= least && value <= most, "code: ", name, ": expected ", least, " to ", most, ", got ", value);
    return value;
  }
};

class FlowCodeOf {
 public:
  FlowCodeOf(const Tensor& x, const std::optional<Tensor>& context, const Tensors& tensors, const Tensor& code, const Tensor& numbers)
      : x(x), context(context), tensors(tensors) {
    FLOWKERN_CHECK(x.dim() == 2, "x: expected shape (N, D)");
    FLOWKERN_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x: expected float32 or float64");
    FLOWKERN_CHECK(code.scalar_type() == ScalarType::Long && code.dim() == 1 && code.is_contiguous() && !code.is_cuda(), "code: expected a contiguous int64 vector on the CPU");
    FLOWKERN_CHECK(numbers.scalar_type() == ScalarType::Double && numbers.dim() == 1 && numbers.is_contiguous() && !numbers.is_cuda(), "numbers: expected a contiguous float64 vector on the CPU");
    const auto* at = static_cast<const std::int64_t*>(code.const_data_ptr());
    const auto* real = static_cast<const double*>(numbers.const_data_ptr());
    FlowReader from{at, at + code.size(0), real, real + numbers.size(0)};
    features = int(from.integer("features", 1, kMost));
    contexts = int(from.integer("context", 0, kMost));
    const auto count = from.integer("steps", 0, kMost);
    normal = from.integer("base", 0, 1);
    check_inputs();
    for (std::int64_t k = 0; k < count; ++k) steps.push_back(step(from));
    FLOWKERN_CHECK(taken == int(tensors.size()), "tensors: expected ", taken, ", got ", tensors.size());
  }

  int features, contexts;
  bool normal;
  std::vector<FlowStepCode> steps;

 private:
  static constexpr std::int64_t kMost = 1 << 24;
  const Tensor& x;
  const std::optional<Tensor>& context;
  const Tensors& tensors;
  int taken = 0;

  void check_inputs() const {
    FLOWKERN_CHECK(x.size(1) == features, "x: expected ", features, " features, got ", x.size(1));
    FLOWKERN_CHECK(bool(context) == (contexts > 0), "context: expected ", contexts, " features");
    if (!context) return;
    FLOWKERN_CHECK(context->dim() == 2 && context->size(0) == x.size(0) && context->size(1) == contexts, "context: expected shape (", x.size(0), ", ", contexts, ")");
    check_tensor("context", *context);
  }
  void check_tensor(const char* name, const Tensor& t) const {
    FLOWKERN_CHECK(t.scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    check_device(name, t, x);
  }

  FlowStepCode step(FlowReader& from) {
    FlowStepCode to{};
    to.kind = int(from.integer("step", kConditionedCode, kLinearCode));
    to.inverse = from.integer("inverse", 0, 1);
    if (to.kind == kConditionedCode) conditioned(from, to);
    else if (to.kind == kLuCode) lu(from, to);
    else if (to.kind == kPermutationCode) permutation(from, to);
    else if (to.kind == kScaleCode) scale(from, to);
    else linear(from, to);
    return to;
  }

  int take_tensor() {
    FLOWKERN_CHECK(taken < int(tensors.size()), "tensors: expected more than ", tensors.size());
    return taken++;
  }
  void check_vector(int i, std::int64_t size) const {
    FLOWKERN_CHECK(tensors[i].dim() == 1 && tensors[i].size(0) == size, "tensors: ", i, ": expected shape (", size, ",)");
    check_tensor("tensors", tensors[i]);
  }
  void check_matrix(int i, std::int64_t rows, std::int64_t columns) const {
    const Tensor& t = tensors[i];
    FLOWKERN_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, "tensors: ", i, ": expected shape (", rows, ", ", columns, ")");
    check_tensor("tensors", t);
  }

  FlowActivation activation(FlowReader& from, int least) const {
    const int kind = int(from.integer("activation", least, kActivations - 1));
    return {kind, from.number()};
  }

  void conditioned(FlowReader& from, FlowStepCode& to) {
    const std::int64_t* element = from.take(4);  // its kind, those of its maps, and how many constants
    to.element = checked_element(element[0], element[1], element[2], element[3]);
    for (int i = 0; i < int(element[3]); ++i) to.element.constants[i] = from.number();
    const auto layers = from.integer("layers", 1, kMost);
    to.levels = int(from.integer("levels", 1, kMost));
    to.passive = int(from.integer("passive", 0, features - 1));
    to.parameters = int(from.integer("parameters", 1, kMost));
    to.joint = from.integer("joint", 0, 1);
    std::int64_t units = features, total = 0;
    for (int k = 0; k < int(layers); ++k) {
      total += units;
      to.layers.push_back(layer(from, to, k, int(layers), k > 0 ? units : -1));
      units = to.layers.back().units;
    }
    const std::int64_t active = features - to.passive;
    FLOWKERN_CHECK(fits(to.element, to.parameters) && units == to.parameters * active, "code: the last layer's ", units, " outputs do not fit the element and ", active, " features");
    to.order = from.take(total), to.columns = from.take(features), to.outputs = from.take(units);
    to.ends = from.take(layers * (to.levels + 1));
    check_columns(to);
  }

  // inputs: of a layer behind the first.
  FlowLayer layer(FlowReader& from, const FlowStepCode& step, int k, int layers, std::int64_t inputs) {
    FlowLayer to{};
    to.units = int(from.integer("units", 0, kMost));
    const auto takes = from.integer("tensors", 0, (1 << kFlowTensors) - 1);
    for (int i = 0; i < kFlowTensors; ++i) to.tensors[i] = takes >> i & 1 ? take_tensor() : -1;
    to.skip = int(from.integer("skip", -1, k - 1));
    FLOWKERN_CHECK(to.skip < 0 || (k + 1 < layers && step.layers[to.skip].units == to.units), "code: skip: expected an earlier layer of the same width");
    to.activation = activation(from, 0), to.term = activation(from, -1), to.gate = activation(from, -1);
    FLOWKERN_CHECK(to.tensors[kWeight] >= 0, "code: a layer without a weight");
    const Tensor& weight = tensors[to.tensors[kWeight]];
    check_matrix(to.tensors[kWeight], to.units, k > 0 ? inputs : weight.dim() == 2 ? weight.size(1) : 0);
    for (int i : {kBiasOf, kGainOf, kOffsetOf, kTermBias, kGateBias}) if (to.tensors[i] >= 0) check_vector(to.tensors[i], to.units);
    const bool plain = to.activation.kind == kIdentityActivation && to.gate.kind < 0 && to.tensors[kGainOf] < 0 && to.tensors[kOffsetOf] < 0;
    FLOWKERN_CHECK(k + 1 < layers || plain, "code: the last layer takes no activation, gate, gain or offset");
    check_term(to.term, to.tensors[kTermWeight], to.units, k == 0 && step.joint), check_term(to.gate, to.tensors[kGateWeight], to.units, false);
    return to;
  }

  void check_term(const FlowActivation& term, int weight, int units, bool joint) const {
    FLOWKERN_CHECK((term.kind >= 0 && !joint) == (weight >= 0), "code: a context's term and its weight");
    FLOWKERN_CHECK(term.kind < 0 || contexts > 0, "code: a term without a context");
    if (weight >= 0) check_matrix(weight, units, contexts);
  }

  // Of the features that some unit sees, each has a column of the first weight.
  void check_columns(const FlowStepCode& step) const {
    const std::int64_t width = tensors[step.layers[0].tensors[kWeight]].size(1) - (step.joint ? contexts : 0);
    const std::int64_t seen = step.ends[step.levels - 1];
    FLOWKERN_CHECK(seen <= features && (!step.joint || step.layers[0].term.kind >= 0), "code: joint, or ends, do not fit");
    for (std::int64_t i = 0; i < seen; ++i)
      FLOWKERN_CHECK(step.columns[i] >= 0 && step.columns[i] < width, "code: columns: expected entries in [0, ", width, "), got ", step.columns[i]);
    FLOWKERN_CHECK(step.passive == 0 || step.ends[1] == step.passive, "code: passive: expected the features of rank 1, ", step.ends[1], ", got ", step.passive);
  }

  void lu(FlowReader& from, FlowStepCode& to) {
    const bool bias = from.integer("bias", 0, 1);
    to.epsilon = from.number();
    take_tensors(to, 3 + bias);
    const std::int64_t triangle = std::int64_t(features) * (features - 1) / 2;
    check_vector(to.first_tensor, triangle), check_vector(to.first_tensor + 1, triangle);
    for (int i = 2; i < to.count; ++i) check_vector(to.first_tensor + i, features);
  }
  void take_tensors(FlowStepCode& to, int count) {
    to.first_tensor = taken, to.count = count;
    for (int i = 0; i < count; ++i) take_tensor();
  }

  void permutation(FlowReader& from, FlowStepCode& to) {
    to.order = from.take(features);
    std::vector<bool> seen(features);
    for (int f = 0; f < features; ++f) {
      const std::int64_t i = to.order[f];
      FLOWKERN_CHECK(i >= 0 && i < features && !seen[i], "code: order: expected a permutation, got ", i);
      seen[i] = true;
    }
  }

  void linear(FlowReader& from, FlowStepCode& to) {
    to.orthogonal = from.integer("orthogonal", 0, 1);
    take_tensors(to, to.orthogonal ? 1 : 3);
    for (int i = 0; i < (to.orthogonal ? 1 : 2); ++i) check_matrix(to.first_tensor + i, features, features);
    if (!to.orthogonal) check_vector(to.first_tensor + 2, 1);
  }

  void scale(FlowReader& from, FlowStepCode& to) {
    to.logarithmic = from.integer("logarithmic", 0, 1);
    take_tensors(to, 1 + int(from.integer("shift", 0, 1)));
    for (int i = 0; i < to.count; ++i) check_vector(to.first_tensor + i, features);
  }
};

// One call: the forward has out and log, the backward also what follows.
struct FlowCall {
  const FlowCodeOf& program;
  bool inverse;
  const Tensor& x;
  const std::optional<Tensor>& context;
  const Tensors& tensors;
  Tensor& out;
  Tensor* log;
  Tensor* states;
  Tensor* kept;  // made by the forward, if it keeps its values; null: it must not
  const Tensor* y = nullptr;
  const std::optional<Tensor>*grad_y = nullptr, *grad_l = nullptr;
  Tensor* grad_context = nullptr;
  std::vector<std::optional<Tensor>>* grads = nullptr;
  // A tensor of the call, and the gradient of one that needs it; −1 for one that there is not.
  const Tensor* tensor(int i) const { return i < 0 ? nullptr : &tensors[i]; }
  Tensor* grad(int i) const { return i < 0 || !grads || !(*grads)[i] ? nullptr : &*(*grads)[i]; }
};

// The gradients of the tensors that need one, in one allocation: fifty small ones cost as much as a tile's arithmetic.
struct FlowGradients {
  std::vector<std::optional<Tensor>> of;  // of each tensor of the call
  Tensors needed;

  FlowGradients(const Tensors& tensors, const std::vector<bool>& needs) : of(tensors.size()) {
    std::int64_t size = 0;
    for (std::size_t i = 0; i < needs.size(); ++i)
      if (needs[i]) size += aligned(tensors[i].numel());
    if (size == 0 && tensors.empty()) return;
    const Tensor all = torch::stable::new_empty(tensors[0], {size});
    std::int64_t at = 0;
    for (std::size_t i = 0; i < needs.size(); ++i)
      if (needs[i]) needed.push_back(*(of[i] = part(all, at, tensors[i]))), at += aligned(tensors[i].numel());
  }

 private:
  static std::int64_t aligned(std::int64_t count) { return (count + 15) / 16 * 16; }
  // The entries of `all` from `at` on as a contiguous tensor of the shape of t.
  static Tensor part(const Tensor& all, std::int64_t at, const Tensor& t) {
    std::int64_t sizes[2] = {}, strides[2] = {1, 1};
    for (std::int64_t d = 0; d < t.dim(); ++d) sizes[d] = t.size(d);
    if (t.dim() == 2) strides[0] = sizes[1];
    AtenTensorHandle made;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(all.get(), t.dim(), sizes, strides, at, &made));
    return Tensor(made);
  }
};

template <class Device> struct FlowOp {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor x, std::optional<Tensor> context, Tensors tensors, Tensor code,
                                                    Tensor numbers, bool inverse, bool keep) {
    const FlowCodeOf program(x, context, tensors, code, numbers);
    Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)}), log = torch::stable::new_empty(x, {x.size(0)});
    const std::int64_t between = keep && !program.steps.empty() ? std::int64_t(program.steps.size()) - 1 : 0;
    Tensor states = torch::stable::new_empty(x, {between, x.size(1), x.size(0)});
    Tensor kept = torch::stable::new_empty(x, {0});
    Device::run(FlowCall{program, inverse, x, context, tensors, y, &log, between ? &states : nullptr, keep ? &kept : nullptr});
    return {y, log, states, kept};
  }

  // The cotangents of x and the context, and the gradients of the tensors that need one, in order.
  static std::tuple<Tensor, Tensor, std::vector<Tensor>> gradients(
      std::optional<Tensor> grad_y, std::optional<Tensor> grad_l, Tensor x, Tensor y, Tensor states, Tensor kept,
      std::optional<Tensor> context, Tensors tensors, Tensor code, Tensor numbers, bool inverse, std::vector<bool> needs,
      bool of_context) {
    const FlowCodeOf program(x, context, tensors, code, numbers);
    check_results(x, y, states, kept, grad_y, grad_l, std::int64_t(program.steps.size()));
    FLOWKERN_CHECK(needs.size() == tensors.size(), "needs: expected one for each of ", tensors.size(), " tensors");
    FLOWKERN_CHECK(context || !of_context, "of_context: there is no context");
    Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensor grad_context = of_context ? torch::stable::new_empty(x, {x.size(0), context->size(1)}) : torch::stable::new_empty(x, {0});
    FlowGradients grads(tensors, needs);
    FlowCall call{program, inverse, x, context, tensors, grad_x, nullptr, &states, &kept, &y, &grad_y, &grad_l, of_context ? &grad_context : nullptr, &grads.of};
    Device::run(call);
    return {grad_x, grad_context, grads.needed};
  }

 private:
  static void check_results(const Tensor& x, const Tensor& y, const Tensor& states, const Tensor& kept, const std::optional<Tensor>& grad_y,
                            const std::optional<Tensor>& grad_l, std::int64_t steps) {
    const auto like_x = [&](const char* name, const Tensor& t) {
      FLOWKERN_CHECK(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == x.size(1) && t.scalar_type() == x.scalar_type(), name, ": expected the shape and dtype of x");
    };
    like_x("y", y);
    FLOWKERN_CHECK(y.is_contiguous() && states.is_contiguous(), "y, states: expected contiguous tensors");
    FLOWKERN_CHECK(states.dim() == 3 && states.size(0) == (steps > 1 ? steps - 1 : 0) && states.size(1) == x.size(1) && states.size(2) == x.size(0) && states.scalar_type() == x.scalar_type(),
                   "states: expected those of the forward");
    FLOWKERN_CHECK(kept.dim() == 1 && kept.is_contiguous() && kept.scalar_type() == x.scalar_type(), "kept: expected what the forward gave");
    if (grad_y) like_x("grad_y", *grad_y);
    if (grad_l) FLOWKERN_CHECK(grad_l->dim() == 1 && grad_l->size(0) == x.size(0) && grad_l->scalar_type() == x.scalar_type(), "grad_l: expected shape (N,) and the dtype of x");
  }
};

}  // namespace
}  // namespace flowkern
