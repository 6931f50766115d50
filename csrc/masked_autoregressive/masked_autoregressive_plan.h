// From tensors to what the loops work on: units sorted by rank, blocks of ranks, packed weights.
//
// Weights are packed anew in every call: whatever changed them, they are never stale. It costs one
// pass over them, where the solve makes as many as there are tiles.
#pragma once

#include "../common/scratch.h"
#include "masked_autoregressive_cpu.h"
#include "masked_autoregressive_torch.h"

#include <algorithm>

namespace flowkern {
namespace {

template <class S> class MaskedPlan {
 public:
  MaskedPlan(const MaskedCall& call, const MaskedShape& shape)
      : call(call), shape(shape), levels(int(call.levels())), outputs(int(call.layers())),
        parameters(int(call.parameters())) {
    check_order();
    count();
    divide();
    describe();
    pack();
    fill();
  }
  MaskedPlan(const MaskedPlan&) = delete;  // the problem points into it

  // Numbers that a chunk of tiles sums up, and entries of the packed weights.
  std::int64_t chunk_size = 0, packed = 0;

  // The gradients out of the sums of `chunks` chunks.
  void finish(const S* sums, int chunks) const {
    for (int k = 1; k <= outputs; ++k) {
      const MaskedUnits<S>& layer = units[k];
      if (layer.groups) finish_weight(k, sums, chunks);
      for (int i = 0; i < 4; ++i) {
        const std::int64_t from = layer.vectors[i].sums;
        if (from < 0) continue;
        S* to = static_cast<S*>((*call.grads)[5 * (k - 1) + 1 + i]->mutable_data_ptr());
        for (int r = 0; r < layer.used; ++r) to[unit(k, r)] = total(sums + from + r, chunks);
      }
    }
  }

  MaskedProblem<S> problem{};

 private:
  struct Weight { const S* values; std::int64_t row, column; };  // and its strides
  static Weight matrix_of(const Tensor& t) { return {static_cast<const S*>(t.const_data_ptr()), t.stride(0), t.stride(1)}; }

  const MaskedCall& call;
  const MaskedShape shape;
  const int levels, outputs, parameters;  // `outputs` is also the number of the layer that holds them
  std::vector<int> counts, first, places;
  std::vector<Weight> weights;
  std::vector<MaskedUnits<S>> units;
  std::vector<Panels<S>> panels;
  std::vector<std::vector<std::int64_t>> groups;

  static constexpr int kPanelsPerBlock = 2;

  int upto(int layer, int rank) const { return counts[layer * (levels + 2) + rank + 1]; }
  int blocks() const { return int(first.size()) - 1; }

  // The ranks of a matrix's rows in turn: of_row(r) for ascending r.
  struct Ranks {
    const MaskedPlan& plan;
    int layer, rank = 0;
    int of_row(int r) {
      while (r >= plan.upto(layer, rank)) ++rank;
      return rank;
    }
  };

  // Numbers outside a layer would be read as addresses.
  void check_order() const {
    const auto* order = static_cast<const std::int64_t*>(call.order.const_data_ptr());
    const auto* ends = static_cast<const std::int64_t*>(call.ends.const_data_ptr());
    for (int k = 0; k < int(call.layers()); ++k) {
      const std::int64_t count = k > 0 ? call.units(k - 1) : call.features();
      for (std::int64_t i = 0; i < count; ++i)
        FLOWKERN_CHECK(order[i] >= 0 && order[i] < count, "order: expected entries in [0, ", count, "), got ", order[i]);
      for (int rank = 0; rank <= levels; ++rank)
        FLOWKERN_CHECK(ends[rank] >= (rank > 0 ? ends[rank - 1] : 0) && ends[rank] <= count,
                       "ends: expected ascending counts up to ", count, ", got ", ends[rank]);
      FLOWKERN_CHECK(k > 0 || (ends[0] == 0 && ends[levels] == count), "ends: expected features of rank 1 to ", levels);
      order += count, ends += levels + 1;
    }
  }

  // How many units have rank ≤ −1 … levels. Outputs have the rank below their feature's.
  void count() {
    const auto* ends = static_cast<const std::int64_t*>(call.ends.const_data_ptr());
    for (int k = 0; k < outputs; ++k) {
      counts.push_back(0);
      for (int rank = 0; rank <= levels; ++rank) counts.push_back(int(ends[k * (levels + 1) + rank]));
    }
    for (int rank = -1; rank <= levels; ++rank)
      counts.push_back(upto(0, rank < levels ? rank + 1 : rank) * parameters);
  }

  // Blocks of ranks with units enough to fill panels.
  void divide() {
    first.push_back(0);
    for (int rank = 0; rank < levels; ++rank) {
      int widest = 0;
      for (int k = outputs > 1 ? 1 : 0; k < (outputs > 1 ? outputs : 1); ++k)
        widest = std::max(widest, upto(k, rank) - upto(k, first.back() - 1));
      if (widest >= kPanelsPerBlock * shape.panel || rank + 1 == levels) first.push_back(rank + 1);
    }
  }

  static Elements<const S> elements(const std::optional<Tensor>& t) {
    if (!t) return {nullptr, 0, 0, nullptr};
    const bool by_row = t->dim() == 2;
    return {static_cast<const S*>(t->const_data_ptr()), by_row ? t->stride(0) : 0, t->stride(by_row), nullptr};
  }

  void describe() {
    const auto* order = static_cast<const std::int64_t*>(call.order.const_data_ptr());
    std::int64_t before = 0;
    places.resize(call.order.size(0));
    for (int k = 0; k <= outputs; ++k) {
      MaskedUnits<S> layer{};
      const std::int64_t begin = k < outputs ? before : 0;
      layer.order = order + begin, layer.place = places.data() + begin;
      layer.units = int(k > 0 ? call.units(k - 1) : call.features());
      layer.used = k > 0 && k < outputs ? upto(k, levels - 1) : layer.units;
      layer.skip = layer.grad_skip = -1;
      for (auto& vector : layer.vectors) vector = {-1, nullptr};
      if (k > 0) describe_map(layer, k - 1);
      if (k < outputs)
        for (int r = 0; r < layer.units; ++r) places[begin + layer.order[r]] = r;
      before += layer.units;
      units.push_back(layer);
    }
    place_values();
    if (call.grads) place_gradients();
  }

  void describe_map(MaskedUnits<S>& layer, int k) {
    const Tensors& t = call.tensors;
    weights.push_back(matrix_of(*t[5 * k]));
    layer.bias = elements(t[5 * k + 1]), layer.gate = elements(t[5 * k + 2]);
    layer.gain = elements(t[5 * k + 3]), layer.offset = elements(t[5 * k + 4]);
    layer.skip = call.set.skips[k] < 0 ? -1 : int(call.set.skips[k]) + 1;
    layer.activation = int(call.set.activations[k]);
    layer.slope = S(call.set.slopes[k]);
    if (const auto* term = call.term(k)) {
      layer.term = {elements(term[0]), int(term[0]->size(1)), nullptr, nullptr};
      layer.term.activation = int(call.terms->activations[k]), layer.term.slope = S(call.terms->slopes[k]);
    }
  }

  // A tile's memory, row by row.
  void place_values() {
    const bool backward = call.grad_out;
    for (int k = 1; k < outputs; ++k)
      if (units[k].skip >= 0) units[units[k].skip].keeps_z = true;
    int row = 0;
    auto take = [&](int rows) { return (row += rows) - rows; };
    problem.other = take(int(call.features()));
    int inputs = 0;
    for (const auto& layer : units) inputs = std::max(inputs, layer.term.inputs);
    problem.context = take(inputs);
    for (int k = 0; k <= outputs; ++k) {
      MaskedUnits<S>& layer = units[k];
      const bool skipped = layer.keeps_z;
      layer.keeps_z = layer.keeps_z || backward;
      layer.u = layer.z = take(layer.used);
      if (layer.keeps_z && k > 0 && k < outputs) layer.z = take(layer.used);
      layer.v = layer.gate.base ? take(layer.used) : 0;
      if (!backward) continue;
      layer.grad = take(layer.used);
      if (skipped) layer.grad_skip = take(layer.used);
    }
    problem.memory = row + std::max(kColumns, shape.lanes);
  }

  // What a chunk sums up: weights by groups of rows, each with the columns that its rows see.
  void place_gradients() {
    groups.resize(outputs + 1);
    for (int k = 1; k <= outputs; ++k) {
      const std::optional<Tensor>* grads = call.grads->data() + 5 * (k - 1);
      if (grads[0]) place_weight(k);
      for (int i = 0; i < 4; ++i)
        if (const auto& grad = grads[i + 1]; grad && grad->dim() == 2)
          units[k].vectors[i].rows = static_cast<S*>(grad->mutable_data_ptr());
        else if (grad)
          units[k].vectors[i].sums = chunk_size, chunk_size += units[k].used;
    }
  }

  void place_weight(int k) {
    Ranks ranks{*this, k};
    for (int row = 0; row < units[k].used; row += shape.lanes) {
      groups[k].push_back(chunk_size);
      const int last = std::min(row + shape.lanes, units[k].used) - 1;
      const int columns = upto(k - 1, ranks.of_row(last));
      chunk_size += std::int64_t(columns + kColumns - 1) / kColumns * kColumns * shape.lanes;
    }
    groups[k].push_back(chunk_size);
    units[k].groups = groups[k].data();
  }

  S total(const S* sum, int chunks) const {
    S value = *sum;
    for (int i = 1; i < chunks; ++i) value += sum[i * chunk_size];
    return value;
  }

  void finish_weight(int k, const S* sums, int chunks) const {
    const MaskedUnits<S>& layer = units[k];
    const Tensor& grad = *(*call.grads)[5 * (k - 1)];
    const std::int64_t* order = units[k - 1].order;
    Ranks ranks{*this, k};
    for (int r = 0; r < layer.used; ++r) {
      S* to = static_cast<S*>(grad.mutable_data_ptr()) + unit(k, r) * grad.stride(0);
      const S* from = sums + layer.groups[r / shape.lanes] + r % shape.lanes;
      const int columns = upto(k - 1, ranks.of_row(r));
      for (int c = 0; c < columns; ++c) to[order[c]] = total(from + c * shape.lanes, chunks);
    }
  }

  static Elements<const S> matrix(const Tensor* t) {
    if (!t) return {nullptr, 0, 0, nullptr};
    return {static_cast<const S*>(t->const_data_ptr()), t->stride(0), t->dim() > 1 ? t->stride(1) : 0, nullptr};
  }

  void fill() {
    problem.rows = call.x.size(0), problem.features = call.features();
    problem.levels = levels, problem.layers = outputs + 1, problem.blocks = blocks();
    problem.first = first.data(), problem.units = units.data(), problem.counts = counts.data();
    problem.parameters = parameters;
    problem.element = int(call.set.element), problem.tails = int(call.set.tails);
    problem.inverse = call.set.inverse, problem.scale_first = call.set.scale_first;
    std::copy(call.set.constants.begin(), call.set.constants.end(), problem.constants);
    const bool given = call.set.inverse && !call.grad_out;  // x is what the inverse is given
    problem.x = matrix(given ? nullptr : &call.x), problem.y = matrix(given ? &call.x : call.y);
    problem.out = {static_cast<S*>(call.out.mutable_data_ptr()), call.out.stride(0), call.out.stride(1), nullptr};
    problem.logabsdet = call.logabsdet ? static_cast<S*>(call.logabsdet->mutable_data_ptr()) : nullptr;
    problem.grad_out = matrix(call.grad_out), problem.grad_logabsdet = matrix(call.grad_logabsdet);
  }

  // Packing.

  std::int64_t unit(int k, int place) const {
    const std::int64_t* order = units[k].order;
    return k < outputs ? order[place] : order[place / parameters] * parameters + place % parameters;
  }
  const S* row(int k, int place) const {  // of the weight into layer k
    const Weight& w = weights[k - 1];
    return w.values + unit(k, place) * w.row;
  }

  Panels<S> into(int k, int b) const {
    const int last = first[b + 1] - 1;
    return {nullptr, upto(k, first[b] - 1), upto(k, last), 0, upto(k - 1, last)};
  }
  std::int64_t size(const Panels<S>& m) const {
    const int count = (m.end - m.row + shape.panel - 1) / shape.panel;
    return std::int64_t(count) * shape.panel * m.columns;
  }

  void pack() {
    for (int k = 1; k <= outputs; ++k)
      for (int b = 0; b < blocks(); ++b) panels.push_back(into(k, b)), packed += size(panels.back());
    for (const auto& layer : units) packed += term_size(layer);
    S* to = scratch<S, 0>(packed);
    for (int k = 1; k <= outputs; ++k) {
      Panels<S>* into = &panels[(k - 1) * blocks()];
      units[k].into = into;
      for (int b = 0; b < blocks(); to += size(into[b++]))
        into[b].values = to, shape.panel == 8 ? pack_block<8>(k, into[b], to) : pack_block<4>(k, into[b], to);
      if (units[k].term.inputs >= 0) pack_term(k, to), to += term_size(units[k]);
    }
  }

  // Panels of C, then d; rows that fill the last panel are not read.
  std::int64_t term_rows(const MaskedUnits<S>& layer) const { return (layer.used + shape.panel - 1) / shape.panel * shape.panel; }
  std::int64_t term_size(const MaskedUnits<S>& layer) const {
    return layer.term.inputs >= 0 ? term_rows(layer) * (layer.term.inputs + 1) : 0;
  }
  void pack_term(int k, S* to) {
    const auto* given = call.term(k - 1);
    const Weight weight = matrix_of(*given[1]);
    const Elements<const S> bias = elements(given[2]);
    MaskedUnits<S>& layer = units[k];
    layer.term.weight = to, layer.term.bias = to + term_rows(layer) * layer.term.inputs;
    for (int r = 0; r < layer.used; ++r) {
      const S* from = weight.values + unit(k, r) * weight.row;
      S* panel = to + std::int64_t(r / shape.panel) * layer.term.inputs * shape.panel + r % shape.panel;
      for (int c = 0; c < layer.term.inputs; ++c) panel[std::int64_t(c) * shape.panel] = from[c * weight.column];
      to[term_rows(layer) * layer.term.inputs + r] = bias.base ? bias.base[unit(k, r) * bias.feature] : S(0);
    }
  }

  template <int panel> void pack_block(int k, const Panels<S>& m, S* to) const {
    Ranks ranks{*this, k};
    const std::int64_t* order = units[k - 1].order;
    const std::int64_t by = weights[k - 1].column;
    for (int first = m.row; first < m.end; first += panel, to += std::int64_t(m.columns) * panel) {
      const S* from[panel];
      int seen[panel];  // columns of each row, ascending
      const int rows = std::min(panel, m.end - first);
      for (int j = 0; j < rows; ++j)
        from[j] = row(k, first + j), seen[j] = upto(k - 1, ranks.of_row(first + j));
      int c = 0;
      if (rows == panel)
        for (; c < seen[0]; ++c)
          for (int j = 0; j < panel; ++j) to[c * panel + j] = from[j][order[c] * by];
      for (; c < m.columns; ++c)
        for (int j = 0; j < panel; ++j) to[c * panel + j] = j < rows && c < seen[j] ? from[j][order[c] * by] : S(0);
    }
  }
};

}  // namespace
}  // namespace flowkern
