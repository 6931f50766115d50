// y = L U x + b on the samples of a tile, L unit lower and U upper triangular, its inverse, and gradients.
#pragma once

#include "matrix.h"

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct LuTile {
  using Tile = MaskedTile<S, V>;
  using T = Vec<S>;
  static constexpr int lanes = Tile::lanes, R = Tile::R;
  const FlowStep<S>& step;
  MatrixTile<S, V> matrix;
  S* memory;
  int features = matrix.features;

  S* rows(int which) const { return memory + int64_t(which) * features * R; }

  // Row i of x loses Σ_j m[i][j]·x_j over [begin, end), and is divided by `by`. M's entries lie `row` and
  // `column` apart.
  void eliminate(const S* m, int64_t row, int64_t column, int i, int begin, int end, S by, S* x) const {
    Tile::each_vector([&](int v) FLOWKERN_INLINE {
      T sum = load(x + int64_t(i) * R + v);
      for (int j = begin; j < end; ++j) sum = fma(T(-m[i * row + j * column]), load(x + int64_t(j) * R + v), sum);
      store(x + int64_t(i) * R + v, by == S(1) ? sum : sum / T(by));
    });
  }
  // x = L⁻¹ x, U⁻¹ x, and by the transposed matrices.
  void solve_lower(S* x) const {
    for (int i = 0; i < features; ++i) eliminate(step.lower, features, 1, i, 0, i, S(1), x);
  }
  void solve_upper(S* x) const {
    for (int i = features - 1; i >= 0; --i) eliminate(step.upper, features, 1, i, i + 1, features, step.upper[i * (features + 1)], x);
  }
  void solve_upper_transposed(S* x) const {
    for (int i = 0; i < features; ++i) eliminate(step.upper, 1, features, i, 0, i, step.upper[i * (features + 1)], x);
  }
  void solve_lower_transposed(S* x) const {
    for (int i = features - 1; i >= 0; --i) eliminate(step.lower, 1, features, i, i + 1, features, S(1), x);
  }

  void apply(const S* x, S* y) const {
    if (!step.inverse) {
      S* t = rows(0);
      matrix.multiply(step.upper_panels, x, nullptr, t);
      return matrix.multiply(step.lower_panels, t, step.shift, y);
    }
    subtract_shift(x, y);
    solve_lower(y);
    solve_upper(y);
  }
  void subtract_shift(const S* y, S* to) const {
    for (int f = 0; f < features; ++f)
      Tile::each_vector([&](int i) FLOWKERN_INLINE {
        store(to + int64_t(f) * R + i, load(y + int64_t(f) * R + i) - T(step.shift[f]));
      });
  }

  // With x what U is multiplied by, and y what an inverse was given. Sums: of L̄ and Ū, whole matrices in
  // groups of rows, and of b̄; of the inverse with the other sign.
  void back(const S* x, const S* y, S* grad) const {
    S *t = rows(0), *of_t = rows(1), *of_y = rows(2);
    if (step.inverse) {
      subtract_shift(y, t);  // not U x, which rounds worse than the solution
      solve_lower(t);
      solve_upper_transposed(grad);
      matrix.move(grad, of_t);
      solve_lower_transposed(grad);
      matrix.move(grad, of_y);
    } else {
      matrix.multiply(step.upper_panels, x, nullptr, t);
      matrix.move(grad, of_y);
      matrix.send_back(step.lower_panels, of_y, of_t);
      matrix.send_back(step.upper_panels, of_t, grad);
    }
    const int64_t size = matrix_sums(features, lanes);
    matrix.add_matrix(of_y, t, 0);
    matrix.add_matrix(of_t, x, size);
    const Tile tile = matrix.sum_tile();
    for (int f = 0; f < features; ++f) tile.add_sum(2 * size + f, of_y + int64_t(f) * R);
  }
};

}  // namespace
FLOWKERN_END
