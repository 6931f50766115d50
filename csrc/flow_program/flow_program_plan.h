// From a program's code and tensors to what the loops work on, and from their sums to gradients.
#pragma once

#include "../masked_autoregressive/masked_autoregressive_plan.h"
#include "flow_program_cpu.h"
#include "flow_program_torch.h"

#include <cmath>
#include <memory>

namespace flowkern {
namespace {

template <class S> class FlowPlan {
 public:
  FlowPlan(const FlowCall& call, const MaskedShape& shape) : call(call), shape(shape) {
    const auto& codes = call.program.steps;
    chunk_size = call.grads ? 1 : 0;
    for (std::size_t i = 0; i < codes.size(); ++i) add(codes[call.inverse ? codes.size() - 1 - i : i]);
    fill();
  }
  FlowPlan(const FlowPlan&) = delete;  // the problem points into it

  std::int64_t chunk_size, packed = 0;
  FlowProblem<S> problem{};
  int count() const { return int(parts.size()); }

  // Packs the weights of step i.
  void pack(int i, S* memory) {
    Part& part = parts[i];
    S* to = memory + part.packed;
    if (part.code->kind == kConditionedCode) part.conditioned->pack(to);
    if (part.code->kind == kLuCode) pack_lu(*part.code, steps[i], to);
    if (part.code->kind == kScaleCode) pack_scale(*part.code, steps[i], to);
  }

  // The gradients of step i's tensors out of the sums of `chunks` chunks.
  void finish(int i, const S* sums, int chunks) const {
    const Part& part = parts[i];
    const Sums of{sums, chunks, chunk_size};
    if (part.code->kind == kConditionedCode) part.conditioned->finish(sums + steps[i].sums, chunks, chunk_size);
    if (part.code->kind == kLuCode) finish_lu(*part.code, steps[i], of);
    if (part.code->kind == kScaleCode) finish_scale(*part.code, steps[i], of);
  }

 private:
  struct Part {
    const FlowStepCode* code;
    std::unique_ptr<MaskedPlan<S>> conditioned;
    std::int64_t packed;  // where its memory begins
  };
  struct Sums {
    const S* sums;
    int chunks;
    std::int64_t apart;
    S total(std::int64_t at) const {
      S value = sums[at];
      for (int i = 1; i < chunks; ++i) value += sums[at + i * apart];
      return value;
    }
  };

  const FlowCall& call;
  const MaskedShape shape;
  std::vector<Part> parts;
  std::vector<FlowStep<S>> steps;
  std::vector<std::vector<std::int64_t>> orders;

  int features() const { return call.program.features; }

  static const S* values(const Tensor& t) { return static_cast<const S*>(t.const_data_ptr()); }
  static Matrix<const S> matrix(const Tensor& t) { return {values(t), t.stride(0), t.stride(1)}; }
  static Elements<const S> vector(const std::optional<Tensor>& t) {
    return t ? Elements<const S>{values(*t), 0, t->stride(0), nullptr} : Elements<const S>{};
  }
  static Elements<const S> rows(const Tensor& t) { return {values(t), t.stride(0), t.dim() > 1 ? t.stride(1) : 0, nullptr}; }
  S* grad(const FlowStepCode& step, int i) const {
    if (!call.grads) return nullptr;
    const auto& t = (*call.grads)[step.first_tensor + i];
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
    packed = (packed + 15) / 16 * 16;
    steps.push_back(step);
    parts.push_back(std::move(part));
  }

  void add_conditioned(const FlowStepCode& code, FlowStep<S>& step, Part& part) {
    part.conditioned = std::make_unique<MaskedPlan<S>>(network(code, step.inverse), shape);
    step.conditioned = &part.conditioned->problem;
    packed += part.conditioned->packed, chunk_size += part.conditioned->chunk_size;
    problem.memory = std::max(problem.memory, step.conditioned->memory);
  }

  void add_lu() {
    packed += 2 * features() * features() + 2 * panel_rows() * features() + features();
    if (call.grads) chunk_size += 2 * lu_sums(features(), shape.lanes) + features();
    problem.memory = std::max(problem.memory, 3 * features() + std::max(kColumns, shape.lanes));
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
    net.element = code.element, net.tails = code.tails, net.scale_first = code.scale_first;
    net.inverse = inverse, net.backward = call.grads;
    std::copy(std::begin(code.constants), std::end(code.constants), net.constants);
    for (int k = 0; k < int(code.layers.size()); ++k) net.layers.push_back(layer(code, k));
    return net;
  }

  typename MaskedNetwork<S>::Layer layer(const FlowStepCode& code, int k) const {
    const FlowLayer& from = code.layers[k];
    const auto* t = code.tensors + k * kLayerTensors;
    const int i = k * kLayerTensors;
    typename MaskedNetwork<S>::Layer to;
    to.units = from.units, to.skip = from.skip;
    to.activation = from.activation.kind, to.slope = S(from.activation.slope);
    to.weight = matrix(*t[0]);
    to.vectors[kBias] = vector(t[1]), to.vectors[kGain] = vector(t[2]), to.vectors[kOffset] = vector(t[3]);
    if (S* values = grad(code, i)) {
      std::fill_n(values, t[0]->numel(), S(0));  // entries that are not read
      to.grad_weight = {values, t[0]->size(1), 1};
    }
    for (const auto& [which, j] : {std::pair{kBias, 1}, {kGain, 2}, {kOffset, 3}}) to.grad_sums[which] = zeros(grad(code, i + j), from.units);
    const std::int64_t own = t[0]->size(1) - call.program.contexts;  // columns of a joint weight that are the features'
    if (k == 0 && code.joint)
      to.term = term(code, from.term, offset(to.weight, own), offset(to.grad_weight, own), i + 5, from.units);
    else if (from.term.kind >= 0) to.term = term(code, from.term, matrix(*t[4]), gradient(code, i + 4), i + 5, from.units);
    if (from.gate.kind >= 0) to.gate_term = term(code, from.gate, matrix(*t[6]), gradient(code, i + 6), i + 7, from.units);
    return to;
  }

  static S* zeros(S* values, int count) {
    if (values) std::fill_n(values, count, S(0));  // units that no output sees
    return values;
  }
  template <class U> static Matrix<U> offset(Matrix<U> m, std::int64_t columns) {
    if (m.values) m.values += columns * m.column;
    return m;
  }
  Matrix<S> gradient(const FlowStepCode& code, int i) const {
    S* values = grad(code, i);
    if (values) std::fill_n(values, code.tensors[i]->numel(), S(0));
    return {values, call.program.contexts, 1};
  }

  typename MaskedNetwork<S>::Term term(const FlowStepCode& code, const FlowActivation& activation, Matrix<const S> weight,
                                       Matrix<S> grad_weight, int bias, int units) const {
    typename MaskedNetwork<S>::Term to;
    to.given = true, to.inputs = call.program.contexts, to.weight = weight, to.bias = vector(code.tensors[bias]);
    to.activation = activation.kind, to.slope = S(activation.slope);
    to.grad_weight = grad_weight, to.grad_bias = zeros(grad(code, bias), units);
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

  // LU.

  static S softplus(S u) { return (u > S(0) || u != u ? u : S(0)) + std::log1p(std::exp(-std::abs(u))); }
  S diagonal(const FlowStepCode& code, int f) const {
    const auto& raw = *code.tensors[2];
    return softplus(values(raw)[f * raw.stride(0)]) + S(code.epsilon);
  }

  void pack_lu(const FlowStepCode& code, FlowStep<S>& step, S* to) const {
    const int d = features();
    S *lower = to, *upper = lower + d * d, *lower_panels = upper + d * d, *upper_panels = lower_panels + panel_rows() * d;
    S* shift = upper_panels + panel_rows() * d;
    const auto below = vector(code.tensors[0]), above = vector(code.tensors[1]), bias = vector(code.tensors[3]);
    S log = 0;
    for (int i = 0, l = 0, u = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        lower[i * d + j] = j < i ? below.base[below.feature * l++] : S(j == i);
        upper[i * d + j] = j > i ? above.base[above.feature * u++] : j == i ? diagonal(code, i) : S(0);
      }
      log += std::log(upper[i * d + i]);
      shift[i] = bias.base ? bias.base[bias.feature * i] : S(0);
    }
    pack_panels(lower, lower_panels), pack_panels(upper, upper_panels);
    step.lower = lower, step.upper = upper, step.lower_panels = lower_panels, step.upper_panels = upper_panels;
    step.shift = shift, step.logabsdet = step.inverse ? -log : log;
  }
  void pack_panels(const S* from, S* to) const {
    const int d = features();
    for (int i = 0; i < int(panel_rows()); ++i)
      for (int j = 0; j < d; ++j)
        to[(std::int64_t(i / shape.panel) * d + j) * shape.panel + i % shape.panel] = i < d ? from[i * d + j] : S(0);
  }

  void finish_lu(const FlowStepCode& code, const FlowStep<S>& step, const Sums& sums) const {
    const int d = features();
    const std::int64_t size = lu_sums(d, shape.lanes);
    const S sign = step.inverse ? S(-1) : S(1);
    S *below = grad(code, 0), *above = grad(code, 1), *raw = grad(code, 2), *bias = grad(code, 3);
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < i; ++j) if (below) *below++ = sign * entry(sums, step.sums, i, j);
      for (int j = i + 1; j < d; ++j) if (above) *above++ = sign * entry(sums, step.sums + size, i, j);
      if (bias) bias[i] = sign * sums.total(step.sums + 2 * size + i);
      if (!raw) continue;
      const S u = values(*code.tensors[2])[i * code.tensors[2]->stride(0)], of_diagonal = entry(sums, step.sums + size, i, i) + sums.total(0) / step.upper[i * (d + 1)];
      raw[i] = sign * of_diagonal / (S(1) + std::exp(-u));
    }
  }
  S entry(const Sums& sums, std::int64_t at, int row, int column) const {
    const std::int64_t group = std::int64_t(row) / shape.lanes * lu_columns(features()) * shape.lanes;
    return sums.total(at + group + std::int64_t(column) * shape.lanes + row % shape.lanes);
  }

  // Scale.

  void pack_scale(const FlowStepCode& code, FlowStep<S>& step, S* to) const {
    const auto scale = vector(code.tensors[0]), shift = vector(code.tensors[1]);
    S log = 0;
    for (int f = 0; f < features(); ++f) {
      const S given = scale.base[f * scale.feature];
      to[f] = code.logarithmic ? std::exp(given) : given;
      log += code.logarithmic ? given : std::log(std::abs(given));
      to[features() + f] = shift.base ? shift.base[f * shift.feature] : S(0);
    }
    step.scale = to, step.shift = to + features(), step.logabsdet = step.inverse ? -log : log;
  }

  void finish_scale(const FlowStepCode& code, const FlowStep<S>& step, const Sums& sums) const {
    const S sign = step.inverse ? S(-1) : S(1);
    S *scale = grad(code, 0), *shift = grad(code, 1);
    for (int f = 0; f < features(); ++f) {
      const S by = code.logarithmic ? step.scale[f] : S(1);
      if (scale) scale[f] = sums.total(step.sums + f) * by + sign * sums.total(0) * by / step.scale[f];
      if (shift) shift[f] = sums.total(step.sums + features() + f);
    }
  }
};

}  // namespace
}  // namespace flowkern
