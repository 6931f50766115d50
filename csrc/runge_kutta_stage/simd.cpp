// The loops of Runge-Kutta stages; compiled once per instruction set, see platform.h. They are plain
// ones, which the compiler turns into vectors: there is nothing in them but sums of products.
#include "../common/coupling.h"
#include "cpu.h"

FLOWKERN_BEGIN
namespace {

// Calls put(i, Σ_j w_j k_j[first + i]) for i < count, elements that share the weights of `row`.
template <int K, class S, class F>
FLOWKERN_HD void combine(const Combination<S>& c, int64_t row, int64_t first, int64_t count, const F& put) {
  S w[K];
  const S* k[K];
  for (int j = 0; j < K; ++j) {
    w[j] = c.weights[row * c.weights_row + j * c.weights_one];
    k[j] = c.k[j] + first;
  }
  for (int64_t i = 0; i < count; ++i) {
    S sum = w[0] * k[0][i];
    each<K, 1>(K, [&](int j) FLOWKERN_INLINE { sum += w[j] * k[j][i]; });
    put(i, sum);
  }
}

template <int K, class S> void stage_rows(const StageProblem<S>& p, int64_t begin, int64_t end) {
  const Combination<S>& c = p.combination;
  const bool shared = c.weights_row == 0;
  const int64_t step = shared ? end - begin : 1;
  for (int64_t row = begin; row < end; row += step) {
    const int64_t first = row * c.width;
    const S* y = p.y + first;
    S* __restrict__ out = p.out + first;
    combine<K>(c, row, first, step * c.width, [&](int64_t i, S sum) FLOWKERN_INLINE { out[i] = y[i] + sum; });
  }
}

// Squares of the scaled error, summed over each row; NaN where y1 is not finite.
template <int K, class S> void error_rows(const ErrorProblem<S>& p, int64_t begin, int64_t end) {
  const Combination<S>& c = p.combination;
  Buffer<S> squares;
  for_segments<S>(c.width, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    const bool shared = c.weights_row == 0;
    const int parts = shared ? 1 : at.rows, count = at.rows * at.features / parts;
    for (int part = 0; part < parts; ++part) {
      const int64_t first = (at.row + part) * c.width + at.feature;
      const S *y0 = p.y0 + first, *y1 = p.y1 + first;
      S* __restrict__ out = squares.values + part * count;
      combine<K>(c, at.row + part, first, count, [&](int64_t i, S error) FLOWKERN_INLINE {
        const S scaled = error / (p.atol + p.rtol * max(abs(y0[i]), abs(y1[i]))) + (y1[i] - y1[i]);
        out[i] = scaled * scaled;
      });
    }
    sum_rows(squares, at, p.sums);
  });
}

// By the number of stages, from 1 on.
#define FLOWKERN_STAGES(loop)                                                                   \
  {loop<1, S>, loop<2, S>, loop<3, S>, loop<4, S>, loop<5, S>, loop<6, S>, loop<7, S>, loop<8, S>}
template <class P> using Rows = void (*)(const P&, int64_t, int64_t);
template <class S> constexpr Rows<StageProblem<S>> kStage[kMostStages] = FLOWKERN_STAGES(stage_rows);
template <class S> constexpr Rows<ErrorProblem<S>> kError[kMostStages] = FLOWKERN_STAGES(error_rows);
#undef FLOWKERN_STAGES

}  // namespace

#define FLOWKERN_ENTRY(name, Problem, table, S)                              \
  void name(const Problem<S>& p, int64_t begin, int64_t end) {               \
    table<S>[p.combination.stages - 1](p, begin, end);                       \
  }
FLOWKERN_ENTRY(runge_kutta_stage, StageProblem, kStage, float)
FLOWKERN_ENTRY(runge_kutta_stage, StageProblem, kStage, double)
FLOWKERN_ENTRY(runge_kutta_error, ErrorProblem, kError, float)
FLOWKERN_ENTRY(runge_kutta_error, ErrorProblem, kError, double)
#undef FLOWKERN_ENTRY

FLOWKERN_END
