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
  MaskedPlan(const MaskedCall& call, const MaskedShape& shape) : call(call), shape(shape) {
    check_order();
    count();
    divide();
    describe();
    pack();
    fill();
  }
  MaskedPlan(const MaskedPlan&) = delete;  // the problem points into it

  // Numbers that a chunk of tiles sums up.
  std::int64_t chunk_size = 0;

  // The gradients out of the sums of `chunks` chunks.
  void finish(const S* sums, int chunks) const {
    for (int k = 1; k <= outputs(); ++k) {
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
  const MaskedCall& call;
  const MaskedShape shape;
  std::vector<int> counts, first, skip_places;
  std::vector<MaskedUnits<S>> units;
  std::vector<Panels<S>> panels;
  std::vector<std::vector<std::int64_t>> groups;

  static constexpr int kPanelsPerBlock = 2;

  int levels() const { return int(call.levels()); }
  int outputs() const { return int(call.layers()); }  // number of the layer that holds them
  int upto(int layer, int rank) const { return counts[layer * (levels() + 2) + rank + 1]; }
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
      for (auto& vector : layer.vectors) vector = {-1, nullptr};
      if (k > 0) describe_map(layer, k - 1);
      place += layer.units;
      units.push_back(layer);
    }
    skip_places.resize(place);
    place_skips();
    place_values();
    if (call.grads) place_gradients();
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
    problem.memory = row + std::max(kColumns, shape.lanes);
  }

  // What a chunk sums up: weights by groups of rows, each with the columns that its rows see.
  void place_gradients() {
    groups.resize(outputs() + 1);
    for (int k = 1; k <= outputs(); ++k) {
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
      else if (i % blocks() == 0) pack_back(k - outputs(), &panels[i], to);
      to += size(panels[i]);
    }
    for (int k = 0; k < outputs(); ++k) {
      units[k + 1].into = &panels[k * blocks()];
      if (call.grad_out) units[k].back = &panels[(outputs() + k) * blocks()];
    }
  }

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

  // All blocks of a layer at once, row after row of the weight as it lies in memory: each goes to the
  // units that it leads to, a column of their panels.
  void pack_back(int k, const Panels<S>* blocks_of_k, S* to) const {
    std::vector<std::int64_t> place(units[k].used), from(units[k].used);
    std::int64_t begin = 0;
    for (int b = 0; b < blocks(); ++b) {
      const Panels<S>& m = blocks_of_k[b];
      for (int r = m.row; r < m.end; ++r) {
        const int panel = (r - m.row) / shape.panel, lane = (r - m.row) % shape.panel;
        place[r] = begin + (std::int64_t(panel) * m.columns - m.column) * shape.panel + lane;
        from[r] = units[k].order[r] * step(k + 1);
      }
      begin += size(m);
    }
    std::fill_n(to, begin, S(0));
    Ranks ranks{*this, k + 1};
    for (int c = 0; c < units[k + 1].used; ++c) {
      const S* row = weights(k + 1, unit(k + 1, c));
      S* column = to + std::int64_t(c) * shape.panel;
      const int seen = upto(k, ranks.of_row(c));
      for (int r = 0; r < seen; ++r) column[place[r]] = row[from[r]];
    }
  }
};

}  // namespace
}  // namespace flowkern
