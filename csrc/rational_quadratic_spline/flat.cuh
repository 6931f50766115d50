// The spline's kernels where tensors are contiguous, so that element e of a batch is number e of each of them.
//
// A block takes segments of whole rows, and of each as many elements at a time as it has threads: a pass. What a pass
// reads is copied to shared memory while the pass before is computed: there are two stages.
#pragma once

#include "../common/cuda.cuh"
#include "../common/instructions.cuh"
#include "cuda.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

template <class S, int knots> __device__ SplineSettings<S, knots> settings(const SplineProblem<S>& p) {
  SplineSettings<S, knots> set;
  set.bins = bins_of(int(p.parameters), p.tails), set.tails = p.tails;
  set.left = p.left, set.right = p.right, set.bottom = p.bottom, set.top = p.top;
  set.min_width = p.min_width, set.min_height = p.min_height, set.min_slope = p.min_slope;
  set.softclip = p.softclip, set.scale = p.scale;
  return set;
}

template <int K> constexpr int kFlatThreads = K < 16 ? 128 : 64;

// The passes of a block, one after the other.
template <int threads> struct FlatPasses {
  int64_t all, row;  // rows; that which the segment begins with
  Plan plan;
  int first, left;   // number of the pass's first element in the segment; how many there are from it on
  Walk begin, walk;  // where in the segment this thread's element is: in its first pass, and in this one

  __device__ __forceinline__ FlatPasses(int64_t all, const Plan& plan)
      : all(all), row(int64_t(blockIdx.x) * plan.rows), plan(plan), first(0), left(rows() * plan.features),
        begin(plan.features), walk(begin) {}

  __device__ __forceinline__ bool there() const { return row < all; }
  __device__ __forceinline__ int rows() const { return int(all - row < plan.rows ? all - row : plan.rows); }
  __device__ __forceinline__ int count() const { return left < threads ? left : threads; }
  __device__ __forceinline__ bool last() const { return left <= threads; }
  __device__ __forceinline__ int64_t element() const { return row * plan.features + first; }
  __device__ __forceinline__ void next() {
    if (!last()) {
      first += threads, left -= threads, walk.next();
    } else {
      row += int64_t(gridDim.x) * plan.rows;
      first = 0, left = rows() * plan.features, walk = begin;
    }
  }
};

// Element e of a pass has its parameters at values[e·stride] and on. A stride is odd, or an odd number of sixteen bytes (`padded`, where the elements' parameters fill these): threads
// that read at once find theirs in different banks.
template <class S, int K, bool padded> struct FlatStage {
  static constexpr int threads = kFlatThreads<K>;
  static constexpr int most = 3 * K + 1;  // parameters
  S* values;

  static FLOWKERN_HD constexpr int stride(int parameters) { return padded ? (3 * K / 4 | 1) * 4 : parameters; }
  // In front is room for what lies before the first parameter in its sixteen bytes of main memory.
  static FLOWKERN_HD constexpr int size(int parameters) { return threads * stride(parameters) + 4; }
};

// How many numbers lie before one in its sixteen bytes of main memory, where the first of all is aligned.
template <class S> __device__ __forceinline__ int before(int64_t number) { return int(number) & (16 / int(sizeof(S)) - 1); }

// Calls body(Constant<k>) for k < rounds.
template <int n> struct Constant { static constexpr int value = n; };
template <int rounds, int k = 0, class F> __device__ __forceinline__ void each_round(const F& body) {
  if constexpr (k < rounds) body(Constant<k>()), each_round<rounds, k + 1>(body);
}

// Calls body16(in stage, in main memory, bytes beyond both) for sixteen bytes at a time, and body(in stage, in main
// memory) for single numbers, of the parameters of `count` elements, the first of which is number `number` of all. `exact`: of no others; else of some before it, too.
template <class S, int K, bool padded, bool exact, class T, class F16, class F>
__device__ __forceinline__ void each_parameter(S* values, T* base, int64_t number, int parameters, int count, const F16& body16, const F& body) {
  using Stage = FlatStage<S, K, padded>;
  constexpr int some = 16 / sizeof(S), rounds = (Stage::most + 2 * some - 1) / some;
  const int lead = before<S>(number), end = lead + count * parameters, tail = end / some * some;
  T* const main = base + (number - lead);
  const int first = int(threadIdx.x) * some;
  each_round<rounds>([&](auto round) FLOWKERN_INLINE {
    constexpr int beyond = decltype(round)::value * Stage::threads * some;
    if (first >= tail - beyond || (exact && first < lead - beyond)) return;
    const int gaps = padded ? (first + beyond) / (3 * K) * (Stage::stride(3 * K) - 3 * K) : 0;
    body16(values + first + gaps, main + first, Constant<beyond>());
  });
  if constexpr (padded) return;
  const int i = int(threadIdx.x);
  if (i < end - tail && (!exact || tail + i >= lead)) body(values + tail + i, main + tail + i);
  if (exact && i >= lead && i < some && lead > 0 && tail > 0) body(values + i, main + i);
}

// The raw parameters of one element, or their cotangents, in a stage.
template <class S, bool padded> struct FlatRaw {
  static constexpr bool rereads() { return true; }
  S* at;

  template <int K, class T> __device__ __forceinline__ void fetch(int first, int, T* out) const {
    if constexpr (padded && K % 4 == 0)
      each<K / 4>(K / 4, [&](int i) FLOWKERN_INLINE {
        const float4 some = reinterpret_cast<const float4*>(at + first)[i];
        out[4 * i] = some.x, out[4 * i + 1] = some.y, out[4 * i + 2] = some.z, out[4 * i + 3] = some.w;
      });
    else
      each<K>(K, [&](int i) FLOWKERN_INLINE { out[i] = at[first + i]; });
  }
  template <class T> __device__ __forceinline__ T pick(int first, T i) const { return at[first + int(i)]; }
  template <int K, class T> __device__ __forceinline__ void run(int first, int, const T* values) const {
    if constexpr (padded && K % 4 == 0)
      each<K / 4>(K / 4, [&](int i) FLOWKERN_INLINE {
        reinterpret_cast<float4*>(at + first)[i] = {values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]};
      });
    else
      each<K>(K, [&](int i) FLOWKERN_INLINE { at[first + i] = values[i]; });
  }
};

// What a thread reads besides: x, in the backward also the cotangents of y and logabsdet.
template <class S> struct Inputs { S x, grad_y, grad_logabsdet; };

template <bool backward, int threads, class S>
__device__ __forceinline__ Inputs<S> inputs_of(const SplineProblem<S>& p, const FlatPasses<threads>& pass) {
  Inputs<S> in{};
  const int i = int(threadIdx.x);
  if (i >= pass.count()) return in;
  in.x = p.x[pass.element() + i];
  if constexpr (backward) {
    in.grad_y = p.grad_y[pass.element() + i];
    in.grad_logabsdet = p.grad_logabsdet[(pass.row + pass.walk.outer) * p.grad_logabsdet_row];
  }
  return in;
}

// Begins to copy the parameters of a pass into a stage.
template <class S, int K, bool padded>
__device__ __forceinline__ void begin(const SplineProblem<S>& p, const FlatPasses<kFlatThreads<K>>& pass, const FlatStage<S, K, padded>& stage) {
  const int parameters = int(p.parameters);
  each_parameter<S, K, padded, false>(
      stage.values, p.params, pass.element() * parameters, parameters, pass.count(),
      [](S* to, const S* from, auto beyond) FLOWKERN_INLINE { copy_async<16, decltype(beyond)::value * sizeof(S)>(to, from); },
      [](S* to, const S* from) FLOWKERN_INLINE { copy_async<sizeof(S)>(to, from); });
  end_copies();
}

// Calls body(pass, stage, inputs) for all passes of the block, when what they read is there. Of one pass all are
// out when the next but one begins.
template <class Stage, bool backward, class S, class F>
__device__ __forceinline__ void for_flat_passes(const SplineProblem<S>& p, const Plan& plan, const F& body) {
  S* const memory = reinterpret_cast<S*>(shared_memory());
  const int size = Stage::size(int(p.parameters));
  FlatPasses<Stage::threads> now(p.rows, plan), ahead = now;
  int number = 0;
  if (!now.there()) return;
  Inputs<S> next = inputs_of<backward>(p, now);
  begin(p, now, Stage{memory});
  for (; now.there(); now = ahead) {
    wait_for_copies<0>();
    __syncthreads();  // what others copied is there, and none is in the pass before
    const Stage stage{memory + number};
    const Inputs<S> in = next;
    number = size - number;
    ahead.next();
    if (ahead.there()) {
      next = inputs_of<backward>(p, ahead);
      begin(p, ahead, Stage{memory + number});
    }
    body(now, stage, in);
  }
}

// This thread's parameters.
template <class S, int K, bool padded>
__device__ __forceinline__ FlatRaw<S, padded> raw_of(const FlatStage<S, K, padded>& stage, int64_t element, int parameters) {
  const int lead = before<S>(element * parameters);
  return {stage.values + lead + int(threadIdx.x) * stage.stride(parameters)};
}

// Between where it is mapped; valid: whether the bound is what it should be.
template <class S> struct Interval { Axis<S> across, up; bool valid; };
template <class S, class Set> __device__ __forceinline__ Interval<S> interval(const SplineProblem<S>& p, const Set& set, int feature) {
  if (!p.bounds) return {{set.left, set.right}, {set.bottom, set.top}, true};
  const S bound = p.bounds[feature];
  return {{-bound, bound}, {-bound, bound}, bound > S(0) && bound < S(__builtin_inff())};
}

template <class S, int K, int knots, bool inverse, bool padded>
__global__ __launch_bounds__(kFlatThreads<K>) void forward_flat_kernel(SplineProblem<S> p, Plan plan) {
  S* const l = reinterpret_cast<S*>(shared_memory()) + 2 * FlatStage<S, K, padded>::size(int(p.parameters));
  const auto set = settings<S, knots>(p);
  for_flat_passes<FlatStage<S, K, padded>, false>(p, plan, [&](const auto& pass, const auto& stage, const Inputs<S>& given) FLOWKERN_INLINE {
    const int i = int(threadIdx.x);
    if (i < pass.count()) {
      const Interval<S> in = interval(p, set, pass.walk.inner);
      const S x = in.valid ? given.x : S(__builtin_nanf(""));
      const auto out = transform<K, inverse>(x, raw_of(stage, pass.element(), int(p.parameters)), set, in.across, in.up);
      p.y[pass.element() + i] = out.y;
      l[pass.first + i] = in.valid ? out.logabsdet : S(__builtin_nanf(""));
    }
    if (!pass.last()) return;
    __syncthreads();
    store_sums(share_of_sum(l, pass.rows(), plan.features, plan.lanes), pass.rows(), plan.lanes, p.logabsdet + pass.row);
  });
}

template <class S, int K, int knots, bool inverse, bool padded>
__global__ __launch_bounds__(kFlatThreads<K>) void backward_flat_kernel(SplineProblem<S> p, Plan plan) {
  const auto set = settings<S, knots>(p);
  for_flat_passes<FlatStage<S, K, padded>, true>(p, plan, [&](const auto& pass, const auto& stage, const Inputs<S>& given) FLOWKERN_INLINE {
    const int64_t element = pass.element();
    const int count = pass.count(), parameters = int(p.parameters);
    if (int(threadIdx.x) < count) {
      const Interval<S> in = interval(p, set, pass.walk.inner);
      const S x = in.valid ? given.x : S(__builtin_nanf(""));
      // A thread's cotangents take the place of its raw parameters, each of which is read before.
      const auto raw = raw_of(stage, element, parameters);
      p.y[element + int(threadIdx.x)] = transform_vjp<K, inverse>(x, raw, set, in.across, in.up, given.grad_y,
                                                                  given.grad_logabsdet, raw);
    }
    __syncthreads();
    each_parameter<S, K, padded, true>(stage.values, p.grad_params, element * parameters, parameters, count,
                               [](S* from, S* to, auto beyond) FLOWKERN_INLINE {
                                 constexpr int numbers = decltype(beyond)::value;
                                 store_16(to + numbers, *reinterpret_cast<const uint4*>(from + numbers));
                               },
                               [](S* from, S* to) FLOWKERN_INLINE { *to = *from; });
  });
}

// Whether element e = n·features + t is at base[e·size + i] for all of its `size` numbers i.
inline bool flat(int64_t row, int64_t feature, int64_t one, int64_t features, int64_t size) {
  return row == features * size && feature == size && one == 1;
}
template <class S> bool aligned(const S* base) { return reinterpret_cast<std::uintptr_t>(base) % 16 == 0; }

// Whether the kernels of this file can take a call.
template <class S> bool is_flat(const SplineProblem<S>& p, const Plan& plan) {
  const int64_t t = p.features, m = p.parameters;
  if (p.index || p.width != t || plan.features != t || !flat(p.x_row, p.x_feature, 1, t, 1)) return false;
  if (!aligned(p.params) || !flat(p.params_row, p.params_feature, p.params_one, t, m)) return false;
  if (!p.grad_params) return true;
  return aligned(p.grad_params) && flat(p.grad_params_row, p.grad_params_feature, p.grad_params_one, t, m) &&
         flat(p.grad_y_row, p.grad_y_feature, 1, t, 1);
}

}  // namespace
FLOWKERN_END
