// Products of a matrix with the samples of a tile, sums in registers.
//
// The tile keeps one row of R = V·lanes samples for each unit. The matrix lies in panels of kPanelRows
// rows: entry (row, column) of a panel is at [column][row − first row of the panel].
#pragma once

#include "tile.h"

FLOWKERN_BEGIN

// With 32 registers a panel of 8 rows by two vectors keeps its 16 sums in them, with 16 one of 4.
#if defined(__AVX512F__) || defined(FLOWKERN_NEON)
constexpr int kPanelRows = 8, kWideTile = 2, kNarrowTile = 1;
#elif defined(__AVX2__)
constexpr int kPanelRows = 4, kWideTile = 2, kNarrowTile = 1;
#else
constexpr int kPanelRows = 4, kWideTile = 8, kNarrowTile = 8;  // "vectors" of one number
#endif

// Rows of a matrix in a panel, and rows that lie as they came, `row` apart: entry (j, c) of them.
template <class S> struct PanelRows {
  const S* w;
  FLOWKERN_HD S operator()(int j, std::int64_t c) const { return w[c * kPanelRows + j]; }
};
template <class S> struct PlainRows {
  const S* w;
  std::int64_t row;
  FLOWKERN_HD S operator()(int j, std::int64_t c) const { return w[j * row + c]; }
};

template <class S, int V> struct PanelProduct {
  using T = Vec<S>;
  static constexpr int lanes = Lanes<T>::count, R = V * lanes;

  // finish(j, i, start(j, i) + Σ_c w(j, c)·u[c]) for each row j < rows and the vector of samples that
  // begins at i. Few rows have several partial sums each, so that one product need not wait for the
  // one before. The functions should hold pointers by value: a store through a vector may change
  // whatever else the compiler knows an address of.
  template <int rows, class W, class Start, class Finish>
  static FLOWKERN_HD void panel(const W w, const S* u, int columns, const Start& start, const Finish& finish) {
    constexpr int parts = rows * 4 <= kPanelRows ? 4 : kPanelRows / rows;
    T sum[parts][rows][V];
    each<rows>(rows, [&](int j) FLOWKERN_INLINE {
      each<V>(V, [&](int v) FLOWKERN_INLINE {
        sum[0][j][v] = start(j, v * lanes);
        each<parts, 1>(parts, [&](int k) FLOWKERN_INLINE { sum[k][j][v] = T(S(0)); });
      });
    });
    auto add = [&](int k, int c) FLOWKERN_INLINE {
      T of_u[V];
      each<V>(V, [&](int v) FLOWKERN_INLINE { of_u[v] = load(u + std::int64_t(c) * R + v * lanes); });
      each<rows>(rows, [&](int j) FLOWKERN_INLINE {
        const T of_w = T(w(j, c));
        each<V>(V, [&](int v) FLOWKERN_INLINE { sum[k][j][v] = fma(of_w, of_u[v], sum[k][j][v]); });
      });
    };
    int c = 0;
    for (; c + parts <= columns; c += parts)
      each<parts>(parts, [&](int k) FLOWKERN_INLINE { add(k, c + k); });
    for (; c < columns; ++c) add(0, c);
    each<rows>(rows, [&](int j) FLOWKERN_INLINE {
      each<V>(V, [&](int v) FLOWKERN_INLINE {
        each<parts, 1>(parts, [&](int k) FLOWKERN_INLINE { sum[0][j][v] = sum[0][j][v] + sum[k][j][v]; });
        finish(j, v * lanes, sum[0][j][v]);
      });
    });
  }

  // The same for the rows of a whole matrix.
  template <class Start, class Finish>
  static FLOWKERN_HD void multiply(const S* w, int rows, int columns, const S* u, const Start& start,
                                   const Finish& finish) {
    for (int row = 0, done; row < rows; row += done) {
      const int left = rows - row, lane = row % kPanelRows;
      const PanelRows<S> from{w + std::int64_t(row / kPanelRows) * columns * kPanelRows + lane};
      auto begin = [&](int j, int i) FLOWKERN_INLINE { return start(row + j, i); };
      auto end = [&](int j, int i, T sum) FLOWKERN_INLINE { finish(row + j, i, sum); };
      if (left >= 8 && kPanelRows >= 8) panel<kPanelRows>(from, u, columns, begin, end), done = kPanelRows;
      else if (left >= 4) panel<4>(from, u, columns, begin, end), done = 4;
      else if (left >= 2) panel<2>(from, u, columns, begin, end), done = 2;
      else panel<1>(from, u, columns, begin, end), done = 1;
    }
  }
};

FLOWKERN_END
