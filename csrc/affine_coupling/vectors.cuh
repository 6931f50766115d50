// The affine coupling in single precision where features are neighbours in memory: a thread has four of them, sixteen
// bytes, at a time. Of a segment that is all it has.
#pragma once

#include <type_traits>

#include "../common/cuda.cuh"
#include "../common/instructions.cuh"
#include "cuda.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

constexpr int kThreads = 128;

template <class S> __device__ AffineSettings<S> settings(const AffineProblem<S>& p) {
  return {p.a, p.b, p.prefactor, p.shift_prefactor};
}

template <class S> struct alignas(16) Vector {
  static constexpr int size = 16 / sizeof(S);
  static_assert(size == kPasses);
  S of[size];
};

template <class S> __device__ __forceinline__ void store_vector(Vector<S>& to, const Vector<S>& values) {
  store_16(&to, __builtin_bit_cast(uint4, values));
}

// Where in every segment a thread's vector begins.
struct Spot {
  int row, feature;

  __device__ __forceinline__ explicit Spot(const Plan& plan) {
    const Walk walk(plan.features / kPasses);
    row = walk.outer, feature = walk.inner * kPasses;
  }
  __device__ __forceinline__ bool inside(int rows, int features) const { return row < rows && feature < features; }
};

// A matrix from the begin of a segment on; an offset inside one has 32 bits.
template <class S> struct Rows {
  using Value = std::remove_const_t<S>;
  using Some = std::conditional_t<std::is_const_v<S>, const Vector<Value>, Vector<Value>>;
  S* base;
  int row;

  __device__ __forceinline__ Some& at(const Spot& spot, int feature) const {
    return *reinterpret_cast<Some*>(base + (spot.row * row + feature));
  }
  __device__ __forceinline__ Some& at(const Spot& spot) const { return at(spot, spot.feature); }
};
template <class S> __device__ __forceinline__ Rows<S> rows_of(const Elements<S>& e, int64_t row, int64_t feature) {
  return {e.base + row * e.row + feature, int(e.row)};
}

// Both parameters of a vector's features: each in rows of its own, or in pairs, in either order.
template <class S> struct Both { Vector<S> shift, raw; };
template <class S> struct Pairs {
  Rows<S> one, two;  // in pairs: the same rows, one vector on
  bool paired, raw_first;
  using Value = std::remove_const_t<S>;

  __device__ __forceinline__ Pairs(const Elements<S>& shift, const Elements<S>& raw, int64_t row, int64_t feature)
      : paired(shift.feature == 2), raw_first(paired && raw.base < shift.base) {
    one = rows_of(raw_first ? raw : shift, row, paired ? 2 * feature : feature);
    two = paired ? Rows<S>{one.base + Vector<Value>::size, one.row} : rows_of(raw, row, feature);
  }
  __device__ __forceinline__ int place(const Spot& at) const { return paired ? 2 * at.feature : at.feature; }

  __device__ __forceinline__ Both<Value> load(const Spot& at) const {
    constexpr int size = Vector<Value>::size;
    const Vector<Value> all[] = {one.at(at, place(at)), two.at(at, place(at))};
    Both<Value> out = {all[0], all[1]};
    if (paired)
      each<size>(size, [&](int i) FLOWKERN_INLINE {
        out.shift.of[i] = all[2 * i / size].of[2 * i % size], out.raw.of[i] = all[(2 * i + 1) / size].of[(2 * i + 1) % size];
      });
    return raw_first ? Both<Value>{out.raw, out.shift} : out;
  }
  __device__ __forceinline__ void store(const Spot& at, Both<Value> values) const {
    constexpr int size = Vector<Value>::size;
    if (raw_first) values = {values.raw, values.shift};
    Vector<Value> all[] = {values.shift, values.raw};
    if (paired)
      each<size>(size, [&](int i) FLOWKERN_INLINE {
        all[2 * i / size].of[2 * i % size] = values.shift.of[i], all[(2 * i + 1) / size].of[(2 * i + 1) % size] = values.raw.of[i];
      });
    store_vector(one.at(at, place(at)), all[0]), store_vector(two.at(at, place(at)), all[1]);
  }
};

template <int kind, class S>
__device__ __forceinline__ Both<std::remove_const_t<S>> load_params(const Elements<S>& shift, const Elements<S>& raw, int64_t row, int64_t feature, const Spot& at) {
  if constexpr (kind == kAdditive) return {rows_of(shift, row, feature).at(at), {}};
  else return Pairs<S>(shift, raw, row, feature).load(at);
}

// As the general kernel adds up log-dets: the result has the same bits.
template <class S, int kind, bool inverse>
__global__ __launch_bounds__(kThreads) void forward_vectors_kernel(AffineProblem<S> p, Plan plan) {
  S* l = reinterpret_cast<S*>(shared_memory());
  const AffineSettings<S> set = settings(p);
  const Spot at(plan);
  for_rows(p.rows, plan, [&](int64_t row, int rows) FLOWKERN_INLINE {
    S total = S(0);
    for_parts(p.features, plan, [&](int64_t feature, int features) FLOWKERN_INLINE {
      if (at.inside(rows, features)) {
        const Vector<S> x = rows_of(p.x, row, feature).at(at);
        const Both<S> params = load_params<kind>(p.shift, p.raw, row, feature, at);
        Vector<S> y, log_dets;
        each<kPasses>(kPasses, [&](int j) FLOWKERN_INLINE {
          const auto out = affine<kind, inverse>(x.of[j], params.shift.of[j], params.raw.of[j], set);
          y.of[j] = out.y, log_dets.of[j] = out.logabsdet;
        });
        store_vector(rows_of(p.y, row, feature).at(at), y);
        Rows<S>{l, features}.at(at) = log_dets;
      }
      __syncthreads();
      total += share_of_sum(l, rows, features, plan.lanes);
      __syncthreads();
    });
    store_sums(total, rows, plan.lanes, p.logabsdet + row);
  });
}

template <class S, int kind, bool inverse>
__global__ __launch_bounds__(kThreads) void backward_vectors_kernel(AffineProblem<S> p, Plan plan) {
  const AffineSettings<S> set = settings(p);
  const Spot at(plan);
  for_rows(p.rows, plan, [&](int64_t row, int rows) FLOWKERN_INLINE {
    for_parts(p.features, plan, [&](int64_t feature, int features) FLOWKERN_INLINE {
      if (!at.inside(rows, features)) return;
      const Vector<S> x = rows_of(p.x, row, feature).at(at), g_out = rows_of(p.grad_y, row, feature).at(at);
      const Both<S> params = load_params<kind>(p.shift, p.raw, row, feature, at);
      const S g_logabsdet = p.grad_logabsdet.base[(row + at.row) * p.grad_logabsdet.row];
      Vector<S> g_x;
      Both<S> g_params;
      each<kPasses>(kPasses, [&](int j) FLOWKERN_INLINE {
        const auto g = affine_vjp<kind, inverse>(x.of[j], params.shift.of[j], params.raw.of[j], g_out.of[j], g_logabsdet, set);
        g_x.of[j] = g.x, g_params.shift.of[j] = g.shift, g_params.raw.of[j] = g.raw;
      });
      store_vector(rows_of(p.y, row, feature).at(at), g_x);
      if constexpr (kind == kAdditive) store_vector(rows_of(p.grad_shift, row, feature).at(at), g_params.shift);
      else Pairs<S>(p.grad_shift, p.grad_raw, row, feature).store(at, g_params);
    });
  });
}

// Whether all vectors of a matrix are aligned, and neighbours `one` apart.
template <class S> bool aligned(const Elements<S>& e, S* base, int64_t one) {
  using Some = typename Rows<S>::Some;
  const bool rows = e.row % Some::size == 0 && e.row >= 0 && e.row < (1 << 20);
  return rows && e.feature == one && reinterpret_cast<std::uintptr_t>(base) % sizeof(Some) == 0;
}
template <class S> bool params_aligned(const Elements<S>& shift, const Elements<S>& raw, bool additive) {
  if (additive) return aligned(shift, shift.base, 1);
  if (aligned(shift, shift.base, 1) && aligned(raw, raw.base, 1)) return true;
  S* const first = raw.base < shift.base ? raw.base : shift.base;
  const bool pairs = shift.row == raw.row && (raw.base == shift.base + 1 || shift.base == raw.base + 1);
  return pairs && aligned(shift, first, 2) && aligned(raw, first, 2);
}

// Whether the kernels of this file can take a call.
template <class S> bool in_vectors(const AffineProblem<S>& p) {
  const bool additive = p.kind == kAdditive, backward = p.grad_y.base;
  if (p.x.index || p.features % Vector<S>::size) return false;
  if (!aligned(p.x, p.x.base, 1) || !aligned(p.y, p.y.base, 1) || !params_aligned(p.shift, p.raw, additive)) return false;
  return !backward || (aligned(p.grad_y, p.grad_y.base, 1) && params_aligned(p.grad_shift, p.grad_raw, additive));
}

}  // namespace
FLOWKERN_END
