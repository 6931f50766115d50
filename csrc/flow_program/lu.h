// y = L U x + b on the samples of a tile, L unit lower and U upper triangular, its inverse, and gradients.
#pragma once

#include "../masked_autoregressive/transform.h"
#include "cpu.h"

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct LuTile {
  using Step = ConditionedTransform<S, V>;
  using T = Vec<S>;
  static constexpr int lanes = Step::lanes, R = Step::R;
  const FlowStep<S>& step;
  int features;
  S *memory, *sums;

  S* rows(int which) const { return memory + int64_t(which) * features * R; }
  template <class F> void each_vector(const F& body) const {
    each<V>(V, [&](int v) FLOWKERN_INLINE { body(v * lanes); });
  }

  // to = M from + b by panels.
  void multiply(const S* panels, const S* from, const S* shift, S* to) const {
    PanelProduct<S, V>::multiply(
        panels, features, features, from, [=](int r, int) FLOWKERN_INLINE { return T(shift ? shift[r] : S(0)); },
        [=](int r, int i, T sum) FLOWKERN_INLINE { store(to + int64_t(r) * R + i, sum); });
  }

  // Row i of x loses Σ_j m[i][j]·x_j over [begin, end), and is divided by `by`. M's entries lie `row` and
  // `column` apart.
  void eliminate(const S* m, int64_t row, int64_t column, int i, int begin, int end, S by, S* x) const {
    each_vector([&](int v) FLOWKERN_INLINE {
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
      multiply(step.upper_panels, x, nullptr, t);
      return multiply(step.lower_panels, t, step.shift, y);
    }
    subtract_shift(x, y);
    solve_lower(y);
    solve_upper(y);
  }
  void subtract_shift(const S* y, S* to) const {
    for (int f = 0; f < features; ++f)
      each_vector([&](int i) FLOWKERN_INLINE {
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
      move(grad, of_t);
      solve_lower_transposed(grad);
      move(grad, of_y);
    } else {
      multiply(step.upper_panels, x, nullptr, t);
      move(grad, of_y);
      send_back(step.lower_panels, of_y, of_t);
      send_back(step.upper_panels, of_t, grad);
    }
    const int64_t size = lu_sums(features, lanes);
    const Step tile{{kNothing, 0, 0, {.chunk = sums}}};
    add_matrix(tile, of_y, t, 0);
    add_matrix(tile, of_t, x, size);
    for (int f = 0; f < features; ++f) tile.add_sum(2 * size + f, of_y + int64_t(f) * R);
  }
  static constexpr MaskedProblem<S> kNothing{};

  void move(const S* from, S* to) const {
    for (int64_t i = 0; i < int64_t(features) * R; i += lanes) store(to + i, T(load(from + i)));
  }

  // to = Mᵀ from.
  void send_back(const S* panels, const S* from, S* to) const {
    for (int64_t i = 0; i < int64_t(features) * R; i += lanes) store(to + i, T(S(0)));
    const Panels<S> all{panels, 0, features, 0, features};
    Step::each_group(all, 0, features, [&]<int n>(typename Step::template Rows<n>, int row, const auto w) FLOWKERN_INLINE {
      Step::template multiply_back<n>(w, from + int64_t(row) * R, 0, features, to);
    });
  }

  void add_matrix(const Step& tile, const S* rows, const S* columns, int64_t to) const {
    const int64_t group = int64_t(lu_columns(features)) * lanes;
    for (int row = 0; row < features; row += lanes, to += group)
      tile.add_product(rows + int64_t(row) * R, columns, lu_columns(features), sums + to);
  }
};

}  // namespace
FLOWKERN_END
