// The kernels of Runge-Kutta stages: a thread has four elements of a stage; a block has whole rows of an
// error, or one row in parts.
#include "../common/cuda.cuh"
#include "../common/scalar.h"
#include "cuda.h"

FLOWKERN_BEGIN
namespace {

constexpr int kThreads = 128, kElements = 4 * kThreads;

// Σ_j w_j k_j of the element at `at`, which belongs to `row`.
template <int K, class S> __device__ __forceinline__ S combine(const Combination<S>& c, int64_t row, int64_t at) {
  const S* w = c.weights + row * c.weights_row;
  S sum = w[0] * c.k[0][at];
  each<K, 1>(K, [&](int j) FLOWKERN_INLINE { sum = fma(w[j * c.weights_one], c.k[j][at], sum); });
  return sum;
}

template <int K, class S> __global__ __launch_bounds__(kThreads) void stage_kernel(StageProblem<S> p) {
  const Combination<S>& c = p.combination;
  const int64_t total = c.rows * c.width, step = int64_t(gridDim.x) * kElements;
  for (int64_t first = int64_t(blockIdx.x) * kElements + threadIdx.x; first < total; first += step) {
    S values[4];  // all are read before the first is written, so that the reads overlap
    each<4>(4, [&](int i) FLOWKERN_INLINE {
      const int64_t at = first + i * kThreads;
      if (at < total) values[i] = p.y[at] + combine<K>(c, c.weights_row ? at / c.width : 0, at);
    });
    each<4>(4, [&](int i) FLOWKERN_INLINE {
      const int64_t at = first + i * kThreads;
      if (at < total) p.out[at] = values[i];
    });
  }
}

// Squares of the scaled error, summed over each row; NaN where y1 is not finite.
template <int K, class S> __global__ __launch_bounds__(kThreads) void error_kernel(ErrorProblem<S> p, Plan plan) {
  const Combination<S>& c = p.combination;
  S* squares = reinterpret_cast<S*>(shared_memory());
  for_rows(c.rows, plan, [&](int64_t row, int rows) FLOWKERN_INLINE {
    S total = S(0);
    for_parts(c.width, plan, [&](int64_t feature, int features) FLOWKERN_INLINE {
      for (Walk walk(features); walk.outer < rows; walk.next()) {
        const int64_t n = row + walk.outer, at = n * c.width + feature + walk.inner;
        const S before = p.y0[at], after = p.y1[at];
        const S tolerance = fma(p.rtol, max(abs(before), abs(after)), p.atol);
        const S scaled = combine<K>(c, n, at) / tolerance + (after - after);
        squares[walk.outer * features + walk.inner] = scaled * scaled;
      }
      __syncthreads();
      total += share_of_sum(squares, rows, features, plan.lanes);
      __syncthreads();
    });
    store_sums(total, rows, plan.lanes, p.sums + row);
  });
}

// By the number of stages, from 1 on.
#define FLOWKERN_STAGES(kernel)                                                                     \
  {kernel<1, S>, kernel<2, S>, kernel<3, S>, kernel<4, S>, kernel<5, S>, kernel<6, S>, kernel<7, S>, \
   kernel<8, S>}

template <class S> void run_stage(const StageProblem<S>& p, void* stream) {
  static constexpr void (*kernels[kMostStages])(StageProblem<S>) = FLOWKERN_STAGES(stage_kernel);
  const int64_t blocks = (p.combination.rows * p.combination.width + kElements - 1) / kElements;
  launch_blocks("runge_kutta_stage", kernels[p.combination.stages - 1], blocks, kThreads, 0, stream, p);
}

template <class S> void run_error(const ErrorProblem<S>& p, void* stream) {
  static constexpr Kernel<ErrorProblem<S>> kernels[kMostStages] = FLOWKERN_STAGES(error_kernel);
  const Combination<S>& c = p.combination;
  if (c.width == 0) return;
  const Plan plan = make_plan(c.width, kThreads, kPasses);
  const size_t shared = sizeof(S) * plan.rows * plan.features;
  const int64_t blocks = (c.rows + plan.rows - 1) / plan.rows;
  launch_blocks("runge_kutta_error", kernels[c.stages - 1], blocks, kThreads, shared, stream, p, plan);
}
#undef FLOWKERN_STAGES

}  // namespace

void runge_kutta_stage(const StageProblem<float>& p, void* stream) { run_stage(p, stream); }
void runge_kutta_stage(const StageProblem<double>& p, void* stream) { run_stage(p, stream); }
void runge_kutta_error(const ErrorProblem<float>& p, void* stream) { run_error(p, stream); }
void runge_kutta_error(const ErrorProblem<double>& p, void* stream) { run_error(p, stream); }

FLOWKERN_END
