// The samples of a tile of the neural ODE solve: rows of memory, and what is done with rows.
#pragma once

#include "cpu.h"

#include "../common/panel_product.h"

FLOWKERN_BEGIN
namespace {

using std::int64_t;

// A weight's gradient is summed for two vectors of rows by as many columns as registers allow.
#if defined(__AVX512F__) || defined(FLOWKERN_NEON)
constexpr int kColumns = 8;
#else
constexpr int kColumns = 4;
#endif

template <class S, int V> struct OdeTile {
  using T = Vec<S>;
  static constexpr int lanes = Lanes<T>::count, R = V * lanes;
  const OdeProblem<S>& p;
  int64_t first;
  int samples;
  OdeMemory<S> memory;

  FLOWKERN_HD S* at(int row) const { return memory.tile + int64_t(row) * R; }
  // Rows from one on; functions hold them by value, see PanelProduct.
  struct Rows {
    S* begin;
    FLOWKERN_HD T operator()(int r, int i) const { return load(begin + r * R + i); }
    FLOWKERN_HD void put(int r, int i, T value) const { store(begin + r * R + i, value); }
  };
  FLOWKERN_HD Rows rows(int row) const { return {at(row)}; }

  template <class F> static FLOWKERN_HD void each_vector(const F& body) {
    each<V>(V, [&](int v) FLOWKERN_INLINE { body(v * lanes); });
  }
  // body(r, i) for the vectors i of `count` rows.
  template <class F> static FLOWKERN_HD void each_row(int count, const F& body) {
    for (int r = 0; r < count; ++r) each_vector([&](int i) FLOWKERN_INLINE { body(r, i); });
  }

  void fill(int row, int count, S value) const {
    const Rows to = rows(row);
    each_row(count, [=](int r, int i) FLOWKERN_INLINE { to.put(r, i, T(value)); });
  }
  void copy(int from, int count, int to) const {
    const Rows a = rows(from), b = rows(to);
    each_row(count, [=](int r, int i) FLOWKERN_INLINE { b.put(r, i, a(r, i)); });
  }
  void add(int from, int count, int to) const {
    const Rows a = rows(from), b = rows(to);
    each_row(count, [=](int r, int i) FLOWKERN_INLINE { b.put(r, i, b(r, i) + a(r, i)); });
  }
  void scale(int from, int by, int count, int to) const {
    const Rows a = rows(from), b = rows(by), c = rows(to);
    each_row(count, [=](int r, int i) FLOWKERN_INLINE { c.put(r, i, a(r, i) * b(r, i)); });
  }

  // `count` columns of a matrix (N, count); lanes without a sample repeat the last.
  void read(const S* from, int64_t row, int64_t column, int count, int to) const {
    for (int c = 0; c < count; ++c)
      for (int n = 0; n < R; ++n)
        at(to + c)[n] = from[(first + (n < samples ? n : samples - 1)) * row + c * column];
  }
  // Adds cotangents; lanes without a sample have none.
  void read_cotangent(const S* from, int64_t row, int64_t column, int count, int to) const {
    for (int c = 0; c < count; ++c)
      for (int n = 0; n < samples; ++n) at(to + c)[n] += from[(first + n) * row + c * column];
  }
  void write(int from, int count, S* to, int64_t row, int64_t column) const {
    for (int c = 0; c < count; ++c)
      for (int n = 0; n < samples; ++n) to[(first + n) * row + c * column] = at(from + c)[n];
  }

  // to = y + h Σ_j coefficient[j]·k_j on `count` rows; k_j are `apart` rows apart.
  void combine(int y, S h, const S* coefficient, int stages, int k, int apart, int count, int to) const {
    const Rows of_y = rows(y), of_k = rows(k), out = rows(to);
    each_row(count, [=](int r, int i) FLOWKERN_INLINE {
      T sum = T(S(0));
      for (int j = 0; j < stages; ++j)
        if (coefficient[j] != S(0)) sum = fma(T(coefficient[j]), of_k(j * apart + r, i), sum);
      out.put(r, i, fma(T(h), sum, of_y(r, i)));
    });
  }

  // Σ of rows a·b over `count` rows, added to the row `to` with a factor. Two sums for each vector, so
  // that one product need not wait for the one before.
  void add_dot(int a, int b, int count, S factor, int to) const {
    const Rows of_a = rows(a), of_b = rows(b), out = rows(to);
    T sum[2][V];
    each<V>(V, [&](int v) FLOWKERN_INLINE { sum[0][v] = sum[1][v] = T(S(0)); });
    auto add = [&](int k, int r) FLOWKERN_INLINE {
      each<V>(V, [&](int v) FLOWKERN_INLINE {
        sum[k][v] = fma(of_a(r, v * lanes), of_b(r, v * lanes), sum[k][v]);
      });
    };
    int r = 0;
    for (; r + 2 <= count; r += 2) add(0, r), add(1, r + 1);
    if (r < count) add(0, r);
    each<V>(V, [&](int v) FLOWKERN_INLINE {
      out.put(0, v * lanes, fma(T(factor), sum[0][v] + sum[1][v], out(0, v * lanes)));
    });
  }

  // finish(r, i, start(r, i) + vector i of row r of W u).
  template <class Start, class Finish>
  FLOWKERN_HD void multiply(const S* w, int rows, int columns, int u, const Start& start,
                            const Finish& finish) const {
    PanelProduct<S, V>::multiply(w, rows, columns, at(u), start, finish);
  }
  template <class Finish>
  FLOWKERN_HD void multiply(const S* w, int rows, int columns, int u, const Finish& finish) const {
    multiply(w, rows, columns, u, [](int, int) FLOWKERN_INLINE { return T(S(0)); }, finish);
  }
  void multiply(const S* w, int rows, int columns, int u, int to) const {
    const Rows out{at(to)};
    multiply(w, rows, columns, u, [=](int r, int i, T sum) FLOWKERN_INLINE { out.put(r, i, sum); });
  }

  // Sums over samples.

  static FLOWKERN_HD S sum_lanes(T total) {
    if constexpr (lanes > 1) return sum(total);
    else return total;
  }
  S total(int row) const {
    const S* from = at(row);
    T sum = load(from);
    each<V, 1>(V, [&](int v) FLOWKERN_INLINE { sum = sum + load(from + v * lanes); });
    return sum_lanes(sum);
  }
  void add_totals(int rows, int count, S factor, S* to) const {
    for (int r = 0; r < count; ++r) to[r] += factor * total(rows + r);
  }

  // Adds factor·Σ_n v[row][n]·u[column][n] to sums [group of 2·lanes rows][column][2·lanes], and
  // factor·Σ_n v[row][n] to the totals unless they are null.
  void add_products(int v, int rows, int u, int columns, S factor, S* sums, S* totals) const {
    for (int row = 0; row < rows; row += 2 * lanes) {
      T of_v[2][R];
      each<2>(2, [&](int k) FLOWKERN_INLINE {
        load_tile<R>(at(v + row + k * lanes), R, R, of_v[k]);
        if (factor != S(1))
          for (int n = 0; n < R; ++n) of_v[k][n] = of_v[k][n] * T(factor);
        if (totals) {
          T total = of_v[k][0];
          for (int n = 1; n < R; ++n) total = total + of_v[k][n];
          S* to = totals + row + k * lanes;
          store(to, load(to) + total);
        }
      });
      add_columns(of_v, u, columns, sums + int64_t(row) * ode_columns(columns));
    }
  }
  // A tile's products are summed by themselves first, which keeps their rounding small.
  void add_columns(const T (&v)[2][R], int u, int columns, S* sums) const {
    for (int c = 0; c < columns; c += kColumns, sums += kColumns * 2 * lanes) {
      const S* of_u = at(u + c);
      T sum[2][kColumns];
      each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE { sum[0][i] = sum[1][i] = T(S(0)); });
      for (int n = 0; n < R; ++n)
        each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE {
          const T value = T(of_u[i * R + n]);
          sum[0][i] = fma(value, v[0][n], sum[0][i]), sum[1][i] = fma(value, v[1][n], sum[1][i]);
        });
      each<2 * kColumns>(2 * kColumns, [&](int i) FLOWKERN_INLINE {
        store(sums + i * lanes, load(sums + i * lanes) + sum[i % 2][i / 2]);
      });
    }
  }

  // The same for a layer's weight, and z's totals; the longer side goes along the lanes.
  void add_weight(const OdeLayer<S>& layer, int z, int u, S factor, S* totals = nullptr) const {
    S* sums = memory.chunk + layer.weight_sums;
    if (layer.units >= layer.inputs)
      return add_products(z, layer.units, u, layer.inputs, factor, sums, totals);
    add_products(u, layer.inputs, z, layer.units, factor, sums, nullptr);
    if (totals) add_totals(z, layer.units, factor, totals);
  }
};

}  // namespace
FLOWKERN_END
