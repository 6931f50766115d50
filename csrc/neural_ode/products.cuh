// What the threads of a block compute together on a tile: products with weights, sums over samples.
//
// A matrix is packed by rows, with zeros to a multiple of four rows and columns; the rows of a tile are
// as many more, and those hold finite numbers. A tile has `samples` columns, 4 to 32. Every number of a
// product is summed by one thread, in order, so that it does not depend on the size of a tile.
#pragma once

#include "../common/activation.h"
#include "../common/cuda.cuh"

FLOWKERN_BEGIN
namespace {

constexpr int kOdeThreads = 128;

FLOWKERN_HD constexpr int ode_padded(int count) { return (count + 3) / 4 * 4; }

// V neighbouring numbers, which are moved 16 bytes at a time.
template <class S, int V> struct alignas(V * sizeof(S) < 16 ? V * sizeof(S) : 16) Some {
  S of[V];
};
template <int V, class S> __device__ __forceinline__ Some<S, V> some(const S* from) {
  return *reinterpret_cast<const Some<S, V>*>(from);
}

// V×V numbers of W u, or of Wᵀ u if `turned`, from row `row` and sample `n` on; W has `width` columns.
template <int V, bool turned, class S>
__device__ __forceinline__ void multiply_part(const S* w, int width, int depth, int row, const S* u, int samples, int n,
                                              S* to) {
  Some<S, V> sum[V] = {};
  for (int c = 0; c < depth; c += V) {
    Some<S, V> of_w[V];
    each<V>(V, [&](int i) FLOWKERN_INLINE {
      of_w[i] = some<V>(turned ? w + (c + i) * width + row : w + (row + i) * width + c);
    });
    each<V>(V, [&](int q) FLOWKERN_INLINE {
      const Some<S, V> of_u = some<V>(u + (c + q) * samples + n);
      each<V>(V, [&](int i) FLOWKERN_INLINE {
        const S value = turned ? of_w[q].of[i] : of_w[i].of[q];
        each<V>(V, [&](int j) FLOWKERN_INLINE { sum[i].of[j] = fma(value, of_u.of[j], sum[i].of[j]); });
      });
    });
  }
  each<V>(V, [&](int i) FLOWKERN_INLINE { *reinterpret_cast<Some<S, V>*>(to + (row + i) * samples + n) = sum[i]; });
}

template <int V, bool turned, class S>
__device__ __noinline__ void multiply_parts(const S* w, int width, int rows, int depth, const S* u, int samples, S* to) {
  const int across = samples / V;
  for (int i = threadIdx.x; i < rows / V * across; i += kOdeThreads)
    multiply_part<V, turned>(w, width, depth, i / across * V, u, samples, i % across * V, to);
}

// to = W u, or Wᵀ u if `turned`, of W (units, inputs) packed.
template <bool turned, class S>
__device__ __forceinline__ void multiply(const S* w, int units, int inputs, const S* u, int samples, S* to) {
  const int width = ode_padded(inputs);
  const int rows = ode_padded(turned ? inputs : units), depth = ode_padded(turned ? units : inputs);
  // Enough parts for all threads are worth more than large ones.
  if (rows * samples >= 16 * kOdeThreads) multiply_parts<4, turned>(w, width, rows, depth, u, samples, to);
  else multiply_parts<2, turned>(w, width, rows, depth, u, samples, to);
  __syncthreads();
}

// Adds factor·Σ_n v[row][n]·u[column][n] for V×V entries of a contiguous (rows, columns).
template <int V, class S>
__device__ __forceinline__ void add_products_part(const S* v, int rows, int row, const S* u, int columns, int column,
                                                  int samples, S factor, S* sums) {
  S sum[V][V] = {};
  for (int i = 0; i < samples; i += V) {
    const int n = (i + column) & (samples - 1);  // so that neighbouring threads read from different banks
    Some<S, V> of_v[V];
    each<V>(V, [&](int r) FLOWKERN_INLINE { of_v[r] = some<V>(v + (row + r) * samples + n); });
    each<V>(V, [&](int c) FLOWKERN_INLINE {
      const Some<S, V> of_u = some<V>(u + (column + c) * samples + n);
      each<V>(V, [&](int r) FLOWKERN_INLINE {
        each<V>(V, [&](int q) FLOWKERN_INLINE { sum[r][c] = fma(of_v[r].of[q], of_u.of[q], sum[r][c]); });
      });
    });
  }
  each<V>(V, [&](int r) FLOWKERN_INLINE {
    each<V>(V, [&](int c) FLOWKERN_INLINE {
      if (row + r < rows && column + c < columns) sums[(row + r) * columns + column + c] += factor * sum[r][c];
    });
  });
}

template <int V, class S>
__device__ __noinline__ void add_products_parts(const S* v, int rows, const S* u, int columns, int samples, S factor, S* sums) {
  const int across = (columns + V - 1) / V, parts = (rows + V - 1) / V * across;
  for (int i = threadIdx.x; i < parts; i += kOdeThreads)
    add_products_part<V>(v, rows, i / across * V, u, columns, i % across * V, samples, factor, sums);
}

template <class S>
__device__ __forceinline__ void add_products(const S* v, int rows, const S* u, int columns, int samples, S factor,
                                             S* sums) {
  if (rows * columns >= 16 * kOdeThreads) add_products_parts<4>(v, rows, u, columns, samples, factor, sums);
  else add_products_parts<2>(v, rows, u, columns, samples, factor, sums);
  __syncthreads();
}

template <class S> __device__ __forceinline__ S row_total(const S* v, int row, int samples) {
  S sum = S(0);
  for (int i = 0; i < samples; ++i) sum += v[row * samples + ((i + row) & (samples - 1))];
  return sum;
}

// Adds factor·Σ_n v[row][n] to sums[row].
template <class S> __device__ __forceinline__ void add_totals(const S* v, int rows, int samples, S factor, S* sums) {
  for (int row = threadIdx.x; row < rows; row += kOdeThreads) sums[row] += factor * row_total(v, row, samples);
  __syncthreads();
}

// What is added to number i of a layer's rows: a bias of the unit, and one of the unit and the sample (null: none).
template <class S> struct Bias {
  const S *of_unit, *of_sample;
  int shift;  // log₂ of the samples

  __device__ __forceinline__ S operator()(int i) const {
    return (of_unit ? of_unit[i >> shift] : S(0)) + (of_sample ? of_sample[i] : S(0));
  }
};

// A layer's activation, in place on u, and where it leaves its derivatives (null: nowhere).
template <class S> struct Activation {
  int kind;
  S slope;
  S *u, *d, *e;
};

template <int order, class S> __device__ __noinline__ void activate(Activation<S> at, Bias<S> bias, int count) {
  by_activation(at.kind, [&](auto kind) FLOWKERN_INLINE {
    for (int i = threadIdx.x; i < count; i += kOdeThreads) {
      const Jet<S> jet = activation_jet<decltype(kind)::value, order>(at.slope, at.u[i] + bias(i));
      at.u[i] = jet.u;
      if (order > 0) at.d[i] = jet.d;
      if (order > 1) at.e[i] = jet.e;
    }
  });
}

// For the first `count` numbers of the rows.
template <class S> __device__ __forceinline__ void activate(const Activation<S>& at, const Bias<S>& bias, int count) {
  if (at.e) activate<2>(at, bias, count);
  else if (at.d) activate<1>(at, bias, count);
  else activate<0>(at, bias, count);
  __syncthreads();
}

}  // namespace
FLOWKERN_END
