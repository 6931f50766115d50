// The masked autoregressive transform on the samples of a tile, everything about them in cache.
//
// A tile keeps one row of R = V·lanes samples for each unit. Products with finished units go by
// panels of rows with their sums in registers; the units of one block then follow rank by rank.
#include "masked_autoregressive_element.h"

#include "../common/activation.h"
#include "../common/tile.h"

FLOWKERN_BEGIN
namespace {

using std::int64_t;

// With 32 registers a panel of 8 rows by two vectors keeps its 16 sums in them, with 16 one of 4.
#if defined(__AVX512F__)
constexpr int kPanel = 8, kWide = 2, kNarrow = 1;
#elif defined(__AVX2__)
constexpr int kPanel = 4, kWide = 2, kNarrow = 1;
#else
constexpr int kPanel = 4, kWide = 8, kNarrow = 8;  // "vectors" of one number
#endif

constexpr int kTile = 16;  // columns transposed at a time

template <class S, int V> struct Tile {
  using T = Vec<S>;
  static constexpr int lanes = Lanes<T>::count, R = V * lanes;
  const MaskedProblem<S>& p;
  int64_t first;
  int samples;
  MaskedMemory<S> memory;

  FLOWKERN_HD S* at(int row) const { return memory.tile + int64_t(row) * R; }
  FLOWKERN_HD int upto(int layer, int rank) const { return p.counts[layer * (p.levels + 2) + rank + 1]; }
  FLOWKERN_HD int outputs() const { return p.layers - 1; }
  FLOWKERN_HD int64_t unit(int layer, int place) const {
    const int64_t* order = p.units[layer].order;
    return layer < outputs() ? order[place] : order[place / p.parameters] * p.parameters + place % p.parameters;
  }
  FLOWKERN_HD int place(int layer, int unit) const {
    const int* places = p.units[layer].place;
    return layer < outputs() ? places[unit] : places[unit / p.parameters] * p.parameters + unit % p.parameters;
  }

  template <class F> FLOWKERN_HD void each_vector(const F& body) const {
    each<V>(V, [&](int v) FLOWKERN_INLINE { body(v * lanes); });
  }
  void fill(S* row, S value) const {
    each_vector([&](int i) FLOWKERN_INLINE { store(row + i, T(value)); });
  }

  // Column `column` of a matrix with a row for each sample; lanes without one repeat the last.
  void read(const Elements<const S>& from, int64_t column, S* to) const {
    const S* base = from.base + column * from.feature;
    if (from.row == 0) return fill(to, *base);
    for (int n = 0; n < samples; ++n) to[n] = base[(first + n) * from.row];
    for (int n = samples; n < R; ++n) to[n] = to[samples - 1];
  }
  void write(const S* from, const Elements<S>& to, int64_t column) const {
    for (int n = 0; n < samples; ++n) to.base[(first + n) * to.row + column * to.feature] = from[n];
  }

  // Calls body(u, n, v) for columns [u, u + n) of a matrix with `count` and vectors v of samples; the
  // last overlap those before.
  template <class F> static void each_tile(int count, const F& body) {
    for (int u = 0; u < count; u += kTile) {
      const int begin = count < kTile || u + kTile <= count ? u : count - kTile;
      for (int v = 0; v < V; ++v) body(begin, count < kTile ? count : kTile, v);
    }
  }
  bool is_tiled(int64_t feature) const { return feature == 1 && samples == R; }

  // All columns of a matrix for layer k, each to the row of its unit.
  void read_layer(int k, const Elements<const S>& from, int to) const {
    const MaskedUnits<S>& layer = p.units[k];
    if (from.row == 0 || !is_tiled(from.feature)) {
      for (int r = 0; r < layer.used; ++r) read(from, unit(k, r), at(to + r));
      return;
    }
    each_tile(layer.units, [&](int u, int n, int v) {
      T columns[kTile];
      load_tile<0>(from.base + (first + v * lanes) * from.row + u, from.row, n, columns);
      for (int i = 0; i < n; ++i)
        if (const int r = place(k, u + i); r < layer.used) store(at(to + r) + v * lanes, columns[i]);
    });
  }
  // The same of the features' cotangents: lanes without a sample add nothing to sums.
  void read_cotangents(const Elements<const S>& from, int to) const {
    read_layer(0, from, to);
    for (int f = 0; f < p.units[0].used; ++f) clear_rest(at(to + f));
  }
  void clear_rest(S* row) const {
    for (int n = samples; n < R; ++n) row[n] = S(0);
  }

  void write_features(int from) const {
    if (!is_tiled(p.out.feature)) {
      for (int f = 0; f < p.units[0].used; ++f) write(at(from + f), p.out, unit(0, f));
      return;
    }
    each_tile(p.units[0].used, [&](int f, int n, int v) {
      T columns[kTile];
      for (int i = 0; i < n; ++i) columns[i] = load(at(from + place(0, f + i)) + v * lanes);
      store_tile<0>(p.out.base + (first + v * lanes) * p.out.row + f, p.out.row, n, columns);
    });
  }

  // sums[j] += Σ_c w[c][j]·u[c] for c < count. Few rows have several partial sums each, so that one
  // product need not wait for the one before.
  template <int rows> static void multiply(const S* w, const S* u, int count, S* sums) {
    constexpr int parts = rows * 4 <= kPanel ? 4 : kPanel / rows;
    T sum[parts][rows][V];
    each<rows>(rows, [&](int j) FLOWKERN_INLINE {
      each<V>(V, [&](int v) FLOWKERN_INLINE {
        sum[0][j][v] = load(sums + j * R + v * lanes);
        each<parts, 1>(parts, [&](int k) FLOWKERN_INLINE { sum[k][j][v] = T(S(0)); });
      });
    });
    auto add = [&](int k, int c) FLOWKERN_INLINE {
      T of_u[V];
      each<V>(V, [&](int v) FLOWKERN_INLINE { of_u[v] = load(u + int64_t(c) * R + v * lanes); });
      each<rows>(rows, [&](int j) FLOWKERN_INLINE {
        const T of_w = T(w[int64_t(c) * kPanel + j]);
        each<V>(V, [&](int v) FLOWKERN_INLINE { sum[k][j][v] = fma(of_w, of_u[v], sum[k][j][v]); });
      });
    };
    int c = 0;
    for (; c + parts <= count; c += parts) each<parts>(parts, [&](int k) FLOWKERN_INLINE { add(k, c + k); });
    for (; c < count; ++c) add(0, c);
    each<rows>(rows, [&](int j) FLOWKERN_INLINE {
      each<V>(V, [&](int v) FLOWKERN_INLINE {
        each<parts, 1>(parts, [&](int k) FLOWKERN_INLINE { sum[0][j][v] = sum[0][j][v] + sum[k][j][v]; });
        store(sums + j * R + v * lanes, sum[0][j][v]);
      });
    });
  }

  // sums[c] += Σ_j w[c][j]·v[j] for c < count: what the rows of a panel send back.
  template <int rows> static void multiply_back(const S* w, const S* v, int count, S* sums) {
    T of_v[rows][V];
    each<rows>(rows, [&](int j) FLOWKERN_INLINE {
      each<V>(V, [&](int i) FLOWKERN_INLINE { of_v[j][i] = load(v + j * R + i * lanes); });
    });
    for (int c = 0; c < count; ++c, w += kPanel, sums += R) {
      T sum[V];
      each<V>(V, [&](int i) FLOWKERN_INLINE { sum[i] = load(sums + i * lanes); });
      each<rows>(rows, [&](int j) FLOWKERN_INLINE {
        const T of_w = T(w[j]);
        each<V>(V, [&](int i) FLOWKERN_INLINE { sum[i] = fma(of_w, of_v[j][i], sum[i]); });
      });
      each<V>(V, [&](int i) FLOWKERN_INLINE { store(sums + i * lanes, sum[i]); });
    }
  }

  template <int n> struct Rows {};

  // Calls body(Rows<n>, row, w) for groups of n rows of a block that lie in one panel, until they
  // are those from `row` to `end`; w is where their column 0 lies.
  template <class F> static void each_group(const Panels<S>& m, int row, int end, const F& body) {
    for (int done; row < end; row += done) {
      const int panel = (row - m.row) / kPanel, lane = (row - m.row) % kPanel;
      const int left = end - row < kPanel - lane ? end - row : kPanel - lane;
      const S* w = m.values + int64_t(panel) * m.columns * kPanel + lane;
      if (left >= 8 && kPanel >= 8) body(Rows<kPanel>(), row, w), done = kPanel;
      else if (left >= 4) body(Rows<4>(), row, w), done = 4;
      else if (left >= 2) body(Rows<2>(), row, w), done = 2;
      else body(Rows<1>(), row, w), done = 1;
    }
  }

  // Adds the products of rows [row, end) of a block with columns [column, stop) to the rows at `to`.
  void multiply(const Panels<S>& m, int row, int end, int column, int stop, int from, int to) const {
    if (stop <= column) return;
    each_group(m, row, end, [&]<int n>(Rows<n>, int row, const S* w) FLOWKERN_INLINE {
      multiply<n>(w + int64_t(column) * kPanel, at(from + column), stop - column, at(to + row));
    });
  }

  // Forward through the conditioner.

  void start(int k) const {
    const MaskedUnits<S>& layer = p.units[k];
    if (layer.bias.base) return read_layer(k, layer.bias, layer.z);
    for (int r = 0; r < layer.used; ++r) fill(at(layer.z + r), S(0));
  }

  // From W u + b to u' in the rows [row, end) of a hidden layer.
  void finish(int k, int row, int end) const {
    const MaskedUnits<S>& layer = p.units[k];
    alignas(64) S gate[R];
    for (int r = row; r < end; ++r) {
      const int unit = int(layer.order[r]);
      S *z = at(layer.z + r), *u = at(layer.u + r);
      const S* past = layer.skip < 0 ? nullptr : at(p.units[layer.skip].z + place(layer.skip, unit));
      if (layer.gate.base) read(layer.gate, unit, gate);
      const S gain = layer.gain.base ? layer.gain.base[unit * layer.gain.feature] : S(1);
      const S offset = layer.offset.base ? layer.offset.base[unit * layer.offset.feature] : S(0);
      each_vector([&](int i) FLOWKERN_INLINE {
        T value = load(z + i);
        if (layer.gate.base) {
          store(at(layer.v + r) + i, value);
          value = value * load(gate + i);
        }
        if (past) value = value + load(past + i);
        store(z + i, value);
        store(u + i, activate(layer.activation, layer.slope, fma(T(gain), value, T(offset))));
      });
    }
  }

  // The whole conditioner at known features.
  void evaluate() const {
    for (int k = 1; k < p.layers; ++k) {
      const MaskedUnits<S>& layer = p.units[k];
      start(k);
      for (int b = 0; b < p.blocks; ++b) {
        const Panels<S>& m = layer.into[b];
        multiply(m, m.row, m.end, 0, m.columns, p.units[k - 1].u, layer.z);
      }
      if (k < outputs()) finish(k, 0, layer.used);
    }
  }

  const S* parameters(int f) const { return at(p.units[outputs()].z + f * p.parameters); }

  void elements(int from, int to, S* logabsdet) const {
    for (int f = 0; f < p.units[0].used; ++f)
      masked_element(p, at(from + f), parameters(f), V, at(to + f), logabsdet);
  }

  // Block after block: what its units receive from finished ones, then rank by rank.
  void solve(S* logabsdet) const {
    for (int k = 1; k < p.layers; ++k) start(k);
    for (int b = 0; b < p.blocks; ++b) {
      const int begin = p.first[b];
      for (int k = 1; k < p.layers; ++k) {
        const Panels<S>& m = p.units[k].into[b];
        multiply(m, m.row, m.end, 0, upto(k - 1, begin - 1), p.units[k - 1].u, p.units[k].z);
      }
      for (int rank = begin; rank < p.first[b + 1]; ++rank) {
        for (int k = 1; k < p.layers; ++k) {
          const int row = upto(k, rank - 1), end = upto(k, rank);
          multiply(p.units[k].into[b], row, end, upto(k - 1, begin - 1), upto(k - 1, rank), p.units[k - 1].u,
                   p.units[k].z);
          if (k < outputs()) finish(k, row, end);
        }
        for (int f = upto(0, rank); f < upto(0, rank + 1); ++f)
          masked_element(p, at(p.other + f), parameters(f), V, at(p.units[0].u + f), logabsdet);
      }
    }
  }

  void forward() const {
    alignas(64) S logabsdet[R];
    fill(logabsdet, S(0));
    const int u = p.units[0].u;
    if (p.inverse) {
      read_layer(0, p.y, p.other);
      solve(logabsdet);
      write_features(u);
    } else {
      read_layer(0, p.x, u);
      evaluate();
      elements(u, p.other, logabsdet);
      write_features(p.other);
    }
    for (int n = 0; n < samples; ++n) p.logabsdet[first + n] = logabsdet[n];
  }

  // Backward. The rows `grad` of a layer first gather the cotangents of u, and then hold those of
  // W u + b; the features' hold those of x, and then those of what was given.

  // From the cotangents of u' to those of W u + b in the rows [row, end) of a hidden layer.
  void finish_back(int k, int row, int end) const {
    const MaskedUnits<S>& layer = p.units[k];
    alignas(64) S gate[R], more[2][R];
    for (int r = row; r < end; ++r) {
      const int unit = int(layer.order[r]);
      const S *z = at(layer.z + r), *skipped = layer.grad_skip < 0 ? nullptr : at(layer.grad_skip + r);
      S* grad = at(layer.grad + r);
      S* past = layer.skip < 0 ? nullptr : at(p.units[layer.skip].grad_skip + place(layer.skip, unit));
      if (layer.gate.base) read(layer.gate, unit, gate);
      const S gain = layer.gain.base ? layer.gain.base[unit * layer.gain.feature] : S(1);
      const S offset = layer.offset.base ? layer.offset.base[unit * layer.offset.feature] : S(0);
      each_vector([&](int i) FLOWKERN_INLINE {
        const T z_i = load(z + i), a = fma(T(gain), z_i, T(offset));
        const T g_a = load(grad + i) * activation_derivative(layer.activation, layer.slope, a);
        store(more[0] + i, g_a * z_i);
        store(more[1] + i, g_a);
        T g_z = g_a * T(gain);
        if (skipped) g_z = g_z + load(skipped + i);
        if (past) store(past + i, load(past + i) + g_z);
        store(grad + i, g_z);
      });
      add_vector(layer, kGain, r, unit, more[0]);
      add_vector(layer, kOffset, r, unit, more[1]);
      if (layer.gate.base) finish_gate(layer, r, gate);
      add_vector(layer, kBias, r, unit, grad);
    }
  }

  void finish_gate(const MaskedUnits<S>& layer, int r, const S* gate) const {
    alignas(64) S of_gate[R];
    S* grad = at(layer.grad + r);
    each_vector([&](int i) FLOWKERN_INLINE {
      const T g_z = load(grad + i);
      store(of_gate + i, g_z * load(at(layer.v + r) + i));
      store(grad + i, g_z * load(gate + i));
    });
    add_vector(layer, kGate, r, layer.order[r], of_gate);
  }

  // Passes on a unit's part of the gradient of one of its layer's vectors.
  void add_vector(const MaskedUnits<S>& layer, int which, int r, int64_t unit, const S* grad) const {
    const VectorGradient<S>& to = layer.vectors[which];
    if (to.rows) for (int n = 0; n < samples; ++n) to.rows[unit * p.rows + first + n] = grad[n];
    if (to.sums < 0) return;
    T total = load(grad);
    each<V, 1>(V, [&](int v) FLOWKERN_INLINE { total = total + load(grad + v * lanes); });
    memory.chunk[to.sums + r] += sum_lanes(total);
  }
  static FLOWKERN_HD S sum_lanes(T total) {
    if constexpr (lanes > 1) return sum(total);
    else return total;
  }

  // Adds Σ_n v̄[row][n]·u[column][n] to the sums of a layer's weight, `lanes` rows at a time with the
  // samples in turn.
  void add_weight(int k) const {
    const MaskedUnits<S>& layer = p.units[k];
    if (!layer.groups) return;
    for (int group = 0; group * lanes < layer.used; ++group) {
      T v[R];
      load_tile<R>(at(layer.grad + group * lanes), R, R, v);
      S* sums = memory.chunk + layer.groups[group];
      const int columns = int((layer.groups[group + 1] - layer.groups[group]) / lanes);
      for (int c = 0; c < columns; c += kColumns) {
        const S* u = at(p.units[k - 1].u + c);
        T sum[kColumns];
        each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE { sum[i] = load(sums + (c + i) * lanes); });
        for (int n = 0; n < R; ++n)
          each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE { sum[i] = fma(T(u[i * R + n]), v[n], sum[i]); });
        each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE { store(sums + (c + i) * lanes, sum[i]); });
      }
    }
  }

  // Cotangents of a feature's input and parameters; the former takes the place of its output's.
  void element_back(int f, const S* g_logabsdet) const {
    const MaskedUnits<S>& last = p.units[outputs()];
    const S* in = at((p.inverse ? p.other : p.units[0].u) + f);
    S *grad = at(p.units[0].grad + f), *g_params = at(last.grad + f * p.parameters);
    masked_element_vjp(p, in, parameters(f), V, grad, g_logabsdet, grad, g_params);
    for (int i = f * p.parameters; i < (f + 1) * p.parameters; ++i)
      add_vector(last, kBias, i, unit(outputs(), i), at(last.grad + i));
  }

  // Adds to units [begin, stop) of layer k what units [row, end) of block b behind them send back.
  void send_back(int k, int b, int begin, int stop, int row, int end) const {
    if (stop <= begin) return;
    each_group(p.units[k + 1].into[b], row, end, [&]<int n>(Rows<n>, int row, const S* w) FLOWKERN_INLINE {
      multiply_back<n>(w + int64_t(begin) * kPanel, at(p.units[k + 1].grad + row), stop - begin,
                       at(p.units[k].grad + begin));
    });
  }

  // Every element first, then layer by layer.
  void back(const S* g_logabsdet) const {
    for (int f = 0; f < p.units[0].used; ++f) element_back(f, g_logabsdet);
    for (int k = outputs() - 1; k >= 0; --k) {
      for (int b = 0; b < p.blocks; ++b) {
        const Panels<S>& m = p.units[k + 1].into[b];
        send_back(k, b, 0, m.columns, m.row, m.end);
      }
      if (k > 0) finish_back(k, 0, p.units[k].used);
    }
  }

  // The transposed solve: block after block rank by rank, descending, and then what its units send to
  // earlier ones.
  void solve_back(const S* g_logabsdet) const {
    for (int b = p.blocks - 1; b >= 0; --b) {
      const int begin = p.first[b], last = p.first[b + 1] - 1;
      for (int rank = last; rank >= begin; --rank) {
        send_back(0, b, upto(0, rank), upto(0, rank + 1), upto(1, rank), upto(1, last));
        for (int f = upto(0, rank); f < upto(0, rank + 1); ++f) element_back(f, g_logabsdet);
        for (int k = outputs() - 1; k > 0; --k) {
          const int row = upto(k, rank - 1), end = upto(k, rank);
          send_back(k, b, row, end, upto(k + 1, rank - 1), upto(k + 1, last));
          finish_back(k, row, end);
        }
      }
      for (int k = outputs() - 1; k >= 0; --k)
        send_back(k, b, 0, upto(k, begin - (k > 0)), upto(k + 1, begin - 1), upto(k + 1, last));
    }
  }

  void clear_grads() const {
    for (int k = 1; k < outputs(); ++k) {
      const MaskedUnits<S>& layer = p.units[k];
      for (int r = 0; r < layer.used; ++r) {
        fill(at(layer.grad + r), S(0));
        if (layer.grad_skip >= 0) fill(at(layer.grad_skip + r), S(0));
      }
    }
  }

  void backward() const {
    alignas(64) S g_logabsdet[R];
    read(p.grad_logabsdet, 0, g_logabsdet);
    clear_rest(g_logabsdet);
    read_layer(0, p.x, p.units[0].u);
    if (p.inverse) read_layer(0, p.y, p.other);
    read_cotangents(p.grad_out, p.units[0].grad);
    evaluate();
    clear_grads();
    if (p.inverse) solve_back(g_logabsdet);
    else back(g_logabsdet);
    write_features(p.units[0].grad);
    for (int k = 1; k < p.layers; ++k) add_weight(k);
  }
};

template <class S, int V> Tile<S, V> tile(const MaskedProblem<S>& p, int64_t row, int samples, MaskedMemory<S> memory) {
  return {p, row, samples, memory};
}

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                         \
  MaskedShape masked_shape(S) {                                                                     \
    return {kPanel, Lanes<Vec<S>>::count, kWide * Lanes<Vec<S>>::count, kNarrow * Lanes<Vec<S>>::count}; \
  }                                                                                                 \
  void masked_forward(const MaskedProblem<S>& p, int64_t row, int samples, bool wide,    \
                      MaskedMemory<S> memory) {                                                     \
    wide ? tile<S, kWide>(p, row, samples, memory).forward()                                        \
         : tile<S, kNarrow>(p, row, samples, memory).forward();                                     \
  }                                                                                                 \
  void masked_backward(const MaskedProblem<S>& p, int64_t row, int samples, bool wide,   \
                       MaskedMemory<S> memory) {                                                    \
    wide ? tile<S, kWide>(p, row, samples, memory).backward()                                       \
         : tile<S, kNarrow>(p, row, samples, memory).backward();                                    \
  }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
