// The probability path's kernels: a thread makes the four elements whose noise is of one counter.
#include "../common/cuda.cuh"
#include "cuda.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

constexpr int kThreads = 128;

template <class S> __device__ __forceinline__ void draw_noise(Key key, int64_t block, int i, S* noise) {
  const Words w = words_of(key, kNoiseStream, block, i);
  for (int pair = 0; pair < 4; pair += 2)
    box_muller(uniform<S>(w.word[pair]), uniform<S>(w.word[pair + 1]), noise[pair], noise[pair + 1]);
}

// The time of a row, which every thread that needs it draws.
template <class S> __device__ __forceinline__ S draw_time(Key key, int64_t row) {
  const Words w = words_of(key, kTimeStream, row / kWords, int(row % kCounters));
  const int output = int(row % kWords) / kCounters;
  return uniform<S>(output == 0 ? w.word[0] : output == 1 ? w.word[1] : output == 2 ? w.word[2] : w.word[3]);
}

// Divisions by 32-bit numbers are cheap.
__device__ __forceinline__ int64_t row_of(int64_t element, int64_t features, int64_t total) {
  if (total <= 0x7fffffff) return int(element) / int(features);
  return element / features;
}

// Calls body(element, noise) for the elements of this thread; noise is drawn if `draws`.
template <class S, class F> __device__ __forceinline__ void each_element(const PathProblem<S>& p, bool draws, const F& body) {
  const int64_t total = p.rows * p.features, counters = (total + kWords - 1) / kWords * kCounters;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t counter = int64_t(blockIdx.x) * kThreads + threadIdx.x; counter < counters; counter += step) {
    const int64_t block = counter / kCounters;
    const int i = int(counter % kCounters);
    S noise[4] = {S(0), S(0), S(0), S(0)};
    if (draws) draw_noise(key_of(*p.seed), block, i, noise);
    each<4>(4, [&](int j) FLOWKERN_INLINE {
      const int64_t element = block * kWords + j * kCounters + i;
      if (element < total) body(element, p.noise ? p.noise[element] : noise[j]);
    });
  }
}

template <class S, int kind> __global__ __launch_bounds__(kThreads) void forward_kernel(PathProblem<S> p) {
  int64_t drawn_row = -1;
  S t = S(0);
  each_element(p, p.draws_noise, [&](int64_t e, S noise) FLOWKERN_INLINE {
    const int64_t row = row_of(e, p.features, p.rows * p.features);
    if (p.given_t) {
      t = p.given_t[row];
    } else if (row != drawn_row) {
      t = draw_time<S>(key_of(*p.seed), row), drawn_row = row;
    }
    if (!p.given_t && e == row * p.features) p.t[row] = t;
    const auto out = sample<kind>(kind == kTarget ? S(0) : p.x0[e], p.x1[e], noise, t, S(p.sigma));
    p.x_t[e] = out.x, p.u_t[e] = out.u;
  });
}

template <class S, int kind> __global__ __launch_bounds__(kThreads) void backward_kernel(PathProblem<S> p) {
  each_element(p, p.draws_noise && p.grad_t, [&](int64_t e, S noise) FLOWKERN_INLINE {
    const S t = p.given_t[row_of(e, p.features, p.rows * p.features)];
    const auto g = sample_vjp<kind>(p.grad_x[e], p.grad_u[e], p.x0[e], p.x1[e], noise, t, S(p.sigma));
    p.grad_x0[e] = g.x0, p.grad_x1[e] = g.x1;
    if (p.grad_t) p.grad_t[e] = g.t;
  });
}

template <class S> using PathKernel = void (*)(PathProblem<S>);

template <class S> void run(const char* name, PathKernel<S> kernel, const PathProblem<S>& p, void* stream) {
  constexpr int64_t elements = 4 * kThreads;
  launch_blocks(name, kernel, (p.rows * p.features + elements - 1) / elements, kThreads, 0, stream, p);
}
template <class S> void run_forward(const PathProblem<S>& p, void* stream) {
#define FLOWKERN_KERNEL(kind, name) forward_kernel<S, kind>,
  static constexpr PathKernel<S> kernels[] = {FLOWKERN_PATHS(FLOWKERN_KERNEL)};
#undef FLOWKERN_KERNEL
  run("probability_path", kernels[p.kind], p, stream);
}
template <class S> void run_backward(const PathProblem<S>& p, void* stream) {
#define FLOWKERN_KERNEL(kind, name) backward_kernel<S, kind>,
  static constexpr PathKernel<S> kernels[] = {FLOWKERN_PATHS(FLOWKERN_KERNEL)};
#undef FLOWKERN_KERNEL
  run("probability_path_backward", kernels[p.kind], p, stream);
}

}  // namespace

void path_forward(const PathProblem<float>& p, void* stream) { run_forward(p, stream); }
void path_forward(const PathProblem<double>& p, void* stream) { run_forward(p, stream); }
void path_backward(const PathProblem<float>& p, void* stream) { run_backward(p, stream); }
void path_backward(const PathProblem<double>& p, void* stream) { run_backward(p, stream); }

FLOWKERN_END
