// From tensors to what the loops work on: units sorted by rank, blocks of ranks, packed weights.
//
// Weights are packed anew in every call: whatever changed them, they are never stale. It costs one
// pass over them, where the solve makes as many as there are tiles.
#pragma once

#include "masked_autoregressive_cpu.h"
#include "masked_autoregressive_torch.h"

#include <algorithm>

namespace flowkern {
namespace {

// Memory that a thread keeps from call to call: getting it anew costs a page fault every 4 KiB.
template <class S, int which> S* scratch(std::size_t count) {
  constexpr std::size_t alignment = 64;
  thread_local std::vector<S> memory;
  if (memory.size() < count + alignment) memory = std::vector<S>(count + alignment);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  return memory.data() + (alignment - address % alignment) % alignment / sizeof(S);
}

template <class S> class MaskedPlan {
 public:
  MaskedPlan(const MaskedCall& call, const MaskedShape& shape) : call(call), shape(shape) {
    check_order();
    count();
    divide();
    describe();
    pack();
    fill();
  }
  MaskedPlan(const MaskedPlan&) = delete;  // the problem points into it

  // Whether there are units that no output sees: the loops pass them by.
  bool leaves_units() const {
    return std::any_of(units.begin(), units.end(), [](const auto& layer) { return layer.used < layer.units; });
  }

  MaskedProblem<S> problem{};

 private:
  const MaskedCall& call;
  const MaskedShape shape;
  std::vector<int> counts, first, skip_places;
  std::vector<MaskedUnits<S>> units;
  std::vector<Panels<S>> panels;

  static constexpr int kPanelsPerBlock = 2;

  int levels() const { return int(call.levels()); }
  int outputs() const { return int(call.layers()); }  // number of the layer that holds them
  int upto(int layer, int rank) const { return counts[layer * (levels() + 2) + rank + 1]; }
  int blocks() const { return int(first.size()) - 1; }

  // Numbers outside a layer would be read as addresses.
  void check_order() const {
    const auto* order = static_cast<const std::int64_t*>(call.order.const_data_ptr());
    const auto* ends = static_cast<const std::int64_t*>(call.ends.const_data_ptr());
    for (int k = 0; k < int(call.layers()); ++k) {
      const std::int64_t count = k > 0 ? call.units(k - 1) : call.features();
      for (std::int64_t i = 0; i < count; ++i)
        FLOWKERN_CHECK(order[i] >= 0 && order[i] < count, "order: expected entries in [0, ", count, "), got ", order[i]);
      for (int rank = 0; rank <= levels(); ++rank)
        FLOWKERN_CHECK(ends[rank] >= (rank > 0 ? ends[rank - 1] : 0) && ends[rank] <= count,
                       "ends: expected ascending counts up to ", count, ", got ", ends[rank]);
      FLOWKERN_CHECK(k > 0 || (ends[0] == 0 && ends[levels()] == count), "ends: expected features of rank 1 to ", levels());
      order += count, ends += levels() + 1;
    }
  }

  // How many units have rank ≤ −1 … levels. Outputs have the rank below their feature's.
  void count() {
    const auto* ends = static_cast<const std::int64_t*>(call.ends.const_data_ptr());
    for (int k = 0; k < outputs(); ++k) {
      counts.push_back(0);
      for (int rank = 0; rank <= levels(); ++rank) counts.push_back(int(ends[k * (levels() + 1) + rank]));
    }
    for (int rank = -1; rank <= levels(); ++rank)
      counts.push_back(upto(0, rank < levels() ? rank + 1 : rank) * int(call.parameters()));
  }

  // Blocks of ranks with units enough to fill panels.
  void divide() {
    first.push_back(0);
    for (int rank = 0; rank < levels(); ++rank) {
      int widest = 0;
      for (int k = outputs() > 1 ? 1 : 0; k < (outputs() > 1 ? outputs() : 1); ++k)
        widest = std::max(widest, upto(k, rank) - upto(k, first.back() - 1));
      if (widest >= kPanelsPerBlock * shape.panel || rank + 1 == levels()) first.push_back(rank + 1);
    }
  }

  static Elements<const S> elements(const std::optional<Tensor>& t) {
    if (!t) return {nullptr, 0, 0, nullptr};
    const bool by_row = t->dim() == 2;
    return {static_cast<const S*>(t->const_data_ptr()), by_row ? t->stride(0) : 0, t->stride(by_row), nullptr};
  }

  void describe() {
    const auto* order = static_cast<const std::int64_t*>(call.order.const_data_ptr());
    std::int64_t place = 0;
    for (int k = 0; k <= outputs(); ++k) {
      MaskedUnits<S> layer{};
      layer.order = k < outputs() ? order + place : order;
      layer.units = int(k > 0 ? call.units(k - 1) : call.features());
      layer.used = k > 0 && k < outputs() ? upto(k, levels() - 1) : layer.units;
      layer.skip = layer.grad_skip = -1;
      layer.tape_u = layer.tape_v = layer.tape_gate = layer.tape_gain = -1;
      if (k > 0) describe_map(layer, k - 1);
      place += layer.units;
      units.push_back(layer);
    }
    skip_places.resize(place);
    place_skips();
    place_values();
    if (call.tape && call.tape->size(0) > 0) place_tape();
  }

  void describe_map(MaskedUnits<S>& layer, int k) {
    const Tensors& t = call.tensors;
    layer.bias = elements(t[5 * k + 1]), layer.gate = elements(t[5 * k + 2]);
    layer.gain = elements(t[5 * k + 3]), layer.offset = elements(t[5 * k + 4]);
    layer.skip = call.set.skips[k] < 0 ? -1 : int(call.set.skips[k]) + 1;
    layer.activation = int(call.set.activations[k]);
    layer.slope = S(call.set.slopes[k]);
  }

  // Where in its own layer the partner of each unit stands.
  void place_skips() {
    int* places = skip_places.data();
    for (int k = 1; k < outputs(); ++k) {
      MaskedUnits<S>& layer = units[k];
      if (layer.skip < 0) continue;
      const MaskedUnits<S>& other = units[layer.skip];
      std::vector<int> place_of(other.units);
      for (int r = 0; r < other.units; ++r) place_of[other.order[r]] = r;
      for (int r = 0; r < layer.units; ++r) places[r] = place_of[layer.order[r]];
      layer.skip_place = places;
      places += layer.units;
    }
  }

  // A tile's memory, row by row.
  void place_values() {
    const bool backward = call.grad_out;
    for (int k = 1; k < outputs(); ++k)
      if (units[k].skip >= 0) units[units[k].skip].keeps_z = true;
    int row = 0;
    auto take = [&](int rows) { return (row += rows) - rows; };
    problem.other = take(int(call.features()));
    for (int k = 0; k <= outputs(); ++k) {
      MaskedUnits<S>& layer = units[k];
      const bool skipped = layer.keeps_z;
      layer.keeps_z = layer.keeps_z || backward;
      layer.u = layer.z = take(layer.used);
      if (layer.keeps_z && k > 0 && k < outputs()) layer.z = take(layer.used);
      layer.v = layer.gate.base ? take(layer.used) : 0;
      if (!backward) continue;
      layer.grad = take(layer.used);
      if (skipped) layer.grad_skip = take(layer.used);
    }
    problem.memory = row;
  }

  void place_tape() {
    std::int64_t row = 0;
    for (int k = 1; k < outputs(); ++k) units[k].tape_u = row, row += units[k].units;
    for (int k = 1; k <= outputs(); ++k) units[k].tape_v = row, row += units[k].units;
    for (int k = 1; k < outputs(); ++k) {
      MaskedUnits<S>& layer = units[k];
      if (layer.gate.base) layer.tape_gate = row, row += layer.units;
      if (layer.gain.base || layer.offset.base) layer.tape_gain = row, row += 2 * layer.units;
    }
  }

  static Elements<const S> matrix(const Tensor* t) {
    if (!t) return {nullptr, 0, 0, nullptr};
    return {static_cast<const S*>(t->const_data_ptr()), t->stride(0), t->dim() > 1 ? t->stride(1) : 0, nullptr};
  }

  void fill() {
    problem.rows = call.x.size(0), problem.features = call.features();
    problem.levels = levels(), problem.layers = outputs() + 1, problem.blocks = blocks();
    problem.first = first.data(), problem.units = units.data(), problem.counts = counts.data();
    problem.parameters = int(call.parameters());
    problem.element = int(call.set.element), problem.tails = int(call.set.tails);
    problem.inverse = call.set.inverse, problem.scale_first = call.set.scale_first;
    std::copy(call.set.constants.begin(), call.set.constants.end(), problem.constants);
    const bool given = call.set.inverse && !call.grad_out;  // x is what the inverse is given
    problem.x = matrix(given ? nullptr : &call.x), problem.y = matrix(given ? &call.x : call.y);
    problem.out = {static_cast<S*>(call.out.mutable_data_ptr()), call.out.stride(0), call.out.stride(1), nullptr};
    problem.logabsdet = call.logabsdet ? static_cast<S*>(call.logabsdet->mutable_data_ptr()) : nullptr;
    problem.grad_out = matrix(call.grad_out), problem.grad_logabsdet = matrix(call.grad_logabsdet);
    problem.tape = call.tape ? static_cast<S*>(call.tape->mutable_data_ptr()) : nullptr;
  }

  // Packing.

  std::int64_t unit(int k, int place) const {
    const std::int64_t p = call.parameters();
    return k < outputs() ? units[k].order[place] : units[k].order[place / p] * p + place % p;
  }
  const S* weights(int k, std::int64_t unit) const {  // into a unit of layer k
    const Tensor& weight = *call.tensors[5 * (k - 1)];
    return static_cast<const S*>(weight.const_data_ptr()) + unit * weight.stride(0);
  }
  std::int64_t step(int k) const { return call.tensors[5 * (k - 1)]->stride(1); }

  Panels<S> into(int k, int b) const {
    const int last = first[b + 1] - 1;
    return {nullptr, upto(k, first[b] - 1), upto(k, last), 0, upto(k - 1, last)};
  }
  // The features of a block are those that its outputs belong to, one rank higher.
  Panels<S> back(int k, int b) const {
    const int low = first[b] + (k == 0), high = first[b + 1] + (k == 0);
    const int column = upto(k + 1, low - 1);
    return {nullptr, upto(k, low - 1), upto(k, high - 1), column, units[k + 1].used - column};
  }
  std::size_t size(const Panels<S>& m) const {
    const int count = (m.end - m.row + shape.panel - 1) / shape.panel;
    return std::size_t(count) * shape.panel * m.columns;
  }

  void pack() {
    for (int k = 1; k <= outputs(); ++k)
      for (int b = 0; b < blocks(); ++b) panels.push_back(into(k, b));
    if (call.grad_out)
      for (int k = 0; k < outputs(); ++k)
        for (int b = 0; b < blocks(); ++b) panels.push_back(back(k, b));
    std::size_t total = 0;
    for (const Panels<S>& m : panels) total += size(m);
    S* to = scratch<S, 0>(total);
    for (std::size_t i = 0; i < panels.size(); ++i) {
      const int k = int(i) / blocks();
      panels[i].values = to;
      if (k < outputs()) pack_into(k + 1, panels[i], to);
      else pack_back(k - outputs(), panels[i], to);
      to += size(panels[i]);
    }
    for (int k = 0; k < outputs(); ++k) {
      units[k + 1].into = &panels[k * blocks()];
      if (call.grad_out) units[k].back = &panels[(outputs() + k) * blocks()];
    }
  }

  // The ranks of a matrix's rows in turn: of_row(r) for ascending r.
  struct Ranks {
    const MaskedPlan& plan;
    int layer, rank = 0;
    int of_row(int r) {
      while (r >= plan.upto(layer, rank)) ++rank;
      return rank;
    }
  };

  void pack_into(int k, const Panels<S>& m, S* to) const {
    Ranks ranks{*this, k};
    const std::int64_t* order = units[k - 1].order;
    const std::int64_t by = step(k);
    for (int row = m.row; row < m.end; row += shape.panel, to += std::int64_t(m.columns) * shape.panel)
      for (int j = 0; j < shape.panel; ++j) {
        const bool used = row + j < m.end;
        const int seen = used ? upto(k - 1, ranks.of_row(row + j)) : 0;
        const S* from = used ? weights(k, unit(k, row + j)) : nullptr;
        for (int c = 0; c < seen; ++c) to[c * shape.panel + j] = from[order[c] * by];
        for (int c = seen; c < m.columns; ++c) to[c * shape.panel + j] = S(0);
      }
  }

  void pack_back(int k, const Panels<S>& m, S* to) const {
    Ranks ranks{*this, k};
    std::vector<int> unseen(shape.panel);  // columns before which a row's unit is not seen
    for (int row = m.row; row < m.end; row += shape.panel) {
      const int rows = std::min(shape.panel, m.end - row);
      for (int j = 0; j < rows; ++j) unseen[j] = upto(k + 1, ranks.of_row(row + j) - 1);
      for (int c = m.column; c < m.column + m.columns; ++c, to += shape.panel) {
        const S* from = weights(k + 1, unit(k + 1, c));
        for (int j = 0; j < shape.panel; ++j)
          to[j] = j < rows && c >= unseen[j] ? from[units[k].order[row + j] * step(k + 1)] : S(0);
      }
    }
  }
};

}  // namespace
}  // namespace flowkern
