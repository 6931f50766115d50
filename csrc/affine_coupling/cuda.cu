// The affine coupling's kernels: copy, gather, transform, scatter and log-det in one pass.
#include "vectors.cuh"

FLOWKERN_BEGIN
namespace {

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

template <class S> using Affine = Kernel<AffineProblem<S>>;

// By scale map and direction: for tensors of any strides, and for vectors of neighbours.
#define FLOWKERN_TABLE(name, kernels) static constexpr Affine<S> name[kScaleMaps][2] = {FLOWKERN_SCALE_MAPS(kernels)};
#define FLOWKERN_FORWARD(kind, name) {forward_kernel<S, kind, false>, forward_kernel<S, kind, true>},
#define FLOWKERN_FORWARD_VECTORS(kind, name) {forward_vectors_kernel<S, kind, false>, forward_vectors_kernel<S, kind, true>},
#define FLOWKERN_BACKWARD(kind, name) {backward_kernel<S, kind, false>, backward_kernel<S, kind, true>},
#define FLOWKERN_BACKWARD_VECTORS(kind, name) {backward_vectors_kernel<S, kind, false>, backward_vectors_kernel<S, kind, true>},
template <class S> struct Kernels {
  FLOWKERN_TABLE(forward, FLOWKERN_FORWARD)
  FLOWKERN_TABLE(backward, FLOWKERN_BACKWARD)
};
template <class S> struct VectorKernels {
  FLOWKERN_TABLE(forward, FLOWKERN_FORWARD_VECTORS)
  FLOWKERN_TABLE(backward, FLOWKERN_BACKWARD_VECTORS)
};
#undef FLOWKERN_TABLE
#undef FLOWKERN_FORWARD
#undef FLOWKERN_FORWARD_VECTORS
#undef FLOWKERN_BACKWARD
#undef FLOWKERN_BACKWARD_VECTORS

template <template <class> class Kernels, class S> void run_forward(const AffineProblem<S>& p, void* stream) {
  const Plan plan = make_plan(p.features, kThreads, kPasses);
  launch("affine_coupling", Kernels<S>::forward[p.kind][p.inverse], p, plan, kThreads, sizeof(S) * plan.rows * plan.features, stream);
}
template <template <class> class Kernels, class S> void run_backward(const AffineProblem<S>& p, void* stream) {
  const Plan plan = make_plan(p.features, kThreads, kPasses);
  launch("affine_coupling_backward", Kernels<S>::backward[p.kind][p.inverse], p, plan, kThreads, 0, stream);
}

}  // namespace

void affine_forward(const AffineProblem<float>& p, void* stream) {
  in_vectors(p) ? run_forward<VectorKernels>(p, stream) : run_forward<Kernels>(p, stream);
}
void affine_backward(const AffineProblem<float>& p, void* stream) {
  in_vectors(p) ? run_backward<VectorKernels>(p, stream) : run_backward<Kernels>(p, stream);
}
void affine_forward(const AffineProblem<double>& p, void* stream) { run_forward<Kernels>(p, stream); }
void affine_backward(const AffineProblem<double>& p, void* stream) { run_backward<Kernels>(p, stream); }

FLOWKERN_END
