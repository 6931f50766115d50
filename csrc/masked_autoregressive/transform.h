// A conditioned transform on the samples of a tile, everything about them in cache.
//
// A tile keeps one row of R = V·lanes samples for each unit. Products with finished units go by
// panels of rows with their sums in registers; the units of one block then follow rank by rank.
#pragma once

#include "tile.h"

#include "../common/activation.h"

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct ConditionedTransform : MaskedTile<S, V> {
  using Tile = MaskedTile<S, V>;
  using T = typename Tile::T;
  template <int n> using Rows = typename Tile::template Rows<n>;
  using Tile::p, Tile::first, Tile::samples, Tile::memory, Tile::lanes, Tile::R, Tile::at, Tile::grad_at, Tile::upto,
      Tile::outputs, Tile::each_vector, Tile::fill, Tile::copy, Tile::read, Tile::read_columns, Tile::read_layer,
      Tile::each_group, Tile::multiply, Tile::add_sum, Tile::add_product;

  // Forward through the conditioner.

  void start(int k) const {
    const MaskedUnits<S>& layer = p.units[k];
    if (layer.bias.base) read_layer(k, layer.bias, at(layer.z));
    else for (int r = 0; r < layer.used; ++r) fill(at(layer.z + r), S(0));
    if (layer.term.given) add_term(layer, layer.term, at(layer.z));
    if (layer.gate_term.given) add_term(layer, layer.gate_term, nullptr);
  }

  // Keeps e(C c + d) of each unit where the term says, and adds it to the rows of z, if any.
  void add_term(const MaskedUnits<S>& layer, const ContextTerm<S>& term, S* z) const {
    S *keeps = term.keeps < 0 ? nullptr : at(term.keeps), *before = term.before < 0 ? nullptr : at(term.before);
    PanelProduct<S, V>::multiply(
        term.weight, layer.used, term.inputs, inputs_of(term), [bias = term.bias](int r, int) FLOWKERN_INLINE { return T(bias[r]); },
        [=, kind = term.activation, slope = term.slope](int r, int i, T sum) FLOWKERN_INLINE {
          const T value = activate(kind, slope, sum);
          if (before) store(before + r * R + i, sum);
          if (keeps) store(keeps + r * R + i, value);
          if (z) store(z + r * R + i, load(z + r * R + i) + value);
        });
  }
  const S* inputs_of(const ContextTerm<S>& term) const {
    if (!term.context.base) return memory.context;
    S* context = at(p.context);
    read_columns(term.context, term.inputs, [=](int c) { return context + c * R; });
    return context;
  }

  // The gate of the unit at place r, which may be read into `buffer`; null if its layer has none.
  const S* gate_of(const MaskedUnits<S>& layer, int r, S* buffer) const {
    if (layer.gate_term.given) return at(layer.gate_term.keeps + r);
    if (!layer.gate.base) return nullptr;
    read(layer.gate, layer.order[r], buffer);
    return buffer;
  }

  static S vector_entry(const Elements<const S>& vector, int unit, S otherwise) {
    return vector.base ? vector.base[unit * vector.feature] : otherwise;
  }

  // From W u + b to u' in the rows [row, end) of a hidden layer.
  void finish(int k, int row, int end) const {
    const MaskedUnits<S>& layer = p.units[k];
    alignas(64) S buffer[R];
    for (int r = row; r < end; ++r) {
      const int unit = int(layer.order[r]);
      S *z = at(layer.z + r), *u = at(layer.u + r);
      const S* past = layer.skip < 0 ? nullptr : at(p.units[layer.skip].z + p.units[layer.skip].place[unit]);
      const S* gate = gate_of(layer, r, buffer);
      const S gain = vector_entry(layer.gain, unit, S(1)), offset = vector_entry(layer.offset, unit, S(0));
      each_vector([&](int i) FLOWKERN_INLINE {
        T value = load(z + i);
        if (gate) {
          store(at(layer.v + r) + i, value);
          value = value * load(gate + i);
        }
        if (past) value = value + load(past + i);
        store(z + i, value);
        store(u + i, activate(layer.activation, layer.slope, fma(T(gain), value, T(offset))));
      });
    }
  }

  // The whole conditioner at known features.
  void evaluate() const {
    for (int k = 1; k < p.layers; ++k) {
      const MaskedUnits<S>& layer = p.units[k];
      start(k);
      for (int b = 0; b < p.blocks; ++b) {
        const Panels<S>& m = layer.into[b];
        multiply(m, m.row, m.end, 0, m.columns, p.units[k - 1].u, layer.z);
      }
      if (k < outputs()) finish(k, 0, layer.used);
    }
  }

  const S* parameters(int f) const { return at(p.units[outputs()].z + (f - p.passive) * p.parameters); }

  void element(int f, int from, int to, S* logabsdet) const {
    if (f < p.passive) copy(at(from + f), at(to + f));
    else masked_element(p, at(from + f), parameters(f), V, at(to + f), logabsdet);
  }
  void elements(int from, int to, S* logabsdet) const {
    for (int f = 0; f < p.units[0].used; ++f) element(f, from, to, logabsdet);
  }

  // Block after block: what its units receive from finished ones, then rank by rank.
  void solve(S* logabsdet) const {
    for (int k = 1; k < p.layers; ++k) start(k);
    for (int b = 0; b < p.blocks; ++b) {
      const int begin = p.first[b];
      for (int k = 1; k < p.layers; ++k) {
        const Panels<S>& m = p.units[k].into[b];
        multiply(m, m.row, m.end, 0, upto(k - 1, begin - 1), p.units[k - 1].u, p.units[k].z);
      }
      for (int rank = begin; rank < p.first[b + 1]; ++rank) {
        for (int k = 1; k < p.layers; ++k) {
          const int row = upto(k, rank - 1), end = upto(k, rank);
          multiply(p.units[k].into[b], row, end, upto(k - 1, begin - 1), upto(k - 1, rank), p.units[k - 1].u,
                   p.units[k].z);
          if (k < outputs()) finish(k, row, end);
        }
        for (int f = upto(0, rank); f < upto(0, rank + 1); ++f) element(f, p.other, p.units[0].u, logabsdet);
      }
    }
  }

  // From the features given to those computed, which are where `result` says.
  void apply(S* logabsdet) const {
    if (p.inverse) return solve(logabsdet);
    evaluate();
    elements(p.units[0].u, p.other, logabsdet);
  }

  // Backward. The rows `grad` of a layer first gather the cotangents of u, and then hold those of
  // W u + b; the features' hold those of x, and then those of what was given.

  // From the cotangents of u' to those of W u + b in the rows [row, end) of a hidden layer.
  void finish_back(int k, int row, int end) const {
    const MaskedUnits<S>& layer = p.units[k];
    alignas(64) S buffer[R], more[2][R];
    for (int r = row; r < end; ++r) {
      const int unit = int(layer.order[r]);
      const S *z = at(layer.z + r), *u = at(layer.u + r);
      const S* skipped = layer.grad_skip < 0 ? nullptr : grad_at(layer.grad_skip + r);
      S* grad = grad_at(layer.grad + r);
      S* past = layer.skip < 0 ? nullptr : grad_at(p.units[layer.skip].grad_skip + p.units[layer.skip].place[unit]);
      const S gain = vector_entry(layer.gain, unit, S(1)), offset = vector_entry(layer.offset, unit, S(0));
      each_vector([&](int i) FLOWKERN_INLINE {
        const T z_i = load(z + i), a = fma(T(gain), z_i, T(offset));
        const T g_a = load(grad + i) * activation_derivative(layer.activation, layer.slope, a, T(load(u + i)));
        store(more[0] + i, g_a * z_i);
        store(more[1] + i, g_a);
        T g_z = g_a * T(gain);
        if (skipped) g_z = g_z + load(skipped + i);
        if (past) store(past + i, load(past + i) + g_z);
        store(grad + i, g_z);
      });
      add_vector(layer, kGain, r, unit, more[0]);
      add_vector(layer, kOffset, r, unit, more[1]);
      if (const S* gate = gate_of(layer, r, buffer)) finish_gate(layer, r, gate);
      add_vector(layer, kBias, r, unit, grad);
    }
  }

  void finish_gate(const MaskedUnits<S>& layer, int r, const S* gate) const {
    alignas(64) S of_gate[R];
    S* grad = grad_at(layer.grad + r);
    each_vector([&](int i) FLOWKERN_INLINE {
      const T g_z = load(grad + i);
      store(of_gate + i, g_z * load(at(layer.v + r) + i));
      store(grad + i, g_z * load(gate + i));
    });
    add_vector(layer, kGate, r, layer.order[r], of_gate);
    if (layer.gate_term.given) term_back(layer.gate_term, r, of_gate);
  }

  // From the cotangent of a term at place r to that of C c + d.
  void term_back(const ContextTerm<S>& term, int r, const S* grad) const {
    const S *value = at(term.keeps + r), *before = term.before < 0 ? value : at(term.before + r);
    S* to = grad_at(term.cotangent + r);
    each_vector([&](int i) FLOWKERN_INLINE {
      store(to + i, load(grad + i) * activation_derivative(term.activation, term.slope, T(load(before + i)), T(load(value + i))));
    });
  }

  // Passes on a unit's part of the gradient of one of its layer's vectors.
  void add_vector(const MaskedUnits<S>& layer, int which, int r, int64_t unit, const S* grad) const {
    const VectorGradient<S>& to = layer.vectors[which];
    if (to.rows) for (int n = 0; n < samples; ++n) to.rows[unit * p.rows + first + n] = grad[n];
    if (to.sums >= 0) add_sum(to.sums + r, grad);
  }

  void add_weight(int k) const {
    const MaskedUnits<S>& layer = p.units[k];
    if (!layer.groups) return;
    for (int group = 0; group * lanes < layer.used; ++group) {
      const int columns = int((layer.groups[group + 1] - layer.groups[group]) / lanes);
      add_product(grad_at(layer.grad + group * lanes), at(p.units[k - 1].u), columns, memory.chunk + layer.groups[group]);
    }
  }

  // Gradients of a term, once the cotangents of C c + d are there: of C and d, and of the context.
  void add_term_gradients(const MaskedUnits<S>& layer, const ContextTerm<S>& term) const {
    const S* rows = grad_at(term.cotangent);
    if (term.bias_sums >= 0) for (int r = 0; r < layer.used; ++r) add_sum(term.bias_sums + r, rows + int64_t(r) * R);
    const int columns = (term.inputs + kColumns - 1) / kColumns * kColumns;
    if (term.weight_sums >= 0)
      for (int group = 0; group * lanes < layer.used; ++group)
        add_product(rows + int64_t(group) * lanes * R, memory.context, columns,
                    memory.chunk + term.weight_sums + int64_t(group) * columns * lanes);
    if (!memory.grad_context) return;
    const Panels<S> all{term.weight, 0, layer.used, 0, term.inputs};
    each_group(all, 0, layer.used, [&]<int n>(Rows<n>, int row, const auto w) FLOWKERN_INLINE {
      Tile::template multiply_back<n>(w, rows + int64_t(row) * R, 0, term.inputs, memory.grad_context);
    });
  }

  void add_gradients(int k) const {
    const MaskedUnits<S>& layer = p.units[k];
    add_weight(k);
    if (layer.term.given) {
      if (layer.term.keeps >= 0)
        for (int r = 0; r < layer.used; ++r) term_back(layer.term, r, grad_at(layer.grad + r));
      add_term_gradients(layer, layer.term);
    }
    if (layer.gate_term.given) add_term_gradients(layer, layer.gate_term);
  }

  // Cotangents of a feature's input and parameters; the former takes the place of its output's.
  void element_back(int f, const S* g_logabsdet) const {
    if (f < p.passive) return;
    const MaskedUnits<S>& last = p.units[outputs()];
    const S* in = at((p.inverse ? p.other : p.units[0].u) + f);
    const int begin = (f - p.passive) * p.parameters;
    S *grad = grad_at(p.units[0].grad + f), *g_params = grad_at(last.grad + begin);
    masked_element_vjp(p, in, parameters(f), V, grad, g_logabsdet, grad, g_params);
    for (int i = begin; i < begin + p.parameters; ++i) add_vector(last, kBias, i, last.order[i], grad_at(last.grad + i));
  }

  // Adds to units [begin, stop) of layer k what units [row, end) of block b behind them send back.
  void send_back(int k, int b, int begin, int stop, int row, int end) const {
    if (stop <= begin) return;
    each_group(p.units[k + 1].into[b], row, end, [&]<int n>(Rows<n>, int row, const auto w) FLOWKERN_INLINE {
      Tile::template multiply_back<n>(w, grad_at(p.units[k + 1].grad + row), begin, stop, grad_at(p.units[k].grad + begin));
    });
  }

  // Every element first, then layer by layer.
  void back(const S* g_logabsdet) const {
    for (int f = 0; f < p.units[0].used; ++f) element_back(f, g_logabsdet);
    for (int k = outputs() - 1; k >= 0; --k) {
      for (int b = 0; b < p.blocks; ++b) {
        const Panels<S>& m = p.units[k + 1].into[b];
        send_back(k, b, 0, m.columns, m.row, m.end);
      }
      if (k > 0) finish_back(k, 0, p.units[k].used);
    }
  }

  // The transposed solve: block after block rank by rank, descending, and then what its units send to
  // earlier ones.
  void solve_back(const S* g_logabsdet) const {
    for (int b = p.blocks - 1; b >= 0; --b) {
      const int begin = p.first[b], last = p.first[b + 1] - 1;
      for (int rank = last; rank >= begin; --rank) {
        send_back(0, b, upto(0, rank), upto(0, rank + 1), upto(1, rank), upto(1, last));
        for (int f = upto(0, rank); f < upto(0, rank + 1); ++f) element_back(f, g_logabsdet);
        for (int k = outputs() - 1; k > 0; --k) {
          const int row = upto(k, rank - 1), end = upto(k, rank);
          send_back(k, b, row, end, upto(k + 1, rank - 1), upto(k + 1, last));
          finish_back(k, row, end);
        }
      }
      for (int k = outputs() - 1; k >= 0; --k)
        send_back(k, b, 0, upto(k, begin - (k > 0)), upto(k + 1, begin - 1), upto(k + 1, last));
    }
  }

  void clear_grads() const {
    for (int k = 1; k < outputs(); ++k) {
      const MaskedUnits<S>& layer = p.units[k];
      for (int r = 0; r < layer.used; ++r) {
        fill(grad_at(layer.grad + r), S(0));
        if (layer.grad_skip >= 0) fill(grad_at(layer.grad_skip + r), S(0));
      }
    }
  }

  // With all values of `evaluate` and, of an inverse, what was given in `other`; the features' rows of
  // cotangents hold those of the result.
  void pull_back(const S* g_logabsdet) const {
    clear_grads();
    if (p.inverse) solve_back(g_logabsdet);
    else back(g_logabsdet);
    for (int k = 1; k < p.layers; ++k) add_gradients(k);
  }
};

}  // namespace
FLOWKERN_END
