// From a program's code and tensors to what the loops work on, and from their sums to gradients.
#pragma once

#include "../common/spare.h"
#include "../masked_autoregressive/plan.h"
#include "cpu.h"
#include "torch.h"

#include <cmath>
#include <memory>

namespace flowkern {
namespace {

template <class S> class FlowPlan {
 public:
  // keeps: whether the values of the forward are kept for the backward.
  FlowPlan(const FlowCall& call, const MaskedShape& shape, bool keeps) : call(call), shape(shape), keeps(keeps) {
    const auto& codes = call.program.steps;
    chunk_size = call.grads ? 1 : 0;
    for (std::size_t i = 0; i < codes.size(); ++i) add(codes[call.inverse ? codes.size() - 1 - i : i]);
    fill();
  }
  FlowPlan(const FlowPlan&) = delete;  // the problem points into it

  std::int64_t chunk_size, packed = 0;
  FlowProblem<S> problem{};
  int count() const { return int(parts.size()); }

  // Numbers that are kept for so many samples; loops may read some rows more than there are.
  std::int64_t kept(std::int64_t samples) const {
    return problem.kept_rows > 0 && samples > 0 ? samples * problem.kept_rows + std::int64_t(kColumns) * shape.wide : 0;
  }
  // Makes the memory for them, or takes that of the forward.
  void keep(std::int64_t samples) {
    const std::int64_t size = kept(samples);
    if (size == 0) return;
    if (!call.grads) *call.kept = spare_tensor<S>(call.x, size);
    FLOWKERN_CHECK(call.kept->numel() == size, "kept: expected what the forward gave");
    problem.kept = static_cast<S*>(call.kept->mutable_data_ptr());
  }

  // Packs the weights of step i.
  void pack(int i, S* memory) {
    Part& part = parts[i];
    S* to = memory + part.packed;
    if (part.code->kind == kConditionedCode) part.conditioned->pack(to);
    if (part.code->kind == kLuCode) pack_lu(*part.code, steps[i], to);
    if (part.code->kind == kScaleCode) pack_scale(*part.code, steps[i], to);
    if (part.code->kind == kLinearCode) pack_linear(*part.code, steps[i], to);
  }

  // All gradients of no samples.
  void clear() const {
    for (int i = 0; i < int(call.tensors.size()); ++i) zeros(grad(i), call.tensor(i)->numel());
  }

  // The gradients of step i's tensors out of the sums.
  void finish(int i, const S* sums) const {
    const Part& part = parts[i];
    if (part.code->kind == kConditionedCode) part.conditioned->finish(sums + steps[i].sums);
    if (part.code->kind == kLuCode) finish_lu(*part.code, steps[i], sums);
    if (part.code->kind == kScaleCode) finish_scale(*part.code, steps[i], sums);
    if (part.code->kind == kLinearCode) finish_linear(*part.code, steps[i], sums);
  }

 private:
  struct Part {
    const FlowStepCode* code;
    std::unique_ptr<MaskedPlan<S>> conditioned;
    std::int64_t packed;  // where its memory begins
  };

  const FlowCall& call;
  const MaskedShape shape;
  const bool keeps;
  std::vector<Part> parts;
  std::vector<FlowStep<S>> steps;
  std::vector<std::vector<std::int64_t>> orders;

  int features() const { return call.program.features; }

  static const S* values(const Tensor& t) { return static_cast<const S*>(t.const_data_ptr()); }
  static Matrix<const S> matrix(const Tensor& t) { return {values(t), t.stride(0), t.stride(1)}; }
  Elements<const S> vector(int i) const {
    const Tensor* t = call.tensor(i);
    return t ? Elements<const S>{values(*t), 0, t->stride(0), nullptr} : Elements<const S>{};
  }
  static Elements<const S> rows(const Tensor& t) { return {values(t), t.stride(0), t.dim() > 1 ? t.stride(1) : 0, nullptr}; }
  S* grad(int i) const {
    Tensor* t = call.grad(i);
    return t ? static_cast<S*>(t->mutable_data_ptr()) : nullptr;
  }

  void add(const FlowStepCode& code) {
    FlowStep<S> step{};
    step.kind = code.kind, step.inverse = code.inverse != call.inverse, step.sums = chunk_size;
    Part part{&code, nullptr, packed};
    if (code.kind == kConditionedCode) add_conditioned(code, step, part);
    if (code.kind == kLuCode) add_lu();
    if (code.kind == kPermutationCode) step.order = order(code, step.inverse);
    if (code.kind == kScaleCode) packed += 2 * features(), chunk_size += call.grads ? 2 * features() : 0;
    if (code.kind == kLinearCode) add_linear(code, step);
    packed = (packed + 15) / 16 * 16;
    steps.push_back(step);
    parts.push_back(std::move(part));
  }

  void add_conditioned(const FlowStepCode& code, FlowStep<S>& step, Part& part) {
    part.conditioned = std::make_unique<MaskedPlan<S>>(network(code, step.inverse), shape);
    step.conditioned = &part.conditioned->problem;
    packed += part.conditioned->packed, chunk_size += part.conditioned->chunk_size;
    problem.memory = std::max(problem.memory, step.conditioned->memory);
    step.kept = problem.kept_rows;
    if (keeps) problem.kept_rows += step.conditioned->values;
  }

  void add_lu() {
    packed += 2 * features() * features() + 2 * panel_rows() * features() + features();
    if (call.grads) chunk_size += 2 * matrix_sums(features(), shape.lanes) + features();
    problem.memory = std::max(problem.memory, 3 * features() + std::max(kColumns, shape.lanes));
  }
  void add_linear(const FlowStepCode& code, FlowStep<S>& step) {
    step.transposed = step.inverse && code.orthogonal;
    step.wants_matrix = grad(applied(code, step)) != nullptr;
    packed += panel_rows() * features();
    if (step.wants_matrix) chunk_size += matrix_sums(features(), shape.lanes);
    problem.memory = std::max(problem.memory, features() + std::max(kColumns, shape.lanes));
  }
  // The tensor that is multiplied by, or by whose transpose.
  static int applied(const FlowStepCode& code, const FlowStep<S>& step) {
    return code.first_tensor + (step.inverse && !code.orthogonal);
  }
  std::int64_t panel_rows() const { return (features() + shape.panel - 1) / shape.panel * shape.panel; }

  const std::int64_t* order(const FlowStepCode& code, bool inverse) {
    if (!inverse) return code.order;
    std::vector<std::int64_t> back(features());
    for (int f = 0; f < features(); ++f) back[code.order[f]] = f;
    orders.push_back(std::move(back));
    return orders.back().data();
  }

  MaskedNetwork<S> network(const FlowStepCode& code, bool inverse) const {
    MaskedNetwork<S> net;
    net.rows = call.x.size(0), net.features = features(), net.levels = code.levels;
    net.parameters = code.parameters, net.passive = code.passive;
    net.order = code.order, net.ends = code.ends, net.columns = code.columns, net.outputs = code.outputs;
    net.element = code.element, net.inverse = inverse, net.backward = call.grads, net.keeps = keeps;
    for (int k = 0; k < int(code.layers.size()); ++k) net.layers.push_back(layer(code, k));
    return net;
  }

  typename MaskedNetwork<S>::Layer layer(const FlowStepCode& code, int k) const {
    const FlowLayer& from = code.layers[k];
    const int* t = from.tensors;
    typename MaskedNetwork<S>::Layer to;
    to.units = from.units, to.skip = from.skip;
    to.activation = from.activation.kind, to.slope = S(from.activation.slope);
    to.weight = matrix(*call.tensor(t[kWeight])), to.grad_weight = gradient(t[kWeight]);
    for (const auto& [which, i] : {std::pair{kBias, kBiasOf}, {kGain, kGainOf}, {kOffset, kOffsetOf}})
      to.vectors[which] = vector(t[i]), to.grad_sums[which] = zeros(grad(t[i]), from.units);
    const int joint = k == 0 && code.joint ? t[kWeight] : t[kTermWeight];
    if (from.term.kind >= 0) to.term = term(from.term, joint, t[kTermBias], from.units, to.grad_weight.values);
    if (from.gate.kind >= 0) to.gate_term = term(from.gate, t[kGateWeight], t[kGateBias], from.units, nullptr);
    return to;
  }

  static S* zeros(S* values, std::int64_t count) {
    if (values) std::fill_n(values, count, S(0));  // units that no output sees, entries that are not read
    return values;
  }
  Matrix<S> gradient(int i) const {
    return {zeros(grad(i), call.tensor(i)->numel()), call.tensor(i)->size(1), 1};
  }

  // The context's columns are the last of the weight, or all. grad: of the weight, if it is there already.
  typename MaskedNetwork<S>::Term term(const FlowActivation& activation, int weight, int bias, int units, S* grad_weight) const {
    typename MaskedNetwork<S>::Term to;
    const std::int64_t before = call.tensor(weight)->size(1) - call.program.contexts;
    to.given = true, to.inputs = call.program.contexts, to.activation = activation.kind, to.slope = S(activation.slope);
    to.weight = matrix(*call.tensor(weight)), to.weight.values += before * to.weight.column;
    to.grad_weight = before > 0 ? Matrix<S>{grad_weight, call.tensor(weight)->size(1), 1} : gradient(weight);
    if (to.grad_weight.values) to.grad_weight.values += before;
    to.bias = vector(bias), to.grad_bias = zeros(grad(bias), units);
    return to;
  }

  void fill() {
    problem.rows = call.x.size(0), problem.features = features(), problem.context_features = call.program.contexts;
    problem.steps = count(), problem.step = steps.data();
    problem.normal = call.program.normal && !call.inverse;
    problem.x = rows(call.x);
    if (call.context) problem.context = rows(*call.context);
    problem.out = static_cast<S*>(call.out.mutable_data_ptr());
    if (call.log) problem.log = static_cast<S*>(call.log->mutable_data_ptr());
    if (call.states) problem.states = static_cast<S*>(call.states->mutable_data_ptr());
    if (call.y) problem.y = values(*call.y);
    if (call.grad_y && *call.grad_y) problem.grad_y = rows(**call.grad_y);
    if (call.grad_l && *call.grad_l) problem.grad_l = {values(**call.grad_l), (*call.grad_l)->stride(0), 0, nullptr};
    if (call.grad_context) problem.grad_context = static_cast<S*>(call.grad_context->mutable_data_ptr());
  }

  // The tensor that a step may do without.
  static int last(const FlowStepCode& code, int i) { return i < code.count ? code.first_tensor + i : -1; }

  // LU.

  static S softplus(S u) { return (u > S(0) || u != u ? u : S(0)) + std::log1p(std::exp(-std::abs(u))); }
  S diagonal(const FlowStepCode& code, int f) const {
    return softplus(raw(code, f)) + S(code.epsilon);
  }
  S raw(const FlowStepCode& code, int f) const {
    const auto of = vector(code.first_tensor + 2);
    return of.base[f * of.feature];
  }

  void pack_lu(const FlowStepCode& code, FlowStep<S>& step, S* to) const {
    const int d = features();
    S *lower = to, *upper = lower + d * d, *lower_panels = upper + d * d, *upper_panels = lower_panels + panel_rows() * d;
    S* shift = upper_panels + panel_rows() * d;
    const auto below = vector(code.first_tensor), above = vector(code.first_tensor + 1), bias = vector(last(code, 3));
    S log = 0;
    for (int i = 0, l = 0, u = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        lower[i * d + j] = j < i ? below.base[below.feature * l++] : S(j == i);
        upper[i * d + j] = j > i ? above.base[above.feature * u++] : j == i ? diagonal(code, i) : S(0);
      }
      log += std::log(upper[i * d + i]);
      shift[i] = bias.base ? bias.base[bias.feature * i] : S(0);
    }
    const auto whole = [&](const S* m) { return Matrix<const S>{m, d, 1}; };
    pack_panels(whole(lower), lower_panels), pack_panels(whole(upper), upper_panels);
    step.lower = lower, step.upper = upper, step.lower_panels = lower_panels, step.upper_panels = upper_panels;
    step.shift = shift, step.logabsdet = step.inverse ? -log : log;
  }
  void pack_panels(const Matrix<const S>& from, S* to) const {
    const int d = features();
    for (int i = 0; i < int(panel_rows()); ++i)
      for (int j = 0; j < d; ++j)
        to[(std::int64_t(i / shape.panel) * d + j) * shape.panel + i % shape.panel] = i < d ? from.values[i * from.row + j * from.column] : S(0);
  }

  void finish_lu(const FlowStepCode& code, const FlowStep<S>& step, const S* sums) const {
    const int d = features();
    const std::int64_t size = matrix_sums(d, shape.lanes);
    const S sign = step.inverse ? S(-1) : S(1);
    S *below = grad(code.first_tensor), *above = grad(code.first_tensor + 1), *of_raw = grad(code.first_tensor + 2);
    S* bias = grad(last(code, 3));
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < i; ++j) if (below) *below++ = sign * entry(sums, step.sums, i, j);
      for (int j = i + 1; j < d; ++j) if (above) *above++ = sign * entry(sums, step.sums + size, i, j);
      if (bias) bias[i] = sign * sums[step.sums + 2 * size + i];
      const S of_diagonal = entry(sums, step.sums + size, i, i) + sums[0] / step.upper[i * (d + 1)];
      if (of_raw) of_raw[i] = sign * of_diagonal / (S(1) + std::exp(-raw(code, i)));
    }
  }
  S entry(const S* sums, std::int64_t at, int row, int column) const {
    const std::int64_t group = std::int64_t(row) / shape.lanes * matrix_columns(features()) * shape.lanes;
    return sums[at + group + std::int64_t(column) * shape.lanes + row % shape.lanes];
  }

  // Linear.

  void pack_linear(const FlowStepCode& code, FlowStep<S>& step, S* to) const {
    Matrix<const S> from = matrix(call.tensors[applied(code, step)]);
    if (step.transposed) std::swap(from.row, from.column);
    pack_panels(from, to);
    const S log = code.orthogonal ? S(0) : *values(call.tensors[code.first_tensor + 2]);
    step.panels = to, step.logabsdet = step.inverse ? -log : log;
  }

  void finish_linear(const FlowStepCode& code, const FlowStep<S>& step, const S* sums) const {
    const int d = features();
    for (int t = 0; t < code.count; ++t) zeros(grad(code.first_tensor + t), call.tensors[code.first_tensor + t].numel());
    S* of_matrix = grad(applied(code, step));
    for (int i = 0; of_matrix && i < d; ++i)
      for (int j = 0; j < d; ++j) *of_matrix++ = entry(sums, step.sums, i, j);
    S* of_log = grad(last(code, 2));
    if (of_log) *of_log = step.inverse ? -sums[0] : sums[0];
  }

  // Scale.

  void pack_scale(const FlowStepCode& code, FlowStep<S>& step, S* to) const {
    const auto scale = vector(code.first_tensor), shift = vector(last(code, 1));
    S log = 0;
    for (int f = 0; f < features(); ++f) {
      const S given = scale.base[f * scale.feature];
      to[f] = code.logarithmic ? std::exp(given) : given;
      log += code.logarithmic ? given : std::log(std::abs(given));
      to[features() + f] = shift.base ? shift.base[f * shift.feature] : S(0);
    }
    step.scale = to, step.shift = to + features(), step.logabsdet = step.inverse ? -log : log;
  }

  void finish_scale(const FlowStepCode& code, const FlowStep<S>& step, const S* sums) const {
    const S sign = step.inverse ? S(-1) : S(1);
    S *scale = grad(code.first_tensor), *shift = grad(last(code, 1));
    for (int f = 0; f < features(); ++f) {
      const S by = code.logarithmic ? step.scale[f] : S(1);
      if (scale) scale[f] = sums[step.sums + f] * by + sign * sums[0] * by / step.scale[f];
      if (shift) shift[f] = sums[step.sums + features() + f];
    }
  }
};

}  // namespace
}  // namespace flowkern
