// The samples of a tile of the masked autoregressive transform: rows of memory, and products with rows.
#pragma once

#include "element.h"

#include "../common/panel_product.h"

FLOWKERN_BEGIN
namespace {

using std::int64_t;

constexpr int kTile = 16;  // columns transposed at a time

template <class S, int V> struct MaskedTile {
  using T = Vec<S>;
  static constexpr int lanes = Lanes<T>::count, R = V * lanes;
  const MaskedProblem<S>& p;
  int64_t first;
  int samples;
  MaskedMemory<S> memory;

  FLOWKERN_HD S* at(int row) const { return memory.values + int64_t(row) * R; }
  FLOWKERN_HD S* grad_at(int row) const { return memory.grads + int64_t(row) * R; }
  FLOWKERN_HD int upto(int layer, int rank) const { return p.counts[layer * (p.levels + 2) + rank + 1]; }
  FLOWKERN_HD int outputs() const { return p.layers - 1; }
  template <class F> FLOWKERN_HD static void each_vector(const F& body) {
    each<V>(V, [&](int v) FLOWKERN_INLINE { body(v * lanes); });
  }
  static void fill(S* row, S value) {
    each_vector([&](int i) FLOWKERN_INLINE { store(row + i, T(value)); });
  }
  static void copy(const S* from, S* to) {
    each_vector([&](int i) FLOWKERN_INLINE { store(to + i, T(load(from + i))); });
  }

  // Column `column` of a matrix with a row for each sample; lanes without one repeat the last.
  void read(const Elements<const S>& from, int64_t column, S* to) const {
    const S* base = from.base + column * from.feature;
    if (from.row == 0) return fill(to, *base);
    for (int n = 0; n < samples; ++n) to[n] = base[(first + n) * from.row];
    for (int n = samples; n < R; ++n) to[n] = to[samples - 1];
  }
  void write(const S* from, const Elements<S>& to, int64_t column) const {
    for (int n = 0; n < samples; ++n) to.base[(first + n) * to.row + column * to.feature] = from[n];
  }

  // Calls body(u, n, v) for columns [u, u + n) of a matrix with `count` and vectors v of samples; the
  // last overlap those before.
  template <class F> static void each_tile(int count, const F& body) {
    for (int u = 0; u < count; u += kTile) {
      const int begin = count < kTile || u + kTile <= count ? u : count - kTile;
      for (int v = 0; v < V; ++v) body(begin, count < kTile ? count : kTile, v);
    }
  }
  bool is_tiled(int64_t feature) const { return feature == 1 && samples == R; }

  // The columns of a matrix, each to the row that row_of(column) gives, or to none.
  template <class F> void read_columns(const Elements<const S>& from, int count, const F& row_of) const {
    if (from.row == 0 || !is_tiled(from.feature)) {
      for (int u = 0; u < count; ++u)
        if (S* row = row_of(u)) read(from, u, row);
      return;
    }
    each_tile(count, [&](int u, int n, int v) {
      T columns[kTile];
      load_tile<0>(from.base + (first + v * lanes) * from.row + u, from.row, n, columns);
      for (int i = 0; i < n; ++i)
        if (S* row = row_of(u + i)) store(row + v * lanes, columns[i]);
    });
  }
  // The same for layer k, each to the row of its unit.
  void read_layer(int k, const Elements<const S>& from, S* to) const {
    read_columns(from, p.units[k].units, [&](int u) -> S* {
      const int r = p.units[k].place[u];
      return r < p.units[k].used ? to + r * R : nullptr;
    });
  }
  // The same of the features' cotangents: lanes without a sample add nothing to sums.
  void read_cotangents(const Elements<const S>& from, S* to) const {
    read_layer(0, from, to);
    for (int f = 0; f < p.units[0].used; ++f) clear_rest(to + f * R);
  }
  void clear_rest(S* row) const {
    for (int n = samples; n < R; ++n) row[n] = S(0);
  }

  // The features' rows between a tile's order, which is the features', and ours.
  void gather(const S* from, S* to) const {
    for (int f = 0; f < p.units[0].used; ++f) copy(from + p.units[0].order[f] * R, to + f * R);
  }
  void scatter(const S* from, S* to) const {
    for (int f = 0; f < p.units[0].used; ++f) copy(from + f * R, to + p.units[0].order[f] * R);
  }

  void write_features(const S* from) const {
    if (!is_tiled(p.out.feature)) {
      for (int f = 0; f < p.units[0].used; ++f) write(from + f * R, p.out, p.units[0].order[f]);
      return;
    }
    each_tile(p.units[0].used, [&](int f, int n, int v) {
      T columns[kTile];
      for (int i = 0; i < n; ++i) columns[i] = load(from + p.units[0].place[f + i] * R + v * lanes);
      store_tile<0>(p.out.base + (first + v * lanes) * p.out.row + f, p.out.row, n, columns);
    });
  }

  // sums[c] += Σ_j w(j, c)·v[j] for begin ≤ c < end, sums being that of `begin`: what rows send back.
  template <int rows, class W> static void multiply_back(const W w, const S* v, int begin, int end, S* sums) {
    T of_v[rows][V];
    each<rows>(rows, [&](int j) FLOWKERN_INLINE {
      each<V>(V, [&](int i) FLOWKERN_INLINE { of_v[j][i] = load(v + j * R + i * lanes); });
    });
    for (int c = begin; c < end; ++c, sums += R) {
      T sum[V];
      each<V>(V, [&](int i) FLOWKERN_INLINE { sum[i] = load(sums + i * lanes); });
      each<rows>(rows, [&](int j) FLOWKERN_INLINE {
        const T of_w = T(w(j, c));
        each<V>(V, [&](int i) FLOWKERN_INLINE { sum[i] = fma(of_w, of_v[j][i], sum[i]); });
      });
      each<V>(V, [&](int i) FLOWKERN_INLINE { store(sums + i * lanes, sum[i]); });
    }
  }

  template <int n> struct Rows {};

  // Calls body(Rows<n>, row, w) for groups of n rows of a block, of one panel if they lie in panels, until
  // they are those from `row` to `end`; w gives their entries.
  template <class F> static void each_group(const Panels<S>& m, int row, int end, const F& body) {
    if (m.apart) return groups(row, end, 0, body, [&](int row) { return PlainRows<S>{m.values + (row - m.row) * m.apart, m.apart}; });
    groups(row, end, m.row, body, [&](int row) {
      const int panel = (row - m.row) / kPanelRows, lane = (row - m.row) % kPanelRows;
      return PanelRows<S>{m.values + int64_t(panel) * m.columns * kPanelRows + lane};
    });
  }
  template <class F, class W> static void groups(int row, int end, int first, const F& body, const W& rows_at) {
    for (int done; row < end; row += done) {
      const int rest = kPanelRows - (row - first) % kPanelRows, left = end - row < rest ? end - row : rest;
      if (left >= 8 && kPanelRows >= 8) body(Rows<kPanelRows>(), row, rows_at(row)), done = kPanelRows;
      else if (left >= 4) body(Rows<4>(), row, rows_at(row)), done = 4;
      else if (left >= 2) body(Rows<2>(), row, rows_at(row)), done = 2;
      else body(Rows<1>(), row, rows_at(row)), done = 1;
    }
  }

  // Adds the products of rows [row, end) of a block with columns [column, stop) to the rows at `to`.
  void multiply(const Panels<S>& m, int row, int end, int column, int stop, int from, int to) const {
    if (stop <= column) return;
    each_group(m, row, end, [&]<int n>(Rows<n>, int row, const auto w) FLOWKERN_INLINE {
      S* sums = at(to + row);
      PanelProduct<S, V>::template panel<n>(
          [=](int j, int c) FLOWKERN_INLINE { return w(j, column + c); }, at(from + column), stop - column,
          [=](int j, int i) FLOWKERN_INLINE { return T(load(sums + j * R + i)); },
          [=](int j, int i, T sum) FLOWKERN_INLINE { store(sums + j * R + i, sum); });
    });
  }

  // Gradients: sums over samples, in the memory of a chunk.
  void add_sum(int64_t to, const S* row) const {
    T total = load(row);
    each<V, 1>(V, [&](int v) FLOWKERN_INLINE { total = total + load(row + v * lanes); });
    memory.chunk[to] += sum_lanes(total);
  }
  static FLOWKERN_HD S sum_lanes(T total) {
    if constexpr (lanes > 1) return sum(total);
    else return total;
  }

  // Adds Σ_n v̄[row][n]·u[column][n] to the sums of `lanes` rows and some columns, kColumns at a time,
  // with the samples in turn.
  void add_product(const S* rows, const S* u, int columns, S* sums) const {
    T v[R];
    load_tile<R>(rows, R, R, v);
    for (int c = 0; c < columns; c += kColumns, u += kColumns * R) {
      T sum[kColumns];
      each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE { sum[i] = load(sums + (c + i) * lanes); });
      for (int n = 0; n < R; ++n)
        each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE { sum[i] = fma(T(u[i * R + n]), v[n], sum[i]); });
      each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE { store(sums + (c + i) * lanes, sum[i]); });
    }
  }

  // Where a transform reads the features that it is given, and leaves those that it computes.
  S* given() const { return at(p.inverse ? p.other : p.units[0].u); }
  S* result() const { return at(p.inverse ? p.units[0].u : p.other); }
};

}  // namespace
FLOWKERN_END
