// From a network to what the loops work on: units sorted by rank, blocks of ranks, packed weights.
//
// Weights are packed anew in every call: whatever changed them, they are never stale. It costs one
// pass over them, where the solve makes as many as there are tiles.
#pragma once

#include "../common/activation.h"
#include "../common/checks.h"
#include "../common/tiles.h"
#include "network.h"

#include <algorithm>

namespace flowkern {
namespace {

template <class S> class MaskedPlan {
 public:
  using Network = MaskedNetwork<S>;
  using Term = typename Network::Term;

  MaskedPlan(Network network, const MaskedShape& shape)
      : net(std::move(network)), shape(shape), levels(net.levels), outputs(int(net.layers.size())),
        parameters(net.parameters) {
    check_order();
    count();
    divide();
    describe();
    measure();
    fill();
  }
  MaskedPlan(const MaskedPlan&) = delete;  // the problem points into it

  // Numbers that a chunk of tiles sums up, and entries of the packed weights.
  std::int64_t chunk_size = 0, packed = 0;
  MaskedProblem<S> problem{};

  // Packs the weights into `to`, of `packed` numbers.
  void pack(S* to) {
    for (int k = 1; k <= outputs; ++k) {
      Panels<S>* into = &panels[(k - 1) * blocks()];
      for (int b = 0; b < blocks(); to += size(into[b++]))
        if (!into[b].apart) into[b].values = to, shape.panel == 8 ? pack_block<8>(k, into[b], to) : pack_block<4>(k, into[b], to);
      pack_term(k, units[k].term, layer(k).term, to);
      pack_term(k, units[k].gate_term, layer(k).gate_term, to);
    }
  }

  // The gradients out of the sums.
  void finish(const S* sums) const {
    for (int k = 1; k <= outputs; ++k) {
      const MaskedUnits<S>& to = units[k];
      if (to.groups) finish_weight(k, sums);
      for (int i = 0; i < 4; ++i)
        if (to.vectors[i].sums >= 0) finish_vector(k, to.vectors[i].sums, layer(k).grad_sums[i], sums);
      finish_term(k, to.term, layer(k).term, sums);
      finish_term(k, to.gate_term, layer(k).gate_term, sums);
    }
  }

 private:
  const Network net;
  const MaskedShape shape;
  const int levels, outputs, parameters;  // `outputs` is also the number of the layer that holds them
  std::vector<int> counts, first, places;
  std::vector<MaskedUnits<S>> units;
  std::vector<Panels<S>> panels;
  std::vector<std::vector<std::int64_t>> groups;
  std::vector<std::int64_t> of_outputs;  // number of the output at each place

  static constexpr int kPanelsPerBlock = 2, kFewSamples = 64;

  int upto(int layer, int rank) const { return counts[layer * (levels + 2) + rank + 1]; }
  int blocks() const { return int(first.size()) - 1; }
  const typename Network::Layer& layer(int k) const { return net.layers[k - 1]; }
  int width(int k) const { return k > 0 ? layer(k).units : net.features; }

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
    const std::int64_t *order = net.order, *ends = net.ends;
    for (int k = 0; k < outputs; ++k) {
      const std::int64_t count = width(k);
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
    for (int k = 0; k < outputs; ++k) {
      counts.push_back(0);
      for (int rank = 0; rank <= levels; ++rank) counts.push_back(int(net.ends[k * (levels + 1) + rank]));
    }
    for (int rank = -1; rank <= levels; ++rank)
      counts.push_back(std::max(0, upto(0, rank < levels ? rank + 1 : rank) - net.passive) * parameters);
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

  void describe() {
    std::int64_t before = 0, all = 0;
    for (int k = 0; k <= outputs; ++k) all += width(k);
    places.resize(all);
    order_outputs();
    for (int k = 0; k <= outputs; ++k) {
      MaskedUnits<S> to{};
      to.order = k < outputs ? net.order + before : of_outputs.data(), to.place = places.data() + before;
      to.units = width(k);
      to.used = k > 0 && k < outputs ? upto(k, levels - 1) : to.units;
      to.skip = to.grad_skip = -1;
      for (auto& vector : to.vectors) vector = {-1, nullptr};
      if (k > 0) describe_map(to, k);
      for (int r = 0; r < to.units; ++r) places[before + to.order[r]] = r;
      before += to.units;
      units.push_back(to);
    }
    place_values();
    if (net.backward) place_cotangents(), place_gradients();
  }

  void order_outputs() {
    const int count = width(outputs);
    of_outputs.resize(count);
    for (int i = 0; i < count; ++i) {
      of_outputs[i] = net.outputs ? net.outputs[i] : net.order[net.passive + i / parameters] * parameters + i % parameters;
      FLOWKERN_CHECK(of_outputs[i] >= 0 && of_outputs[i] < count, "outputs: expected entries in [0, ", count, "), got ", of_outputs[i]);
    }
  }

  void describe_map(MaskedUnits<S>& to, int k) {
    const auto& from = layer(k);
    to.bias = from.vectors[kBias], to.gate = from.vectors[kGate];
    to.gain = from.vectors[kGain], to.offset = from.vectors[kOffset];
    to.skip = from.skip < 0 ? -1 : from.skip + 1;
    to.activation = from.activation, to.slope = from.slope;
    describe_term(to.term, from.term);
    describe_term(to.gate_term, from.gate_term);
  }
  static void describe_term(ContextTerm<S>& to, const Term& from) {
    to = {from.given, from.context, from.inputs, nullptr, nullptr, from.activation, from.slope, -1, -1, -1, -1, -1};
  }

  // A tile's memory, row by row: values, and then in the backward cotangents.
  void place_values() {
    for (int k = 1; k < outputs; ++k)
      if (units[k].skip >= 0) units[units[k].skip].keeps_z = true;
    Rows rows;
    problem.other = rows.take(net.features);
    int inputs = 0;
    for (const auto& of : units) inputs = std::max(inputs, of.term.context.base ? of.term.inputs : 0);
    problem.context = rows.take(inputs);
    for (int k = 0; k <= outputs; ++k) place_values_of(k, rows);
    problem.values = rows.count;
    problem.memory = rows.count + std::max(kColumns, shape.lanes);
  }
  struct Rows {
    int count = 0;
    int take(int rows) { return (count += rows) - rows; }
  };

  void place_values_of(int k, Rows& rows) {
    MaskedUnits<S>& to = units[k];
    const bool hidden = k > 0 && k < outputs, for_backward = net.backward || net.keeps;
    to.keeps_z = to.keeps_z || (for_backward && (to.gain.base || !portable::differentiates_by_value(to.activation, to.slope)));
    to.u = to.z = rows.take(to.used);
    if (to.keeps_z && hidden) to.z = rows.take(to.used);
    to.v = to.gate.base || to.gate_term.given ? rows.take(to.used) : 0;
    if (to.gate_term.given) to.gate_term.keeps = rows.take(to.used);
    if (!for_backward) return;
    // A term of no activation has the cotangent of W u + b, and need not be known.
    if (to.term.given && to.term.activation != kIdentityActivation) to.term.keeps = rows.take(to.used);
    for (ContextTerm<S>* term : {&to.term, &to.gate_term})
      if (term->keeps >= 0 && !portable::differentiates_by_value(term->activation, term->slope)) term->before = rows.take(to.used);
  }

  void place_cotangents() {
    Rows rows;
    for (MaskedUnits<S>& to : units) to.grad = rows.take(to.used);
    for (const MaskedUnits<S>& of : units)
      if (of.skip >= 0 && units[of.skip].grad_skip < 0) units[of.skip].grad_skip = rows.take(units[of.skip].used);
    for (MaskedUnits<S>& to : units)
      for (ContextTerm<S>* term : {&to.term, &to.gate_term}) term->cotangent = term->keeps < 0 ? to.grad : rows.take(to.used);
    problem.memory += rows.count;
  }

  // What a chunk sums up: weights by groups of rows, each with the columns that its rows see.
  void place_gradients() {
    groups.resize(outputs + 1);
    for (int k = 1; k <= outputs; ++k) {
      const auto& from = layer(k);
      if (from.grad_weight.values) place_weight(k);
      for (int i = 0; i < 4; ++i)
        if (from.grad_rows[i]) units[k].vectors[i].rows = from.grad_rows[i];
        else if (from.grad_sums[i]) units[k].vectors[i].sums = chunk_size, chunk_size += units[k].used;
      place_term(units[k], units[k].term, from.term);
      place_term(units[k], units[k].gate_term, from.gate_term);
    }
  }

  std::int64_t rounded(int columns) const { return std::int64_t(columns + kColumns - 1) / kColumns * kColumns * shape.lanes; }

  void place_weight(int k) {
    Ranks ranks{*this, k};
    for (int row = 0; row < units[k].used; row += shape.lanes) {
      groups[k].push_back(chunk_size);
      const int last = std::min(row + shape.lanes, units[k].used) - 1;
      chunk_size += rounded(upto(k - 1, ranks.of_row(last)));
    }
    groups[k].push_back(chunk_size);
    units[k].groups = groups[k].data();
  }

  void place_term(const MaskedUnits<S>& of, ContextTerm<S>& to, const Term& from) {
    if (!to.given) return;
    if (from.grad_weight.values)
      to.weight_sums = chunk_size, chunk_size += (of.used + shape.lanes - 1) / shape.lanes * rounded(to.inputs);
    if (from.grad_bias) to.bias_sums = chunk_size, chunk_size += of.used;
  }

  // Which column of the weight into layer k belongs to the place c of the layer before.
  const std::int64_t* columns(int k) const { return k == 1 && net.columns ? net.columns : units[k - 1].order; }

  void finish_weight(int k, const S* sums) const {
    const MaskedUnits<S>& from = units[k];
    const Matrix<S>& grad = layer(k).grad_weight;
    const std::int64_t* order = columns(k);
    Ranks ranks{*this, k};
    for (int r = 0; r < from.used; ++r) {
      S* to = grad.values + from.order[r] * grad.row;
      const S* of_row = sums + from.groups[r / shape.lanes] + r % shape.lanes;
      const int seen = upto(k - 1, ranks.of_row(r)), lanes = shape.lanes;
      for (int c = 0; c < seen; ++c, of_row += lanes) to[order[c] * grad.column] = *of_row;
    }
  }
  void finish_vector(int k, std::int64_t at, S* to, const S* sums) const {
    for (int r = 0; r < units[k].used; ++r) to[units[k].order[r]] = sums[at + r];
  }
  void finish_term(int k, const ContextTerm<S>& from, const Term& to, const S* sums) const {
    if (from.bias_sums >= 0) finish_vector(k, from.bias_sums, to.grad_bias, sums);
    if (from.weight_sums < 0) return;
    for (int r = 0; r < units[k].used; ++r) {
      S* grad = to.grad_weight.values + units[k].order[r] * to.grad_weight.row;
      const std::int64_t at = from.weight_sums + r / shape.lanes * rounded(from.inputs) + r % shape.lanes;
      for (int c = 0; c < from.inputs; ++c) grad[c * to.grad_weight.column] = sums[at + std::int64_t(c) * shape.lanes];
    }
  }

  void fill() {
    problem.rows = net.rows, problem.features = net.features;
    problem.levels = levels, problem.layers = outputs + 1, problem.blocks = blocks();
    problem.first = first.data(), problem.units = units.data(), problem.counts = counts.data();
    problem.passive = net.passive, problem.parameters = parameters;
    problem.element = net.element, problem.inverse = net.inverse;
  }

  // Packing.

  Panels<S> into(int k, int b) const {
    const int last = first[b + 1] - 1;
    return {nullptr, upto(k, first[b] - 1), upto(k, last), 0, upto(k - 1, last)};
  }
  // For few samples, rows and columns that are in order, and all seen, are read where they lie. More samples
  // read them more often than packing costs, and panels come from memory as one stream.
  void leave(int k, Panels<S>& m) const {
    const Matrix<const S>& weight = layer(k).weight;
    const std::int64_t *rows = units[k].order + m.row, *all = columns(k);
    bool plain = net.rows <= kFewSamples && weight.column == 1 && weight.row > 0 && m.end > m.row && m.columns > 0;
    plain = plain && upto(k - 1, Ranks{*this, k}.of_row(m.row)) >= m.columns;
    for (int r = 0; plain && r < m.end - m.row; ++r) plain = rows[r] == rows[0] + r;
    for (int c = 0; plain && c < m.columns; ++c) plain = all[c] == all[0] + c;
    if (plain) m.values = weight.values + rows[0] * weight.row + all[0], m.apart = weight.row;
  }
  std::int64_t size(const Panels<S>& m) const {
    if (m.apart) return 0;
    const int count = (m.end - m.row + shape.panel - 1) / shape.panel;
    return std::int64_t(count) * shape.panel * m.columns;
  }
  void measure() {
    for (int k = 1; k <= outputs; ++k) {
      for (int b = 0; b < blocks(); ++b) panels.push_back(into(k, b)), leave(k, panels.back()), packed += size(panels.back());
      packed += term_size(units[k], units[k].term) + term_size(units[k], units[k].gate_term);
    }
    for (int k = 1; k <= outputs; ++k) units[k].into = &panels[(k - 1) * blocks()];
  }

  // Panels of C, then d; rows that fill the last panel are not read.
  std::int64_t term_rows(const MaskedUnits<S>& of) const { return (of.used + shape.panel - 1) / shape.panel * shape.panel; }
  std::int64_t term_size(const MaskedUnits<S>& of, const ContextTerm<S>& term) const {
    return term.given ? term_rows(of) * (term.inputs + 1) : 0;
  }
  void pack_term(int k, ContextTerm<S>& to, const Term& from, S*& at) const {
    const MaskedUnits<S>& of = units[k];
    if (!to.given) return;
    S *weight = at, *bias = at + term_rows(of) * to.inputs;
    to.weight = weight, to.bias = bias, at += term_size(of, to);
    for (int r = 0; r < of.used; ++r) {
      const S* row = from.weight.values + of.order[r] * from.weight.row;
      S* panel = weight + std::int64_t(r / shape.panel) * to.inputs * shape.panel + r % shape.panel;
      for (int c = 0; c < to.inputs; ++c) panel[std::int64_t(c) * shape.panel] = row[c * from.weight.column];
      bias[r] = from.bias.base ? from.bias.base[of.order[r] * from.bias.feature] : S(0);
    }
  }

  template <int panel> void pack_block(int k, const Panels<S>& m, S* to) const {
    Ranks ranks{*this, k};
    const std::int64_t* order = columns(k);
    const Matrix<const S>& weight = layer(k).weight;
    const std::int64_t by = weight.column;
    for (int first = m.row; first < m.end; first += panel, to += std::int64_t(m.columns) * panel) {
      const S* from[panel];
      int seen[panel];  // columns of each row, ascending
      const int rows = std::min(panel, m.end - first);
      for (int j = 0; j < rows; ++j)
        from[j] = weight.values + units[k].order[first + j] * weight.row, seen[j] = upto(k - 1, ranks.of_row(first + j));
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
