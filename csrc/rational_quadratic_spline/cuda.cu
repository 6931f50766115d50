// The spline's kernels: copy, gather, transform, scatter and log-det in one pass.
#include "../common/stage.cuh"
#include "flat.cuh"

FLOWKERN_BEGIN
namespace {

// Threads of a block; fewer where any number of bins may come (K = 0).
template <class S, int K> constexpr int kThreads = (K ? 512 : 256) / sizeof(S);

// Whether the parameters go through shared memory, of which 48 KiB need no special request. If not,
// threads read and write them where they lie.
template <class S, int K> FLOWKERN_HD constexpr bool staged(int64_t parameters) {
  return K || stage_bytes<S>(kThreads<S, 0>, parameters) <= 45056;
}

// The raw parameters of one element, or their cotangents.
template <class S> struct Raw {
  static constexpr bool rereads() { return true; }  // arrays of any number of bins would lie in main memory
  S* at;
  int64_t one;

  template <int K, class T>
  __device__ __forceinline__ void fetch(int first, int count, T* out) const {
    each<K>(count, [&](int i) FLOWKERN_INLINE { out[i] = at[(first + i) * one]; });
  }
  template <class T> __device__ __forceinline__ T pick(int first, T i) const {
    return at[(first + int(i)) * one];
  }
  template <int K, class T>
  __device__ __forceinline__ void run(int first, int count, const T* values) const {
    each<K>(count, [&](int i) FLOWKERN_INLINE { at[(first + i) * one] = values[i]; });
  }
};

// Those of this thread's element, in the stage or where they lie.
template <int K, class S, class T>
__device__ __forceinline__ Raw<T> raw_of(const Stage<S>& stage, const Parameters<T>& p, const Place& at) {
  if (staged<S, K>(stage.parameters)) return {stage.own(), 1};
  return {p.base + at.row * p.row + at.feature * p.feature, p.one};
}

// Where this thread's element is mapped from and to; valid: whether its column and bound are what they should be.
template <class S> struct Input {
  S x;
  Axis<S> across, up;
  bool valid;
};

template <class S, class Set>
__device__ __forceinline__ Input<S> read(const SplineProblem<S>& p, const Set& set, const Place& at) {
  Input<S> in{S(__builtin_nanf("")), {set.left, set.right}, {set.bottom, set.top}, at.column >= 0};
  if (p.bounds) {
    const S bound = p.bounds[at.feature];
    in.across = in.up = {-bound, bound};
    in.valid = in.valid && bound > S(0) && bound < S(__builtin_inff());
  }
  if (in.valid) in.x = p.x[at.row * p.x_row + at.column * p.x_feature];
  return in;
}

template <class S>
__device__ __forceinline__ void copy_columns(const SplineProblem<S>& p, const S* from, int64_t from_row,
                                             int64_t from_feature, int64_t row, int rows) {
  if (!p.index) return;
  const int width = int(p.width);
  copy_rows(from + row * from_row, from_row, from_feature, p.y + row * p.width, width, rows);
  __syncthreads();
}

// Calls body(first, count, place) for as many elements of a segment at a time as there are threads.
template <class S, class F>
__device__ __forceinline__ void for_passes(const SplineProblem<S>& p, int64_t row, int64_t feature, int rows,
                                           int features, const F& body) {
  Walk walk(features);
  for (int first = 0; first < rows * features; first += blockDim.x, walk.next()) {
    const int left = rows * features - first, count = left < int(blockDim.x) ? left : int(blockDim.x);
    body(first, count, place_of(walk, row, feature, int(threadIdx.x) < count, p.index, p.width));
    __syncthreads();  // the stage is free again, and the log-dets are there
  }
}

template <class S, int K, int knots, bool inverse>
__global__ __launch_bounds__((kThreads<S, K>), 1) void forward_kernel(SplineProblem<S> p, Plan plan) {
  const Stage<S> stage = stage_of<S>(p.parameters);
  S* const l = stage.values + (staged<S, K>(p.parameters) ? int(blockDim.x) * stage.stride : 0);
  const Parameters<const S> params{p.params, p.params_row, p.params_feature, p.params_one};
  const auto set = settings<S, knots>(p);
  for_rows(p.rows, plan, [&](int64_t row, int rows) FLOWKERN_INLINE {
    copy_columns(p, p.x, p.x_row, p.x_feature, row, rows);
    S total = S(0);
    for_parts(p.features, plan, [&](int64_t feature, int features) FLOWKERN_INLINE {
      for_passes(p, row, feature, rows, features, [&](int first, int count, const Place& at) FLOWKERN_INLINE {
        if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);
        if (!at.used) return;
        const Input<S> in = read(p, set, at);
        const auto out = transform<K, inverse>(in.x, raw_of<K>(stage, params, at), set, in.across, in.up);
        if (at.column >= 0) p.y[at.row * p.width + at.column] = out.y;
        l[first + int(threadIdx.x)] = in.valid ? out.logabsdet : S(__builtin_nanf(""));
      });
      total += share_of_sum(l, rows, features, plan.lanes);
      __syncthreads();
    });
    store_sums(total, rows, plan.lanes, p.logabsdet + row);
  });
}

template <class S, int K, int knots, bool inverse>
__global__ __launch_bounds__((kThreads<S, K>), 1) void backward_kernel(SplineProblem<S> p, Plan plan) {
  const Stage<S> stage = stage_of<S>(p.parameters);
  const Parameters<const S> params{p.params, p.params_row, p.params_feature, p.params_one};
  const Parameters<S> grads{p.grad_params, p.grad_params_row, p.grad_params_feature, p.grad_params_one};
  const auto set = settings<S, knots>(p);
  for_rows(p.rows, plan, [&](int64_t row, int rows) FLOWKERN_INLINE {
    copy_columns(p, p.grad_y, p.grad_y_row, p.grad_y_feature, row, rows);
    for_parts(p.features, plan, [&](int64_t feature, int features) FLOWKERN_INLINE {
      for_passes(p, row, feature, rows, features, [&](int, int count, const Place& at) FLOWKERN_INLINE {
        if (staged<S, K>(p.parameters)) load_stage(stage, params, at, count, rows, features);
        if (at.used) {
          const Input<S> in = read(p, set, at);
          const int64_t g_at = at.row * p.grad_y_row + at.column * p.grad_y_feature;
          const S g_out = at.column < 0 ? in.x : p.grad_y[g_at];
          const S g_l = p.grad_logabsdet[at.row * p.grad_logabsdet_row];
          // A thread's cotangents take the place of its raw parameters, each of which is read before.
          const S g_x = transform_vjp<K, inverse>(in.x, raw_of<K>(stage, params, at), set, in.across, in.up,
                                                  g_out, g_l, raw_of<K>(stage, grads, at));
          if (at.column >= 0) p.y[at.row * p.width + at.column] = g_x;
        }
        if (staged<S, K>(p.parameters)) store_stage(stage, grads, at, count, rows, features);
      });
    });
  });
}

template <class S> using Spline = Kernel<SplineProblem<S>>;

// By knot map and direction: for tensors of any strides, and for contiguous ones.
#define FLOWKERN_TABLE(name, kernel) static constexpr Spline<S> name[kKnotMaps][2] = {FLOWKERN_KNOT_MAPS(kernel)};
#define FLOWKERN_FORWARD(knots, name) {forward_kernel<S, K, knots, false>, forward_kernel<S, K, knots, true>},
#define FLOWKERN_FORWARD_FLAT(knots, name) {forward_flat_kernel<S, K, knots, false, padded>, forward_flat_kernel<S, K, knots, true, padded>},
#define FLOWKERN_BACKWARD(knots, name) {backward_kernel<S, K, knots, false>, backward_kernel<S, K, knots, true>},
#define FLOWKERN_BACKWARD_FLAT(knots, name) {backward_flat_kernel<S, K, knots, false, padded>, backward_flat_kernel<S, K, knots, true, padded>},
template <class S, int K> struct Forward {
  FLOWKERN_TABLE(table, FLOWKERN_FORWARD)
};
template <class S, int K, bool padded> struct ForwardFlat {
  FLOWKERN_TABLE(table, FLOWKERN_FORWARD_FLAT)
};
template <class S, int K> struct Backward {
  FLOWKERN_TABLE(table, FLOWKERN_BACKWARD)
};
template <class S, int K, bool padded> struct BackwardFlat {
  FLOWKERN_TABLE(table, FLOWKERN_BACKWARD_FLAT)
};
#undef FLOWKERN_TABLE
#undef FLOWKERN_FORWARD
#undef FLOWKERN_FORWARD_FLAT
#undef FLOWKERN_BACKWARD
#undef FLOWKERN_BACKWARD_FLAT
template <bool padded, class S, int K> ForwardFlat<S, K, padded> flat_of(Forward<S, K>);
template <bool padded, class S, int K> BackwardFlat<S, K, padded> flat_of(Backward<S, K>);

// By kernels for contiguous tensors.
template <class Flat, class S, int K, bool padded> void run_flat(const char* name, const SplineProblem<S>& p, const Plan& plan, void* stream) {
  const int numbers = 2 * FlatStage<S, K, padded>::size(int(p.parameters)) + plan.rows * plan.features;
  launch(name, Flat::table[p.knots][p.inverse], p, plan, kFlatThreads<K>, sizeof(S) * numbers, stream);
}
template <class Direction, class S, int K> void run_flat(const char* name, const SplineProblem<S>& p, const Plan& plan, void* stream) {
  if constexpr (K % 4 == 0)
    if (p.parameters == 3 * K) return run_flat<decltype(flat_of<true>(Direction{})), S, K, true>(name, p, plan, stream);
  run_flat<decltype(flat_of<false>(Direction{})), S, K, false>(name, p, plan, stream);
}

template <template <class, int> class Direction, class S, int K>
void run_bins(const char* name, const SplineProblem<S>& p, void* stream) {
  if constexpr (K > 0) {
    const Plan plan = make_plan(p.features, kFlatThreads<K>, 1);
    if (is_flat(p, plan)) return run_flat<Direction<S, K>, S, K>(name, p, plan, stream);
  }
  constexpr int threads = kThreads<S, K>;
  const Plan plan = make_plan(p.features, threads, 1);
  const size_t stage = stage_bytes<S>(threads, staged<S, K>(p.parameters) ? p.parameters : 0);
  const size_t sums = sizeof(S) * plan.rows * plan.features;
  launch(name, Direction<S, K>::table[p.knots][p.inverse], p, plan, threads, stage + sums, stream);
}

// In single precision, the bin counts that libraries default to have kernels of their own, with all
// bins in registers.
template <template <class, int> class Direction, class S>
void run(const char* name, const SplineProblem<S>& p, void* stream) {
  if constexpr (sizeof(S) == 4) switch (bins_of(int(p.parameters), p.tails)) {
    case 4: return run_bins<Direction, S, 4>(name, p, stream);
    case 8: return run_bins<Direction, S, 8>(name, p, stream);
    case 10: return run_bins<Direction, S, 10>(name, p, stream);
    case 16: return run_bins<Direction, S, 16>(name, p, stream);
  }
  run_bins<Direction, S, 0>(name, p, stream);
}

}  // namespace

#define FLOWKERN_ENTRY(name, Direction, operation, S) \
  void name(const SplineProblem<S>& p, void* stream) { run<Direction>(operation, p, stream); }
FLOWKERN_ENTRY(spline_forward, Forward, "rational_quadratic_spline", float)
FLOWKERN_ENTRY(spline_forward, Forward, "rational_quadratic_spline", double)
FLOWKERN_ENTRY(spline_backward, Backward, "rational_quadratic_spline_backward", float)
FLOWKERN_ENTRY(spline_backward, Backward, "rational_quadratic_spline_backward", double)
#undef FLOWKERN_ENTRY

FLOWKERN_END
