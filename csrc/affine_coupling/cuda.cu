// The affine coupling's kernels: copy, gather, transform, scatter and log-det in one pass.
#include "../common/cuda.cuh"
#include "cuda.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

constexpr int kThreads = 128;

template <class S> __device__ AffineSettings<S> settings(const AffineProblem<S>& p) {
  return {S(p.a), S(p.b), S(p.prefactor), S(p.shift_prefactor)};
}

template <class S> __device__ __forceinline__ S& at_feature(const Elements<S>& e, const Place& at) {
  return e.base[at.row * e.row + at.feature * e.feature];
}
template <class S> __device__ __forceinline__ S& at_column(const Elements<S>& e, const Place& at) {
  return e.base[at.row * e.row + at.column * e.feature];
}

// Inputs of a thread's elements, all read before the first is used, so that the reads overlap.
template <class S> struct Inputs {
  Place at[kPasses];
  S x[kPasses], shift[kPasses], raw[kPasses];
};

template <int kind, class S>
__device__ __forceinline__ void read(const AffineProblem<S>& p, int64_t row, int64_t feature, int count, int features, Inputs<S>& in) {
  Walk walk(features);
  each<kPasses>(kPasses, [&](int i) FLOWKERN_INLINE {
    const Place at = place_of(walk, row, feature, int(threadIdx.x + i * blockDim.x) < count, p.x.index, p.width);
    walk.next();
    if (at.used) {
      in.x[i] = at.column < 0 ? S(__builtin_nanf("")) : at_column(p.x, at);
      in.shift[i] = at_feature(p.shift, at);
      in.raw[i] = kind == kAdditive ? S(0) : at_feature(p.raw, at);
    }
    in.at[i] = at;
  });
}

template <class S> __device__ __forceinline__ void copy_columns(const AffineProblem<S>& p, int64_t row, int rows) {
  if (!p.columns_in.base) return;
  copy_rows(p.columns_in.base + row * p.columns_in.row, p.columns_in.row, p.columns_in.feature,
            p.columns_out.base + row * p.width, int(p.width), rows);
  __syncthreads();
}

template <class S, int kind, bool inverse>
__global__ __launch_bounds__(kThreads) void forward_kernel(AffineProblem<S> p, Plan plan) {
  S* l = reinterpret_cast<S*>(shared_memory());
  const AffineSettings<S> set = settings(p);
  for_rows(p.rows, plan, [&](int64_t row, int rows) FLOWKERN_INLINE {
    copy_columns(p, row, rows);
    S total = S(0);
    for_parts(p.features, plan, [&](int64_t feature, int features) FLOWKERN_INLINE {
      Inputs<S> in;
      read<kind>(p, row, feature, rows * features, features, in);
      each<kPasses>(kPasses, [&](int i) FLOWKERN_INLINE {
        if (!in.at[i].used) return;
        const auto out = affine<kind, inverse>(in.x[i], in.shift[i], in.raw[i], set);
        const bool known = in.at[i].column >= 0;
        if (known) at_column(p.y, in.at[i]) = out.y;
        l[threadIdx.x + i * blockDim.x] = known ? out.logabsdet : S(__builtin_nanf(""));
      });
      __syncthreads();
      total += share_of_sum(l, rows, features, plan.lanes);
      __syncthreads();
    });
    store_sums(total, rows, plan.lanes, p.logabsdet + row);
  });
}

template <class S, int kind, bool inverse>
__global__ __launch_bounds__(kThreads) void backward_kernel(AffineProblem<S> p, Plan plan) {
  const AffineSettings<S> set = settings(p);
  for_rows(p.rows, plan, [&](int64_t row, int rows) FLOWKERN_INLINE {
    copy_columns(p, row, rows);
    for_parts(p.features, plan, [&](int64_t feature, int features) FLOWKERN_INLINE {
      Inputs<S> in;
      read<kind>(p, row, feature, rows * features, features, in);
      S g_out[kPasses], g_logabsdet[kPasses];
      each<kPasses>(kPasses, [&](int i) FLOWKERN_INLINE {
        if (!in.at[i].used) return;
        g_out[i] = in.at[i].column < 0 ? S(__builtin_nanf("")) : at_column(p.grad_y, in.at[i]);
        g_logabsdet[i] = p.grad_logabsdet.base[in.at[i].row * p.grad_logabsdet.row];
      });
      each<kPasses>(kPasses, [&](int i) FLOWKERN_INLINE {
        if (!in.at[i].used) return;
        const auto g = affine_vjp<kind, inverse>(in.x[i], in.shift[i], in.raw[i], g_out[i], g_logabsdet[i], set);
        if (in.at[i].column >= 0) at_column(p.y, in.at[i]) = g.x;
        at_feature(p.grad_shift, in.at[i]) = g.shift;
        if constexpr (kind != kAdditive) at_feature(p.grad_raw, in.at[i]) = g.raw;
      });
    });
  });
}

template <class S> void run_forward(const AffineProblem<S>& p, void* stream) {
#define FLOWKERN_KERNELS(kind, name) {forward_kernel<S, kind, false>, forward_kernel<S, kind, true>},
  static constexpr Kernel<AffineProblem<S>> kernels[kScaleMaps][2] = {FLOWKERN_SCALE_MAPS(FLOWKERN_KERNELS)};
#undef FLOWKERN_KERNELS
  const Plan plan = make_plan(p.features, kThreads, kPasses);
  launch("affine_coupling", kernels[p.kind][p.inverse], p, plan, kThreads, sizeof(S) * plan.rows * plan.features, stream);
}

template <class S> void run_backward(const AffineProblem<S>& p, void* stream) {
#define FLOWKERN_KERNELS(kind, name) {backward_kernel<S, kind, false>, backward_kernel<S, kind, true>},
  static constexpr Kernel<AffineProblem<S>> kernels[kScaleMaps][2] = {FLOWKERN_SCALE_MAPS(FLOWKERN_KERNELS)};
#undef FLOWKERN_KERNELS
  launch("affine_coupling_backward", kernels[p.kind][p.inverse], p, make_plan(p.features, kThreads, kPasses), kThreads, 0, stream);
}

}  // namespace

void affine_forward(const AffineProblem<float>& p, void* stream) { run_forward(p, stream); }
void affine_forward(const AffineProblem<double>& p, void* stream) { run_forward(p, stream); }
void affine_backward(const AffineProblem<float>& p, void* stream) { run_backward(p, stream); }
void affine_backward(const AffineProblem<double>& p, void* stream) { run_backward(p, stream); }

FLOWKERN_END
