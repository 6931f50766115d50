// The masked network on a tile of samples, everything about them in one piece of memory.
//
// The tile keeps one row of numbers for each unit, a number for each sample. A group of as many threads
// as there are samples computes a row, each thread for its sample; sums over units follow one order,
// whatever the tile's width. What one group has computed others read behind a barrier.
#pragma once

#include "../common/activation.h"
#include "../common/cuda.cuh"
#include "cuda.h"

FLOWKERN_BEGIN

constexpr int kPanel = 8;  // rows of a matrix that a group computes together

struct Span { int begin, end; };

// A matrix W, or its transpose, its rows and columns sorted by rank: entry (row, column) of the panel of
// rows that holds it is at [column][row % kPanel]. Entries that no rank allows are 0; behind the span
// of a panel there are no others.
template <class S> struct alignas(16) Column { S row[kPanel]; };
template <class S> struct Packed {
  const Column<S>* panels;
  const Span* spans;
  int columns;
};

// Where the packing kernel puts all of them, and the layers.
template <class S> struct MaskedMemory {
  MaskedLayer<S>* layers;
  Span* spans;
  Column<S>* panels;
  S* tiles;  // null: tiles lie in shared memory
};

// How the kernels see a call: `outputs` is the number of the last layer.
template <class S> struct MaskedProblem {
  MaskedTransform<S> call;
  MaskedMemory<S> memory;
  int outputs, block;      // ranks of a block
  int samples, tile_rows;  // of a tile
  int in, grad;            // rows of what the element transforms, and of its cotangents
};

// Numbers outside of a layer would be read as addresses.
__device__ __forceinline__ int bounded(int64_t value, int most) { return value < 0 ? 0 : value > most ? most : int(value); }

template <class S> __device__ __forceinline__ int count_upto(const MaskedLayer<S>& layer, int rank) {
  return rank < 0 ? 0 : bounded(layer.ends[rank], layer.units / layer.per_place) * layer.per_place;
}
template <class S> __device__ __forceinline__ int unit_at(const MaskedLayer<S>& layer, int place) {
  const int per = layer.per_place;
  return bounded(layer.order[place / per], layer.units / per - 1) * per + place % per;
}

template <class S> struct Tile {
  const MaskedProblem<S>& p;
  S* memory;  // of this thread's sample
  int64_t n;  // which it is
  bool here;  // whether the batch has it
  int samples, group, groups;

  __device__ __forceinline__ S& at(int row) const { return memory[int64_t(row) * samples]; }
  __device__ __forceinline__ const MaskedLayer<S>& layer(int k) const { return p.memory.layers[k]; }
  __device__ __forceinline__ int upto(int k, int rank) const { return count_upto(layer(k), rank); }
  __device__ __forceinline__ Span ranks(int k, int first, int end) const { return {upto(k, first - 1), upto(k, end - 1)}; }
  __device__ __forceinline__ Span all(int k) const { return {0, layer(k).units}; }
  __device__ __forceinline__ S value(const Elements<const S>& e, int64_t unit) const {
    return e.base[n * e.row + unit * e.feature];
  }

  // The rows that are this thread's.
  template <class F> __device__ __forceinline__ void each_row(Span rows, const F& body) const {
    if (!here) return;
    for (int r = rows.begin + group; r < rows.end; r += groups) body(r);
  }

  // Features of a matrix, sorted, to the rows from `to` on; and back.
  __device__ __forceinline__ void read(const Elements<const S>& from, int to) const {
    each_row(all(0), [&](int f) FLOWKERN_INLINE { at(to + f) = value(from, unit_at(layer(0), f)); });
  }
  __device__ __forceinline__ void write(int from, const Elements<S>& to) const {
    each_row(all(0), [&](int f) FLOWKERN_INLINE {
      to.base[n * to.row + unit_at(layer(0), f) * to.feature] = at(from + f);
    });
  }

  __device__ __forceinline__ Packed<S> weight(int k) const {
    return {p.memory.panels + layer(k).panels[0], p.memory.spans + layer(k).spans[0], layer(k - 1).units};
  }
  __device__ __forceinline__ Packed<S> transposed(int k) const {
    return {p.memory.panels + layer(k).panels[1], p.memory.spans + layer(k).spans[1], layer(k).units};
  }

  // Adds to rows at `to` their products with columns at `from`, and calls done(row): by panels, for
  // many rows, or row by row, for the few of one rank.
  template <class F>
  __device__ __forceinline__ void add_panels(const Packed<S>& m, Span rows, Span columns, int from, int to, const F& done) const {
    if (!here) return;
    for (int first = (rows.begin / kPanel + group) * kPanel; first < rows.end; first += groups * kPanel) {
      const Span seen = m.spans[first / kPanel];
      const int begin = columns.begin > seen.begin ? columns.begin : seen.begin;
      const int end = columns.end < seen.end ? columns.end : seen.end;
      const Column<S>* w = m.panels + int64_t(first / kPanel) * m.columns;
      S sum[kPanel] = {};
      for (int c = begin; c < end; ++c) {
        const S u = at(from + c);
        const Column<S> column = w[c];  // sixteen bytes at a time
        each<kPanel>(kPanel, [&](int j) FLOWKERN_INLINE { sum[j] = fma(column.row[j], u, sum[j]); });
      }
      each<kPanel>(kPanel, [&](int j) FLOWKERN_INLINE {
        if (first + j >= rows.begin && first + j < rows.end) at(to + first + j) += sum[j];
      });
      for (int r = first > rows.begin ? first : rows.begin; r < first + kPanel && r < rows.end; ++r) done(r);
    }
  }
  template <class F>
  __device__ __forceinline__ void add_rows(const Packed<S>& m, Span rows, Span columns, int from, int to, const F& done) const {
    each_row(rows, [&](int r) FLOWKERN_INLINE {
      const Column<S>* w = m.panels + int64_t(r / kPanel) * m.columns;
      S sum = at(to + r);
      const S* u = &at(from + columns.begin);
      for (int c = columns.begin; c < columns.end; ++c, u += samples) sum = fma(w[c].row[r % kPanel], *u, sum);
      at(to + r) = sum;
      done(r);
    });
  }

  // Forward through the network.

  __device__ __forceinline__ S& tape(int64_t row, int unit) const { return p.call.tape[(row + unit) * p.call.rows + n]; }

  // The rows of all layers begin with their biases.
  __device__ __forceinline__ void start() const {
    for (int k = 1; k <= p.outputs; ++k) {
      const MaskedLayer<S>& to = layer(k);
      each_row(all(k), [&](int r) FLOWKERN_INLINE {
        at(to.u + r) = to.bias.base ? value(to.bias, unit_at(to, r)) : S(0);
      });
    }
  }

  // To which their contexts are added.
  __device__ __forceinline__ void add_terms() const {
    for (int k = 1; k <= p.outputs; ++k)
      if (layer(k).term.inputs >= 0)
        each_row(all(k), [&](int r) FLOWKERN_INLINE { at(layer(k).u + r) += term_of(layer(k), unit_at(layer(k), r)); });
  }
  __device__ __forceinline__ S term_of(const MaskedLayer<S>& to, int64_t unit) const {
    const ContextTerm<S>& term = to.term;
    const S* context = term.context.base + n * term.context.row;
    const S* weight = term.weight.base + unit * term.weight.row;
    S sum = term.bias.base ? value(term.bias, unit) : S(0);
    for (int64_t c = 0; c < term.inputs; ++c) sum = fma(weight[c * term.weight.feature], context[c * term.context.feature], sum);
    return activate(term.activation, term.slope, sum);
  }

  // From W u + b to u', in a hidden layer.
  __device__ __forceinline__ void finish(int k, int r) const {
    const MaskedLayer<S>& to = layer(k);
    const int unit = unit_at(to, r);
    S z = at(to.u + r);
    if (to.tape_gate >= 0) tape(to.tape_gate, unit) = z;  // until finish_back
    if (to.gate.base) z *= value(to.gate, unit);
    if (to.skip >= 0) z += at(layer(to.skip).z + unit);
    if (to.z >= 0) at(to.z + unit) = z;
    if (to.grad_skip >= 0) at(to.grad_skip + unit) = S(0);
    const S u = activate(to.activation, to.slope, fma(gain(to, unit), z, offset(to, unit)));
    if (to.tape_u >= 0) tape(to.tape_u, unit) = u;
    at(to.u + r) = u;
  }
  __device__ __forceinline__ S gain(const MaskedLayer<S>& to, int unit) const {
    return to.gain.base ? value(to.gain, unit) : S(1);
  }
  __device__ __forceinline__ S offset(const MaskedLayer<S>& to, int unit) const {
    return to.offset.base ? value(to.offset, unit) : S(0);
  }

  // The whole network at known features.
  __device__ __forceinline__ void evaluate() const {
    for (int k = 1; k <= p.outputs; ++k) {
      add_panels(weight(k), all(k), all(k - 1), layer(k - 1).u, layer(k).u, [&](int r) FLOWKERN_INLINE {
        if (k < p.outputs) finish(k, r);
      });
      __syncthreads();
    }
  }

  // What the units of ranks [low, high) receive from those of lower rank.
  __device__ __forceinline__ void begin_block(int low, int high) const {
    for (int k = 1; k <= p.outputs; ++k)
      add_panels(weight(k), ranks(k, low, high), ranks(k - 1, 0, low), layer(k - 1).u, layer(k).u, [](int) {});
    __syncthreads();
  }
  // And one rank from those from `low` on.
  __device__ __forceinline__ void step(int low, int rank) const {
    for (int k = 1; k <= p.outputs; ++k) {
      const Span rows = ranks(k, rank, rank + 1), columns = ranks(k - 1, low, rank + 1);
      add_rows(weight(k), rows, columns, layer(k - 1).u, layer(k).u, [&](int r) FLOWKERN_INLINE {
        if (k < p.outputs) finish(k, r);
      });
      __syncthreads();
    }
  }

  // Backward. A hidden layer's rows of u become those of the cotangents, first of u', then of W u + b.

  __device__ __forceinline__ int grad(int k) const { return k > 0 ? layer(k).u : p.grad; }

  __device__ __forceinline__ void clear_grads() const {
    for (int k = 1; k < p.outputs; ++k) each_row(all(k), [&](int r) FLOWKERN_INLINE { at(grad(k) + r) = S(0); });
  }

  __device__ __forceinline__ void finish_back(int k, int r) const {
    const MaskedLayer<S>& to = layer(k);
    const int unit = unit_at(to, r);
    const S z = at(to.z + unit), by_gain = gain(to, unit);
    const S a = fma(by_gain, z, offset(to, unit));
    const S g_offset = at(to.u + r) * activation_derivative(to.activation, to.slope, a);
    S g = g_offset * by_gain;
    if (to.grad_skip >= 0) g += at(to.grad_skip + unit);
    if (to.skip >= 0) at(layer(to.skip).grad_skip + unit) += g;
    if (to.tape_gate >= 0) tape(to.tape_gate, unit) *= g;
    if (to.tape_gain >= 0) tape(to.tape_gain, unit) = g_offset * z, tape(to.tape_offset, unit) = g_offset;
    if (to.gate.base) g *= value(to.gate, unit);
    if (to.tape_v >= 0) tape(to.tape_v, unit) = g;
    at(to.u + r) = g;
  }

  // Layers from the last to the first, the outputs' cotangents being known.
  __device__ __forceinline__ void evaluate_back() const {
    for (int k = p.outputs - 1; k >= 0; --k) {
      add_panels(transposed(k + 1), all(k), all(k + 1), grad(k + 1), grad(k), [&](int r) FLOWKERN_INLINE {
        if (k > 0) finish_back(k, r);
      });
      __syncthreads();
    }
  }

  // What the units of ranks [low, high), and the features one rank higher, receive from higher ranks.
  __device__ __forceinline__ void begin_block_back(int low, int high) const {
    for (int k = 0; k < p.outputs; ++k) {
      const int one = k == 0;
      add_panels(transposed(k + 1), ranks(k, low + one, high + one), ranks(k + 1, high, p.call.levels), grad(k + 1), grad(k), [](int) {});
    }
    __syncthreads();
  }
  // And the features of rank + 1 from units of ranks up to `high`: done(f) has all that f receives.
  template <class F> __device__ __forceinline__ void step_to_features(int rank, int high, const F& done) const {
    add_rows(transposed(1), ranks(0, rank + 1, rank + 2), ranks(1, rank + 1, high), grad(1), grad(0), done);
    __syncthreads();
  }
  __device__ __forceinline__ void step_back(int rank, int high) const {
    for (int k = p.outputs - 1; k > 0; --k) {
      const Span rows = ranks(k, rank, rank + 1), columns = ranks(k + 1, rank, high);
      add_rows(transposed(k + 1), rows, columns, grad(k + 1), grad(k), [&](int r) FLOWKERN_INLINE { finish_back(k, r); });
      __syncthreads();
    }
  }
};

FLOWKERN_END
