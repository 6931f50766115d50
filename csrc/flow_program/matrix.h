// Products of a square matrix with the features of a tile's samples, their gradients, and y = W x.
#pragma once

#include "../masked_autoregressive/tile.h"
#include "cpu.h"

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct MatrixTile {
  using Tile = MaskedTile<S, V>;
  using T = Vec<S>;
  static constexpr int lanes = Tile::lanes, R = Tile::R;
  int features;
  S* sums;

  // to = M from + b by panels.
  void multiply(const S* panels, const S* from, const S* shift, S* to) const {
    PanelProduct<S, V>::multiply(
        panels, features, features, from, [=](int r, int) FLOWKERN_INLINE { return T(shift ? shift[r] : S(0)); },
        [=](int r, int i, T sum) FLOWKERN_INLINE { store(to + int64_t(r) * R + i, sum); });
  }

  // to = Mᵀ from.
  void send_back(const S* panels, const S* from, S* to) const {
    for (int f = 0; f < features; ++f) Tile::fill(to + int64_t(f) * R, S(0));
    const Panels<S> all{panels, 0, features, 0, features};
    Tile::each_group(all, 0, features, [&]<int n>(typename Tile::template Rows<n>, int row, const auto w) FLOWKERN_INLINE {
      Tile::template multiply_back<n>(w, from + int64_t(row) * R, 0, features, to);
    });
  }

  void move(const S* from, S* to) const {
    for (int f = 0; f < features; ++f) Tile::copy(from + int64_t(f) * R, to + int64_t(f) * R);
  }

  // The sums at `to` gain rows·columnsᵀ, in groups of rows.
  void add_matrix(const S* rows, const S* columns, int64_t to) const {
    const Tile tile = sum_tile();
    const int64_t group = int64_t(matrix_columns(features)) * lanes;
    for (int row = 0; row < features; row += lanes, to += group)
      tile.add_product(rows + int64_t(row) * R, columns, matrix_columns(features), sums + to);
  }
  // What adds to sums alone, and reads no problem.
  Tile sum_tile() const { return {kNothing, 0, 0, {.chunk = sums}}; }
  static constexpr MaskedProblem<S> kNothing{};
};

// y = A x with A = W, or W⁻¹ for an inverse.
template <class S, int V> struct LinearTile {
  static constexpr int R = MatrixTile<S, V>::R;
  const FlowStep<S>& step;
  MatrixTile<S, V> matrix;
  S* memory;

  void apply(const S* x, S* y) const { matrix.multiply(step.panels, x, nullptr, y); }

  // Ā = Σ ȳ xᵀ, or its transpose, which is the gradient of a W whose Wᵀ is applied; x̄ = Aᵀ ȳ.
  void back(const S* x, S* grad) const {
    matrix.move(grad, memory);
    if (step.wants_matrix) step.transposed ? matrix.add_matrix(x, memory, 0) : matrix.add_matrix(memory, x, 0);
    matrix.send_back(step.panels, memory, grad);
  }
};

}  // namespace
FLOWKERN_END
