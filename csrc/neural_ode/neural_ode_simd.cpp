// The neural ODE solve on the samples of a tile: state, stages and network stay in cache from the
// first step to the last. Symbols: flowkern/ops/neural_ode/README.md.
#include "neural_ode_cpu.h"

#include "../common/activation.h"
#include "../common/panel_product.h"

FLOWKERN_BEGIN
namespace {

using std::int64_t;

// A weight's gradient is summed for two vectors of rows by as many columns as registers allow.
#if defined(__AVX512F__)
constexpr int kColumns = 8;
#else
constexpr int kColumns = 4;
#endif

template <class S, int V> struct Tile {
  using T = Vec<S>;
  static constexpr int lanes = Lanes<T>::count, R = V * lanes;
  const OdeProblem<S>& p;
  int64_t first;
  int samples;
  OdeMemory<S> memory;

  FLOWKERN_HD S* at(int row) const { return memory.tile + int64_t(row) * R; }
  FLOWKERN_HD int frame(int i) const { return p.of_frames + i * p.frame; }
  FLOWKERN_HD int hidden() const { return p.layers - 1; }

  template <class F> static FLOWKERN_HD void each_vector(const F& body) {
    each<V>(V, [&](int v) FLOWKERN_INLINE { body(v * lanes); });
  }
  void fill(int row, int count, S value) const {
    for (int i = 0; i < count * R; i += lanes) store(at(row) + i, T(value));
  }
  void copy(int from, int count, int to) const {
    for (int i = 0; i < count * R; i += lanes) store(at(to) + i, load(at(from) + i));
  }
  // `count` columns of a matrix (N, count); lanes without a sample repeat the last.
  void read(const S* from, int64_t row, int64_t column, int count, int to) const {
    for (int c = 0; c < count; ++c)
      for (int n = 0; n < R; ++n)
        at(to + c)[n] = from[(first + (n < samples ? n : samples - 1)) * row + c * column];
  }
  // Adds cotangents; lanes without a sample have none.
  void read_cotangent(const S* from, int64_t row, int64_t column, int count, int to) const {
    for (int c = 0; c < count; ++c)
      for (int n = 0; n < samples; ++n) at(to + c)[n] += from[(first + n) * row + c * column];
  }
  void write(int from, int count, S* to, int64_t row, int64_t column) const {
    for (int c = 0; c < count; ++c)
      for (int n = 0; n < samples; ++n) to[(first + n) * row + c * column] = at(from + c)[n];
  }

  // to = y + h Σ_j coefficient[j]·k_j on `count` rows; k_j are `apart` rows apart.
  void combine(int y, S h, const S* coefficient, int stages, int k, int apart, int count, int to) const {
    for (int r = 0; r < count; ++r)
      each_vector([&](int i) FLOWKERN_INLINE {
        T sum = T(S(0));
        for (int j = 0; j < stages; ++j)
          if (coefficient[j] != S(0)) sum = fma(T(coefficient[j]), load(at(k + j * apart + r) + i), sum);
        store(at(to + r) + i, fma(T(h), sum, load(at(y + r) + i)));
      });
  }
  // Σ of rows a·b over `count` rows, added to the row `to` with a factor.
  void add_dot(int a, int b, int count, S factor, int to) const {
    each_vector([&](int i) FLOWKERN_INLINE {
      T sum = T(S(0));
      for (int r = 0; r < count; ++r) sum = fma(load(at(a + r) + i), load(at(b + r) + i), sum);
      store(at(to) + i, fma(T(factor), sum, load(at(to) + i)));
    });
  }
  const S* row_of_a(int i) const { return p.a + i * (i - 1) / 2; }

  void multiply(const S* w, int rows, int columns, int u, const S* bias, int out) const {
    PanelProduct<S, V>::multiply(w, rows, columns, at(u), bias, at(out));
  }

  // The field. `order` is that of the derivatives which a frame keeps.

  template <int order> void activate(const OdeLayer<S>& layer, int at_frame, bool add_row_bias) const {
    by_activation(layer.activation, [&](auto kind) FLOWKERN_INLINE {
      for (int r = 0; r < layer.units; ++r)
        each_vector([&](int i) FLOWKERN_INLINE {
          T z = load(at(at_frame + layer.u + r) + i);
          if (add_row_bias) z = z + load(at(p.of_bias + r) + i);
          const Jet<T> jet = activation_jet<decltype(kind)::value, order>(layer.slope, z);
          store(at(at_frame + layer.u + r) + i, jet.u);
          if (order > 0) store(at(at_frame + layer.d + r) + i, jet.d);
          if (order > 1) store(at(at_frame + layer.e + r) + i, jet.e);
        });
    });
  }

  // f at the frame's x.
  void evaluate(int order, int at_frame, const S* bias) const {
    int u = at_frame + p.at_x;
    for (int l = 0; l < p.layers; ++l) {
      const OdeLayer<S>& layer = p.layer[l];
      const int out = at_frame + (l < hidden() ? layer.u : p.at_f);
      multiply(layer.into, layer.units, layer.inputs, u, l == 0 ? bias : layer.bias, out);
      const bool add = l == 0 && p.row_bias;
      if (l == hidden()) {
        for (int i = 0; add && i < layer.units * R; i += lanes)
          store(at(out) + i, load(at(out) + i) + load(at(p.of_bias) + i));
        return;
      }
      if (order == 0) activate<0>(layer, at_frame, add);
      else if (order == 1) activate<1>(layer, at_frame, add);
      else activate<2>(layer, at_frame, add);
      u = out;
    }
  }

  // At what rates the integrals grow: the trace, ‖f‖² and the Jacobian's norm.
  void rates(int at_frame, int to) const {
    fill(to, 3, S(0));
    if (p.kinetic) add_dot(at_frame + p.at_f, at_frame + p.at_f, p.features, S(1), to + 1);
    if (p.trace == kNoTrace) return;
    const OdeLayer<S>& last = p.layer[hidden() - (hidden() > 0)];
    if (p.trace == kClosedVector) {
      each_vector([&](int i) FLOWKERN_INLINE {
        T sum = T(S(0));
        for (int r = 0; r < last.units; ++r) sum = fma(T(p.closed[r]), load(at(at_frame + last.d + r) + i), sum);
        store(at(to) + i, sum);
      });
    } else if (p.trace == kClosedMatrix) {
      multiply(p.closed, last.units, last.inputs, at_frame + p.layer[0].d, nullptr, at_frame + p.at_s);
      add_dot(at_frame + last.d, at_frame + p.at_s, last.units, S(1), to);
    } else {
      for (int m = 0; m < p.directions; ++m) push(at_frame, m, to);
    }
  }

  int direction(int at_frame, int m) const { return at_frame + p.at_directions + m * p.per_direction; }

  // Pushes direction m through the network.
  void push(int at_frame, int m, int to) const {
    const int own = direction(at_frame, m), epsilon = p.of_epsilon + m * ode_padded(p.features);
    int v = epsilon;
    for (int l = 0; l < hidden(); ++l) {
      const OdeLayer<S>& layer = p.layer[l];
      multiply(layer.into, layer.units, layer.inputs, v, nullptr, own + layer.w);
      scale(own + layer.w, at_frame + layer.d, layer.units, own + layer.v);
      v = own + layer.v;
    }
    const OdeLayer<S>& last = p.layer[hidden()];
    multiply(last.into, last.units, last.inputs, v, nullptr, own + p.at_j);
    add_dot(epsilon, own + p.at_j, p.features, p.weight, to);
    if (p.jacobian) add_dot(own + p.at_j, own + p.at_j, p.features, p.weight, to + 2);
  }

  void scale(int a, int b, int count, int to) const {
    for (int i = 0; i < count * R; i += lanes) store(at(to) + i, load(at(a) + i) * load(at(b) + i));
  }

  // The solve.

  const S* bias_of(int n, int i) const { return p.first + (int64_t(n) * p.stages + i) * p.layer[0].units; }
  int k(int i) const { return p.of_k + i * ode_padded(p.features); }
  int rate(int i) const { return p.of_rate + i * 3; }

  // One step from the state in rows y to the rows `to`; with integrals, those are advanced too.
  void advance(int n, int y, int to, bool integrals) const {
    const S h = p.h[n];
    const int order = integrals && p.trace != kNoTrace ? 1 : 0, width = ode_padded(p.features);
    for (int i = 0; i < p.stages; ++i) {
      combine(y, h, row_of_a(i), i, p.of_k, width, p.features, frame(0) + p.at_x);
      evaluate(order, frame(0), bias_of(n, i));
      copy(frame(0) + p.at_f, p.features, k(i));
      if (integrals) rates(frame(0), rate(i));
    }
    combine(y, h, p.b, p.stages, p.of_k, width, p.features, to);
    if (integrals) combine(p.of_sums, h, p.b, p.stages, p.of_rate, 3, 3, p.of_sums);
  }

  void read_inputs() const {
    if (p.row_bias) read(p.row_bias, p.layer[0].units, 1, p.layer[0].units, p.of_bias);
    for (int m = 0; m < p.directions; ++m)
      read(p.epsilon + m * p.epsilon_stride[0], p.epsilon_stride[1], p.epsilon_stride[2], p.features,
           p.of_epsilon + m * ode_padded(p.features));
  }

  void forward() const {
    read_inputs();
    read(p.y, p.features, 1, p.features, p.of_y);
    fill(p.of_sums, 3, S(0));
    const bool integrals = p.trace != kNoTrace || p.kinetic;
    for (int n = 0; n < p.steps; ++n) {
      advance(n, p.of_y, p.of_y, integrals);
      if ((n + 1) % p.every) continue;
      const int64_t kept = n / p.every;
      write(p.of_y, p.features, p.path + kept * p.rows * p.features, p.features, 1);
      write(p.of_sums, 3, p.sums + kept * 3 * p.rows, 1, p.rows);
    }
  }

  // Backward.

  static FLOWKERN_HD S sum_lanes(T total) {
    if constexpr (lanes > 1) return sum(total);
    else return total;
  }
  S total(int row) const {
    T sum = load(at(row));
    each<V, 1>(V, [&](int v) FLOWKERN_INLINE { sum = sum + load(at(row) + v * lanes); });
    return sum_lanes(sum);
  }
  void add_totals(int rows, int count, S factor, S* to) const {
    for (int r = 0; r < count; ++r) to[r] += factor * total(rows + r);
  }

  // Adds factor·Σ_n v[row][n]·u[column][n] to sums [group of 2·lanes rows][column][2·lanes].
  void add_products(int v, int rows, int u, int columns, S factor, int64_t to) const {
    for (int row = 0; row < rows; row += 2 * lanes) {
      T of_v[2][R];
      load_tile<R>(at(v + row), R, R, of_v[0]);
      load_tile<R>(at(v + row + lanes), R, R, of_v[1]);
      for (int n = 0; n < R; ++n) of_v[0][n] = of_v[0][n] * T(factor), of_v[1][n] = of_v[1][n] * T(factor);
      S* sums = memory.chunk + to + int64_t(row) * ode_columns(columns);
      for (int c = 0; c < columns; c += kColumns) {
        const S* of_u = at(u + c);
        T sum[2][kColumns];
        each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE {
          sum[0][i] = load(sums + (c + i) * 2 * lanes), sum[1][i] = load(sums + (c + i) * 2 * lanes + lanes);
        });
        for (int n = 0; n < R; ++n)
          each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE {
            const T value = T(of_u[i * R + n]);
            sum[0][i] = fma(value, of_v[0][n], sum[0][i]), sum[1][i] = fma(value, of_v[1][n], sum[1][i]);
          });
        each<kColumns>(kColumns, [&](int i) FLOWKERN_INLINE {
          store(sums + (c + i) * 2 * lanes, sum[0][i]), store(sums + (c + i) * 2 * lanes + lanes, sum[1][i]);
        });
      }
    }
  }

  // The same of a layer's weight; the longer side goes along the lanes.
  void add_weight(const OdeLayer<S>& layer, int z, int u, S factor) const {
    if (layer.units >= layer.inputs) add_products(z, layer.units, u, layer.inputs, factor, layer.weight_sums);
    else add_products(u, layer.inputs, z, layer.units, factor, layer.weight_sums);
  }

  int given(int at_frame, int l) const { return at_frame + (l == 0 ? p.at_x : p.layer[l - 1].u); }

  // What the trace and the Jacobian's norm add to the cotangents of each W u + b: the rows `extra`.
  // cot: the rows τ of the trace's, of ‖f‖²'s and of the norm's cotangent.
  void trace_back(int at_frame, int cot, S factor) const {
    if (p.trace == kClosedVector) closed_vector_back(at_frame, cot, factor);
    else if (p.trace == kClosedMatrix) closed_matrix_back(at_frame, cot, factor);
    else if (p.trace == kDirections) {
      for (int l = 0; l < hidden(); ++l) fill(p.layer[l].extra, p.layer[l].units, S(0));
      for (int m = 0; m < p.directions; ++m) push_back(at_frame, m, cot, factor);
    }
  }

  void closed_vector_back(int at_frame, int cot, S factor) const {
    const OdeLayer<S>& layer = p.layer[0];
    for (int r = 0; r < layer.units; ++r)
      each_vector([&](int i) FLOWKERN_INLINE {
        const T tau = load(at(cot) + i);
        store(at(layer.extra + r) + i, tau * T(p.closed[r]) * load(at(at_frame + layer.e + r) + i));
        store(at(p.of_q + r) + i, tau * load(at(at_frame + layer.d + r) + i));
      });
    add_totals(p.of_q, layer.units, factor, memory.chunk + p.closed_sums);
  }

  void closed_matrix_back(int at_frame, int cot, S factor) const {
    const OdeLayer<S>&one = p.layer[0], &two = p.layer[1];
    for (int r = 0; r < two.units; ++r)  // q = τ d₂
      each_vector([&](int i) FLOWKERN_INLINE {
        const T tau = load(at(cot) + i);
        store(at(two.extra + r) + i, tau * load(at(at_frame + p.at_s + r) + i) * load(at(at_frame + two.e + r) + i));
        store(at(p.of_q + r) + i, tau * load(at(at_frame + two.d + r) + i));
      });
    add_products(p.of_q, two.units, at_frame + one.d, one.units, factor, p.closed_sums);
    multiply(p.closed_back, one.units, two.units, p.of_q, nullptr, p.of_g);
    scale(p.of_g, at_frame + one.e, one.units, one.extra);
  }

  // Pulls the cotangent of J ε back through the network's derivative.
  void push_back(int at_frame, int m, int cot, S factor) const {
    const int own = direction(at_frame, m), epsilon = p.of_epsilon + m * ode_padded(p.features);
    int g = p.of_q, next = p.of_g;
    for (int r = 0; r < p.features; ++r)
      each_vector([&](int i) FLOWKERN_INLINE {
        T sum = load(at(cot) + i) * load(at(epsilon + r) + i);
        if (p.jacobian) sum = fma(load(at(cot + 2) + i) * T(S(2)), load(at(own + p.at_j + r) + i), sum);
        store(at(g + r) + i, T(p.weight) * sum);
      });
    for (int l = hidden(); l >= 0; --l) {
      const OdeLayer<S>& layer = p.layer[l];
      if (l < hidden())
        for (int r = 0; r < layer.units; ++r)
          each_vector([&](int i) FLOWKERN_INLINE {
            const T of_v = load(at(g + r) + i);
            const T more = of_v * load(at(own + layer.w + r) + i) * load(at(at_frame + layer.e + r) + i);
            store(at(layer.extra + r) + i, load(at(layer.extra + r) + i) + more);
            store(at(g + r) + i, of_v * load(at(at_frame + layer.d + r) + i));
          });
      add_weight(layer, g, l == 0 ? epsilon : own + p.layer[l - 1].v, factor);
      if (l == 0) return;
      multiply(layer.back, layer.inputs, layer.units, g, nullptr, next);
      const int swap = g;
      g = next, next = swap;
    }
  }

  // From the cotangents of f (rows fbar, changed) and of the rates to that of y (rows `to`); adds factor
  // times what the parameters receive to their sums.
  void field_back(int at_frame, int64_t stage, int fbar, int cot, S factor, int to) const {
    if (p.kinetic)
      for (int r = 0; r < p.features; ++r)
        each_vector([&](int i) FLOWKERN_INLINE {
          const T two = load(at(cot + 1) + i) * T(S(2));
          store(at(fbar + r) + i, fma(two, load(at(at_frame + p.at_f + r) + i), load(at(fbar + r) + i)));
        });
    trace_back(at_frame, cot, factor);
    int z = fbar;
    for (int l = hidden(); l >= 0; --l) {
      const OdeLayer<S>& layer = p.layer[l];
      if (l < hidden()) z = layer.grad, finish_back(layer, at_frame);
      add_weight(layer, z, given(at_frame, l), factor);
      if (l > 0 && layer.bias) add_totals(z, layer.units, factor, memory.chunk + layer.bias_sums);
      if (l == 0) first_back(layer, stage, z, factor);
      multiply(layer.back, layer.inputs, layer.units, z, nullptr, l == 0 ? to : p.of_g);
    }
  }

  void finish_back(const OdeLayer<S>& layer, int at_frame) const {
    for (int i = 0; i < layer.units * R; i += lanes) {
      T z = load(at(p.of_g) + i) * load(at(at_frame + layer.d) + i);
      if (p.trace != kNoTrace) z = z + load(at(layer.extra) + i);
      store(at(layer.grad) + i, z);
    }
  }

  void first_back(const OdeLayer<S>& layer, int64_t stage, int z, S factor) const {
    add_totals(z, layer.units, factor, memory.chunk + p.first_sums + stage * layer.units);
    if (!p.row_bias) return;
    for (int i = 0; i < layer.units * R; i += lanes)
      store(at(p.of_grad_bias) + i, fma(T(factor), load(at(z) + i), load(at(p.of_grad_bias) + i)));
  }

  int ybar(int i) const { return p.of_ybar + i * ode_padded(p.features); }
  int order() const { return p.trace == kNoTrace ? 1 : 2; }

  // The gradient of step n as it was taken from the state in rows y: λ from its end to its begin.
  void step_back(int n, int y) const {
    const S h = p.h[n];
    const int width = ode_padded(p.features), of_h = p.of_cot + 3;
    for (int i = 0; i < p.stages; ++i) {
      combine(y, h, row_of_a(i), i, p.of_k, width, p.features, frame(i) + p.at_x);
      evaluate(order(), frame(i), bias_of(n, i));
      copy(frame(i) + p.at_f, p.features, k(i));
      rates(frame(i), rate(i));
    }
    fill(of_h, 1, S(0));
    for (int i = p.stages - 1; i >= 0; --i) {
      add_dot(p.of_lambda, k(i), p.features, p.b[i], of_h);
      add_dot(p.of_mu, rate(i), 3, p.b[i], of_h);
      stage_cotangent(i, h);
      field_back(frame(i), int64_t(n) * p.stages + i, p.of_fbar, p.of_cot, S(1), ybar(i));
      for (int j = 0; j < i; ++j) add_dot(ybar(i), k(j), p.features, row_of_a(i)[j], of_h);
    }
    for (int i = 0; i < p.stages; ++i) add(ybar(i), p.features, p.of_lambda);
    memory.chunk[p.step_sums + n] += total(of_h);
  }

  // Cotangents of stage i's slope and rates: h b_i (λ, μ) + h Σ_{j>i} a_ji Ȳ_j.
  void stage_cotangent(int i, S h) const {
    for (int r = 0; r < p.features; ++r)
      each_vector([&](int v) FLOWKERN_INLINE {
        T sum = T(p.b[i]) * load(at(p.of_lambda + r) + v);
        for (int j = i + 1; j < p.stages; ++j)
          if (row_of_a(j)[i] != S(0)) sum = fma(T(row_of_a(j)[i]), load(at(ybar(j) + r) + v), sum);
        store(at(p.of_fbar + r) + v, T(h) * sum);
      });
    for (int v = 0; v < 3 * R; v += lanes) store(at(p.of_cot) + v, T(h * p.b[i]) * load(at(p.of_mu) + v));
  }

  // One step of the adjoint equation, back from the state in rows y.
  void adjoint_step(int n, int y) const {
    const S h = p.h[n];
    const int width = ode_padded(p.features), of_h = p.of_cot + 3;
    fill(of_h, 1, S(0));
    for (int i = 0; i < p.stages; ++i) {
      combine(y, S(0) - h, row_of_a(i), i, p.of_k, width, p.features, frame(0) + p.at_x);
      combine(p.of_lambda, h, row_of_a(i), i, p.of_ybar, width, p.features, p.of_fbar);
      evaluate(order(), frame(0), bias_of(n, i));
      copy(frame(0) + p.at_f, p.features, k(i));
      rates(frame(0), rate(i));
      add_dot(p.of_fbar, k(i), p.features, p.b[i], of_h);
      add_dot(p.of_mu, rate(i), 3, p.b[i], of_h);
      field_back(frame(0), int64_t(n) * p.stages + i, p.of_fbar, p.of_mu, h * p.b[i], ybar(i));
    }
    combine(y, S(0) - h, p.b, p.stages, p.of_k, width, p.features, y);
    combine(p.of_lambda, h, p.b, p.stages, p.of_ybar, width, p.features, p.of_lambda);
    memory.chunk[p.step_sums + n] += total(of_h);
  }

  void add(int from, int count, int to) const {
    for (int i = 0; i < count * R; i += lanes) store(at(to) + i, load(at(to) + i) + load(at(from) + i));
  }

  int state(int j) const { return p.of_states + j * ode_padded(p.features); }

  // The states from which steps [n, n + every) begin, by taking the steps again.
  void states_from(int n) const {
    const int64_t kept = n / p.every - 1;
    read(kept < 0 ? p.y : p.kept + kept * p.rows * p.features, p.features, 1, p.features, state(0));
    for (int j = 0; j + 1 < p.every; ++j) advance(n + j, state(j), state(j + 1), false);
  }

  void backward() const {
    read_inputs();
    fill(p.of_lambda, p.features, S(0));
    fill(p.of_mu, 3, S(0));
    if (p.row_bias) fill(p.of_grad_bias, p.layer[0].units, S(0));
    for (int n = p.steps - 1; n >= 0; --n) {
      if ((n + 1) % p.every == 0) {
        const int64_t kept = n / p.every;
        read_cotangent(p.grad_path + kept * p.rows * p.features, p.features, 1, p.features, p.of_lambda);
        read_cotangent(p.grad_sums + kept * 3 * p.rows, 1, p.rows, 3, p.of_mu);
        if (p.adjoint) read(p.kept + kept * p.rows * p.features, p.features, 1, p.features, p.of_y);
        else states_from(n + 1 - p.every);
      }
      if (p.adjoint) adjoint_step(n, p.of_y);
      else step_back(n, state(n % p.every));
    }
    write(p.of_lambda, p.features, p.grad_y, p.features, 1);
    if (p.row_bias) write(p.of_grad_bias, p.layer[0].units, p.grad_row_bias, p.layer[0].units, 1);
  }
};

template <class S, int V> Tile<S, V> tile(const OdeProblem<S>& p, int64_t row, int samples, OdeMemory<S> memory) {
  return {p, row, samples, memory};
}

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                              \
  OdeShape ode_shape(S) {                                                                                \
    constexpr int lanes = Lanes<Vec<S>>::count;                                                          \
    return {kPanelRows, lanes, kWideTile * lanes, kNarrowTile * lanes};                                  \
  }                                                                                                      \
  void ode_forward(const OdeProblem<S>& p, int64_t row, int samples, bool wide, OdeMemory<S> memory) {   \
    wide ? tile<S, kWideTile>(p, row, samples, memory).forward()                                         \
         : tile<S, kNarrowTile>(p, row, samples, memory).forward();                                      \
  }                                                                                                      \
  void ode_backward(const OdeProblem<S>& p, int64_t row, int samples, bool wide, OdeMemory<S> memory) {  \
    wide ? tile<S, kWideTile>(p, row, samples, memory).backward()                                        \
         : tile<S, kNarrowTile>(p, row, samples, memory).backward();                                     \
  }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
