// A block at work on a tile of samples: the field, its rates, their gradients. Every function is called by
// all threads of the block and ends with a barrier.
#pragma once

#include "cuda.h"
#include "products.cuh"
#include "time.cuh"

FLOWKERN_BEGIN
namespace {

template <class S> struct OdeTile {
  const OdeSolve<S>& p;
  S* memory;        // the tile
  const S* packed;  // weights
  S* slice;         // this block's sums of gradients
  int64_t first;    // sample

  __device__ __forceinline__ int samples() const { return 1 << p.shift; }
  __device__ __forceinline__ S* at(int row) const { return memory + (int64_t(row) << p.shift); }
  __device__ __forceinline__ int k(int i) const { return p.of_k + i * ode_padded(p.features); }
  __device__ __forceinline__ int ybar(int i) const { return p.of_ybar + i * ode_padded(p.features); }
  __device__ __forceinline__ const S* row_of_a(int i) const { return p.a + i * (i - 1) / 2; }
  __device__ __forceinline__ int hidden() const { return p.layers - 1; }

  // body(i) for all numbers of some rows, counted from the first of them.
  template <class F> __device__ __forceinline__ void each_number(int rows, const F& body) const {
    for (int i = threadIdx.x; i < rows << p.shift; i += kOdeThreads) body(i);
    __syncthreads();
  }
  __device__ __forceinline__ void fill(int row, int rows) const {
    each_number(rows, [&](int i) FLOWKERN_INLINE { at(row)[i] = S(0); });
  }

  // Where in a matrix (N, …) with these strides number i of its columns in the tile is; samples beyond the
  // last repeat that one.
  __device__ __forceinline__ int64_t place(int i, int64_t of_row, int64_t of_column) const {
    const int64_t n = first + (i & (samples() - 1));
    return (n < p.rows ? n : p.rows - 1) * of_row + (i >> p.shift) * of_column;
  }
  __device__ __forceinline__ bool exists(int i) const { return first + (i & (samples() - 1)) < p.rows; }

  __device__ __forceinline__ void read(const S* from, int64_t of_row, int64_t of_column, int count, int to) const {
    each_number(count, [&](int i) FLOWKERN_INLINE { at(to)[i] = from[place(i, of_row, of_column)]; });
  }
  // Adds cotangents; samples beyond the last have none.
  __device__ __forceinline__ void read_cotangent(const S* from, int64_t of_row, int64_t of_column, int count, int to) const {
    each_number(count, [&](int i) FLOWKERN_INLINE {
      if (exists(i)) at(to)[i] += from[place(i, of_row, of_column)];
    });
  }
  __device__ __forceinline__ void write(int from, int count, S* to, int64_t of_row, int64_t of_column) const {
    each_number(count, [&](int i) FLOWKERN_INLINE {
      if (exists(i)) to[place(i, of_row, of_column)] = at(from)[i];
    });
  }

  // to = y + h Σ_j coefficient[j]·k_j in rows of the state.
  __device__ __forceinline__ void combine(int y, S h, const S* coefficient, int count, int of_k, int to) const {
    const int apart = ode_padded(p.features);
    each_number(p.features, [&](int i) FLOWKERN_INLINE {
      S sum = S(0);
      for (int j = 0; j < count; ++j)
        if (coefficient[j] != S(0)) sum = fma(coefficient[j], at(of_k + j * apart)[i], sum);
      at(to)[i] = fma(h, sum, at(y)[i]);
    });
  }

  // Adds factor·Σ term(i) over `rows` rows to the row `to`, sample by sample.
  template <class F> __device__ __forceinline__ void add_sum(int rows, S factor, int to, const F& term) const {
    S sum = S(0);  // of every so manieth row: a thread stays with its sample
    for (int i = threadIdx.x; i < rows << p.shift; i += kOdeThreads) sum += term(i);
    S* parts = at(p.of_parts);
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (int(threadIdx.x) < samples()) {
      S total = S(0);
      for (int i = threadIdx.x; i < kOdeThreads; i += samples()) total += parts[i];
      at(to)[threadIdx.x] += factor * total;
    }
    __syncthreads();
  }
  __device__ __forceinline__ void add_dot(int a, int b, int rows, S factor, int to) const {
    add_sum(rows, factor, to, [&](int i) FLOWKERN_INLINE { return at(a)[i] * at(b)[i]; });
  }

  __device__ __forceinline__ void forth(const OdeLayer<S>& layer, int from, int to) const {
    multiply<false>(packed + layer.packed, layer.units, layer.inputs, at(from), samples(), at(to));
  }
  __device__ __forceinline__ void back(const OdeLayer<S>& layer, int from, int to) const {
    multiply<true>(packed + layer.packed, layer.units, layer.inputs, at(from), samples(), at(to));
  }

  // The field.

  __device__ __forceinline__ S size(int n) const { return p.sizes[n / p.steps]; }

  // f at the rows x, c steps after the begin of step n, to the rows `to`; with `derivatives`, those of the
  // activations that have rows.
  __device__ void evaluate(int n, S c, int to, bool derivatives) const {
    embed(p, n, c, at(p.of_parts));
    int u = p.of_x;
    for (int l = 0; l < p.layers; ++l) {
      const OdeLayer<S>& layer = p.layer[l];
      const int out = l < hidden() ? layer.u : to;
      forth(layer, u, out);
      const S* of_sample = l == 0 && p.row_bias ? at(p.of_bias) : nullptr;
      const Bias<S> bias{l == 0 ? at(p.of_parts) : layer.bias, of_sample, p.shift};
      if (l == hidden()) {
        each_number(layer.units, [&](int i) FLOWKERN_INLINE { at(out)[i] += bias(i); });
      } else {
        S* d = derivatives && layer.d >= 0 ? at(layer.d) : nullptr;
        S* e = derivatives && layer.e >= 0 ? at(layer.e) : nullptr;
        activate(Activation<S>{layer.activation, layer.slope, at(out), d, e}, bias, layer.units << p.shift);
      }
      u = out;
    }
  }

  __device__ __forceinline__ int pushed(int l) const { return l == 0 ? p.of_epsilon : p.layer[l - 1].v; }

  // Direction m through the network's derivative.
  __device__ void push(int m) const {
    read(p.epsilon + m * p.epsilon_stride[0], p.epsilon_stride[1], p.epsilon_stride[2], p.features, p.of_epsilon);
    for (int l = 0; l < p.layers; ++l) {
      const OdeLayer<S>& layer = p.layer[l];
      forth(layer, pushed(l), layer.w);
      if (l < hidden())
        each_number(layer.units, [&](int i) FLOWKERN_INLINE { at(layer.v)[i] = at(layer.w)[i] * at(layer.d)[i]; });
    }
  }

  // Adds to three rows, times a factor, at what rates the integrals grow: the trace, ‖f‖² and the Jacobian's
  // norm. pulled(m) is called while the rows of direction m are there.
  template <class F> __device__ void add_rates(int f, S factor, int to, const F& pulled) const {
    if (p.kinetic) add_dot(f, f, p.features, factor, to + 1);
    if (p.closed && p.layers == 2) {
      const S* m = p.closed_form;
      const S* d = at(p.layer[0].d);
      add_sum(p.layer[0].units, factor, to, [&](int i) FLOWKERN_INLINE { return m[i >> p.shift] * d[i]; });
    } else if (p.closed) {
      const OdeLayer<S>& two = p.layer[1];
      multiply<false>(packed + p.closed_packed, two.units, two.inputs, at(p.layer[0].d), samples(), at(p.of_s));
      add_dot(two.d, p.of_s, two.units, factor, to);
    }
    const int w = p.layer[hidden()].w;
    for (int m = 0; m < p.directions; ++m) {
      push(m);
      add_dot(p.of_epsilon, w, p.features, factor * p.weight, to);
      if (p.jacobian) add_dot(w, w, p.features, factor * p.weight, to + 2);
      pulled(m);
    }
  }

  // Gradients. `factor` is that of sums over samples.

  // What the closed form of the trace adds to the cotangents of each W u + b: the rows `extra`.
  __device__ void closed_back(S factor) const {
    const OdeLayer<S>&one = p.layer[0], &last = p.layer[hidden() - 1];
    const S* tau = at(p.of_cot);
    each_number(last.units, [&](int i) FLOWKERN_INLINE {
      const S t = tau[i & (samples() - 1)], by = p.layers == 2 ? p.closed_form[i >> p.shift] : at(p.of_s)[i];
      at(last.extra)[i] = t * by * at(last.e)[i];
      at(p.of_q)[i] = t * at(last.d)[i];
    });
    if (p.layers == 2) return add_totals(at(p.of_q), one.units, samples(), factor, slice + p.closed_sums);
    add_products(at(p.of_q), last.units, at(one.d), one.units, samples(), factor, slice + p.closed_sums);
    multiply<true>(packed + p.closed_packed, last.units, one.units, at(p.of_q), samples(), at(p.of_g));
    each_number(one.units, [&](int i) FLOWKERN_INLINE { at(one.extra)[i] = at(p.of_g)[i] * at(one.e)[i]; });
  }

  // Pulls the cotangents of εᵀJε and ‖Jε‖² back along the direction that was just pushed.
  __device__ void pull(S factor) const {
    const int w = p.layer[hidden()].w;
    int g = p.of_g, next = p.of_q;
    each_number(p.features, [&](int i) FLOWKERN_INLINE {
      const int n = i & (samples() - 1);
      const S rho = p.jacobian ? S(2) * at(p.of_cot + 2)[n] * at(w)[i] : S(0);
      at(g)[i] = p.weight * fma(at(p.of_cot)[n], at(p.of_epsilon)[i], rho);
    });
    for (int l = hidden();; --l) {
      const OdeLayer<S>& layer = p.layer[l];
      add_products(at(g), layer.units, at(pushed(l)), layer.inputs, samples(), factor, slice + layer.weight_sums);
      if (l == 0) return;
      back(layer, g, next);
      const OdeLayer<S>& below = p.layer[l - 1];
      each_number(below.units, [&](int i) FLOWKERN_INLINE {
        const S of_v = at(next)[i];
        at(below.extra)[i] = fma(of_v * at(below.w)[i], at(below.e)[i], at(below.extra)[i]);
        at(next)[i] = of_v * at(below.d)[i];
      });
      const int swap = g;
      g = next, next = swap;
    }
  }

  // What comes back to the state, to the rows `to`, from the cotangents in the rows fbar and `extra` of a stage
  // c steps after the begin of step n.
  __device__ void field_back(int n, S c, S factor, int to) const {
    int z = p.of_fbar;
    for (int l = hidden(); l >= 0; --l) {
      const OdeLayer<S>& layer = p.layer[l];
      const int u = l == 0 ? p.of_x : p.layer[l - 1].u;
      add_products(at(z), layer.units, at(u), layer.inputs, samples(), factor, slice + layer.weight_sums);
      if (l == 0) embed_back(p, n, c, at(z), factor, at(p.of_parts), slice);
      else if (layer.bias) add_totals(at(z), layer.units, samples(), factor, slice + layer.bias_sums);
      if (l == 0 && p.row_bias) {
        S* grad = at(p.of_grad_bias);
        each_number(layer.units, [&](int i) FLOWKERN_INLINE { grad[i] = fma(factor, at(z)[i], grad[i]); });
      }
      const int out = l == 0 ? to : z == p.of_g ? p.of_q : p.of_g;
      back(layer, z, out);
      if (l > 0) times_derivative(p.layer[l - 1], out);
      z = out;
    }
  }
  __device__ __forceinline__ void times_derivative(const OdeLayer<S>& layer, int row) const {
    each_number(layer.units, [&](int i) FLOWKERN_INLINE {
      const S more = layer.extra >= 0 ? at(layer.extra)[i] : S(0);
      at(row)[i] = fma(at(row)[i], at(layer.d)[i], more);
    });
  }
};

}  // namespace
FLOWKERN_END
