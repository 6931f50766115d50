// The field of the neural ODE solve on the samples of a tile, its trace, and the way back through both.
// A frame holds what one evaluation leaves. Symbols: flowkern/ops/_neural_ode/README.md.
#pragma once

#include "tile.h"

#include "../common/activation.h"
#include "../common/sincos.h"

#include <utility>

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct OdeField : OdeTile<S, V> {
  using Tile = OdeTile<S, V>;
  using T = typename Tile::T;
  using Rows = typename Tile::Rows;
  using Tile::p, Tile::memory, Tile::rows, Tile::each_row, Tile::fill, Tile::scale, Tile::add_dot,
      Tile::multiply, Tile::add_totals, Tile::add_products, Tile::add_weight;

  FLOWKERN_HD int hidden() const { return p.layers - 1; }

  // A step of an interval, and the time c steps after its begin.
  struct Step {
    int interval, n;
    S h, start;
    FLOWKERN_HD S time(S c) const { return start + (S(n) + c) * h; }
  };
  Step step(int n) const {
    const int k = n / p.steps;
    return {k, n % p.steps, p.sizes[k], p.starts[k]};
  }

  S* numbers(int place) const { return memory.tile + int64_t(p.memory) * Tile::R + place; }

  // What the first layer adds at time t for all samples, b + W φ(t).
  void embed(S t) const {
    const OdeLayer<S>& layer = p.layer[0];
    S *first = numbers(p.of_first), *phi = numbers(p.of_phi);
    for (int r = 0; r < layer.units; ++r) first[r] = layer.bias ? layer.bias[r] : S(0);
    if (p.phi == 0) return;
    put_phi(t, phi);
    for (int q = 0; q < p.phi; ++q) {
      const S *column = p.time + q * ode_padded(layer.units), value = phi[q];
      for (int r = 0; r < layer.units; ++r) first[r] += column[r] * value;
    }
  }
  void put_phi(S t, S* phi) const {
    phi[0] = t;
    for (int f = 0; f < p.frequencies; ++f) sincos(p.omega[f] * t, phi[p.frequencies + f], phi[f]);
  }

  // f at time t and the frame's x. `order` is that of the derivatives which the frame keeps.
  void evaluate(int order, int at_frame, S t) const {
    embed(t);
    int u = at_frame + p.at_x;
    for (int l = 0; l < p.layers; ++l) {
      const OdeLayer<S>& layer = p.layer[l];
      const int out = at_frame + (l < hidden() ? layer.u : p.at_f);
      const S* b = l == 0 ? numbers(p.of_first) : layer.bias;
      const Rows to = rows(out), of_row = rows(p.of_bias);
      const bool by_row = l == 0 && p.row_bias;
      auto start = [=](int r, int i) FLOWKERN_INLINE {
        const T all = T(b ? b[r] : S(0));
        return by_row ? all + of_row(r, i) : all;
      };
      auto finish = [=](int r, int i, T z) FLOWKERN_INLINE { to.put(r, i, z); };
      multiply(layer.into, layer.units, layer.inputs, u, start, finish);
      if (l == hidden()) return;
      if (order == 0) activate<0>(layer, at_frame);
      else if (order == 1) activate<1>(layer, at_frame);
      else activate<2>(layer, at_frame);
      u = out;
    }
  }

  template <int order> void activate(const OdeLayer<S>& layer, int at_frame) const {
    const Rows u = rows(at_frame + layer.u), d = rows(at_frame + layer.d), e = rows(at_frame + layer.e);
    const int units = layer.units;
    const S slope = layer.slope;
    by_activation(layer.activation, [=](auto kind) FLOWKERN_INLINE {
      each_row(units, [=](int r, int i) FLOWKERN_INLINE {
        const Jet<T> jet = activation_jet<decltype(kind)::value, order>(slope, u(r, i));
        u.put(r, i, jet.u);
        if (order > 0) d.put(r, i, jet.d);
        if (order > 1) e.put(r, i, jet.e);
      });
    });
  }

  // At what rates the integrals grow: the trace, ‖f‖² and the Jacobian's norm.
  void rates(int at_frame, int to) const {
    fill(to, 3, S(0));
    if (p.kinetic) add_dot(at_frame + p.at_f, at_frame + p.at_f, p.features, S(1), to + 1);
    if (p.trace == kNoTrace) return;
    const OdeLayer<S>& last = p.layer[hidden() - (hidden() > 0)];
    if (p.trace == kClosedVector) {
      multiply(p.closed, 1, last.units, at_frame + last.d, to);
    } else if (p.trace == kClosedMatrix) {
      multiply(p.closed, last.units, last.inputs, at_frame + p.layer[0].d, at_frame + p.at_s);
      add_dot(at_frame + last.d, at_frame + p.at_s, last.units, S(1), to);
    } else {
      for (int m = 0; m < p.directions; ++m) push(at_frame, m, to);
    }
  }

  int epsilon(int m) const { return p.of_epsilon + m * ode_padded(p.features); }
  int direction(int at_frame, int m) const { return at_frame + p.at_directions + m * p.per_direction; }
  // W₁ε, and what ε meets after the last layer, W_Lᵀε: the same in all evaluations.
  int first_tangent(int m) const { return p.of_directions + m * p.apart; }
  int last_cotangent(int m) const { return first_tangent(m) + ode_padded(p.layer[0].units); }
  int tangent(int own, int m, int l) const { return l == 0 ? first_tangent(m) : own + p.layer[l].w; }
  int pushed(int own, int m, int l) const { return l == 0 ? epsilon(m) : own + p.layer[l - 1].v; }

  // Pushes direction m through the network; J ε itself is formed for its norm only.
  void push(int at_frame, int m, int to) const {
    const int own = direction(at_frame, m);
    for (int l = 0; l < hidden(); ++l) {
      const OdeLayer<S>& layer = p.layer[l];
      if (l == 0) {
        scale(first_tangent(m), at_frame + layer.d, layer.units, own + layer.v);
        continue;
      }
      const Rows w = rows(own + layer.w), d = rows(at_frame + layer.d), v = rows(own + layer.v);
      auto finish = [=](int r, int i, T of_w) FLOWKERN_INLINE {
        w.put(r, i, of_w), v.put(r, i, of_w * d(r, i));
      };
      multiply(layer.into, layer.units, layer.inputs, pushed(own, m, l), finish);
    }
    const OdeLayer<S>& last = p.layer[hidden()];
    const int v = pushed(own, m, hidden());
    add_dot(last_cotangent(m), v, last.inputs, p.weight, to);
    if (!p.jacobian) return;
    multiply(last.into, last.units, last.inputs, v, own + p.at_j);
    add_dot(own + p.at_j, own + p.at_j, p.features, p.weight, to + 2);
  }

  // Backward.

  // The rows `to` receive the cotangent of x from that of f, in rows fbar, and from those of the rates,
  // in rows cot; what the parameters receive, times a factor, goes to their sums. c: steps from the begin of
  // the step to the stage.
  void field_back(int at_frame, const Step& step, S c, int fbar, int cot, S factor, int to) const {
    if (p.kinetic) kinetic_back(at_frame, fbar, cot);
    trace_back(at_frame, cot, factor);
    int z = fbar;
    for (int l = hidden(); l > 0; --l) {
      const OdeLayer<S>&layer = p.layer[l], &below = p.layer[l - 1];
      S* totals = layer.bias ? memory.chunk + layer.bias_sums : nullptr;
      add_weight(layer, z, at_frame + below.u, factor, totals);
      const Rows d = rows(at_frame + below.d), extra = rows(below.extra), grad = rows(below.grad);
      const bool traced = p.trace != kNoTrace;
      multiply(layer.back, layer.inputs, layer.units, z, [=](int r, int i, T g) FLOWKERN_INLINE {
        grad.put(r, i, traced ? fma(g, d(r, i), extra(r, i)) : g * d(r, i));
      });
      z = below.grad;
    }
    first_back(at_frame, z, factor);
    embed_back(step, c);
    multiply(p.layer[0].back, p.features, p.layer[0].units, z, to);
  }

  void kinetic_back(int at_frame, int fbar, int cot) const {
    const Rows f = rows(at_frame + p.at_f), grad = rows(fbar), of_f2 = rows(cot + 1);
    each_row(p.features, [=](int r, int i) FLOWKERN_INLINE {
      grad.put(r, i, fma(of_f2(0, i) * T(S(2)), f(r, i), grad(r, i)));
    });
  }

  void first_back(int at_frame, int z, S factor) const {
    const OdeLayer<S>& layer = p.layer[0];
    S* totals = numbers(p.of_totals);
    for (int r = 0; r < ode_padded(layer.units); ++r) totals[r] = S(0);
    add_weight(layer, z, at_frame + p.at_x, factor, totals);
    if (!p.row_bias) return;
    const Rows from = rows(z), sum = rows(p.of_grad_bias);
    each_row(layer.units, [=](int r, int i) FLOWKERN_INLINE {
      sum.put(r, i, fma(T(factor), from(r, i), sum(r, i)));
    });
  }

  // From the totals over samples of the first layer's z̄ to the sums of b, W, ω and the stage's time.
  void embed_back(const Step& step, S c) const {
    const int units = p.layer[0].units, padded = ode_padded(units);
    const S *totals = numbers(p.of_totals), t = step.time(c);
    if (p.layer[0].bias) accumulate(totals, S(1), units, memory.chunk + p.layer[0].bias_sums);
    if (p.phi == 0) return;
    S *phi = numbers(p.of_phi), *bar = numbers(p.of_phi_bar), of_time = S(0);
    put_phi(t, phi);
    for (int q = 0; q < p.phi; ++q) {
      const S* column = p.time + q * padded;
      bar[q] = S(0);
      for (int r = 0; r < units; ++r) bar[q] += column[r] * totals[r];
      accumulate(totals, phi[q], units, memory.chunk + p.time_sums + q * padded);
    }
    for (int f = 0; f < p.frequencies; ++f) {
      const S cosine = phi[f], sine = phi[p.frequencies + f];
      const S of_angle = cosine * bar[p.frequencies + f] - sine * bar[f];
      memory.chunk[p.omega_sums + f] += t * of_angle;
      of_time += p.omega[f] * of_angle;
    }
    if (p.frequencies == 0) of_time = bar[0];
    memory.chunk[p.start_sums + step.interval] += of_time;
    memory.chunk[p.size_sums + step.interval] += (S(step.n) + c) * of_time;
  }
  static void accumulate(const S* from, S factor, int count, S* to) {
    for (int r = 0; r < count; ++r) to[r] += factor * from[r];
  }

  // What the trace and the Jacobian's norm add to the cotangents of each W u + b: the rows `extra`.
  // cot: the rows τ of the trace's, of ‖f‖²'s and of the norm's cotangent.
  void trace_back(int at_frame, int cot, S factor) const {
    if (p.trace == kClosedVector) closed_vector_back(at_frame, cot, factor);
    else if (p.trace == kClosedMatrix) closed_matrix_back(at_frame, cot, factor);
    else if (p.trace == kDirections)
      for (int m = 0; m < p.directions; ++m) push_back(at_frame, m, cot, factor);
  }

  void closed_vector_back(int at_frame, int cot, S factor) const {
    const OdeLayer<S>& layer = p.layer[0];
    const Rows d = rows(at_frame + layer.d), e = rows(at_frame + layer.e), tau = rows(cot);
    const Rows extra = rows(layer.extra), q = rows(p.of_q);
    const S* closed = p.closed_back;
    each_row(layer.units, [=](int r, int i) FLOWKERN_INLINE {
      extra.put(r, i, tau(0, i) * T(closed[r]) * e(r, i));
      q.put(r, i, tau(0, i) * d(r, i));
    });
    add_totals(p.of_q, layer.units, factor, memory.chunk + p.closed_sums);
  }

  void closed_matrix_back(int at_frame, int cot, S factor) const {
    const OdeLayer<S>&one = p.layer[0], &two = p.layer[1];
    const Rows s = rows(at_frame + p.at_s), d = rows(at_frame + two.d), tau = rows(cot);
    const Rows e1 = rows(at_frame + one.e), e2 = rows(at_frame + two.e);
    const Rows extra1 = rows(one.extra), extra2 = rows(two.extra), q = rows(p.of_q);
    each_row(two.units, [=](int r, int i) FLOWKERN_INLINE {  // q = τ d₂
      extra2.put(r, i, tau(0, i) * s(r, i) * e2(r, i));
      q.put(r, i, tau(0, i) * d(r, i));
    });
    S* sums = memory.chunk + p.closed_sums;
    add_products(p.of_q, two.units, at_frame + one.d, one.units, factor, sums, nullptr);
    auto finish = [=](int r, int i, T of_d) FLOWKERN_INLINE { extra1.put(r, i, of_d * e1(r, i)); };
    multiply(p.closed_back, one.units, two.units, p.of_q, finish);
  }

  // Pulls the cotangents of εᵀJε and ‖Jε‖² back through the network's derivative.
  void push_back(int at_frame, int m, int cot, S factor) const {
    const OdeLayer<S>& last = p.layer[hidden()];
    const int own = direction(at_frame, m), of_v = pushed(own, m, hidden());
    const Rows tau = rows(cot), v = rows(of_v), c = rows(last_cotangent(m)), sum = rows(last_sum(m));
    const T weight = T(p.weight), scaled = T(factor * p.weight);
    each_row(last.inputs, [=](int r, int i) FLOWKERN_INLINE {
      sum.put(r, i, fma(scaled * tau(0, i), v(r, i), sum(r, i)));
    });
    if (p.jacobian) norm_back(own, of_v, cot, factor);
    if (hidden() == 0) return;
    int w = p.of_q, next = p.of_g;
    auto of_trace = [=](int r, int i) FLOWKERN_INLINE { return weight * tau(0, i) * c(r, i); };
    const Pull pull = pull_to(w, at_frame, m, hidden() - 1, factor);
    if (p.jacobian) multiply(last.back, last.inputs, last.units, own + p.at_j, of_trace, pull);
    else each_row(last.inputs, [=](int r, int i) FLOWKERN_INLINE { pull(r, i, of_trace(r, i)); });
    for (int l = hidden() - 1; l > 0; --l) {
      const OdeLayer<S>& layer = p.layer[l];
      add_weight(layer, w, pushed(own, m, l), factor);
      multiply(layer.back, layer.inputs, layer.units, w, pull_to(next, at_frame, m, l - 1, factor));
      std::swap(w, next);
    }
  }

  // From q, the cotangent of row r of a layer's v: that of its w, to a row of `to`, and that of its z,
  // added to `extra`. In the first layer the former goes to its sum over the solve.
  struct Pull {
    Rows w, d, e, extra, to;
    bool adds, sums;
    T factor;
    FLOWKERN_HD void operator()(int r, int i, T q) const {
      const T of_w = q * d(r, i), of_z = q * w(r, i) * e(r, i);
      extra.put(r, i, adds ? extra(r, i) + of_z : of_z);
      to.put(r, i, sums ? fma(factor, of_w, to(r, i)) : of_w);
    }
  };
  Pull pull_to(int to, int at_frame, int m, int l, S factor) const {
    const OdeLayer<S>& layer = p.layer[l];
    const Rows w = rows(tangent(direction(at_frame, m), m, l));
    const Rows d = rows(at_frame + layer.d), e = rows(at_frame + layer.e);
    return {w, d, e, rows(layer.extra), rows(l > 0 ? to : first_sum(m)), m > 0, l == 0, T(factor)};
  }

  // Makes of J ε its cotangent from the norm's, 2 weight ρ J ε.
  void norm_back(int own, int v, int cot, S factor) const {
    const Rows j = rows(own + p.at_j), of_norm = rows(cot + 2);
    const T twice = T(2 * p.weight);
    each_row(p.features, [=](int r, int i) FLOWKERN_INLINE { j.put(r, i, twice * of_norm(0, i) * j(r, i)); });
    add_weight(p.layer[hidden()], own + p.at_j, v, factor);
  }

  // Sums over the whole solve: of v̄ before W₁'s gradient, and of τ v before W_L's.
  int first_sum(int m) const { return last_cotangent(m) + ode_padded(p.layer[hidden()].inputs); }
  int last_sum(int m) const { return first_sum(m) + ode_padded(p.layer[0].units); }

  void finish_directions() const {
    for (int m = 0; m < p.directions; ++m) {
      if (hidden() > 0) add_weight(p.layer[0], first_sum(m), epsilon(m), S(1));
      add_weight(p.layer[hidden()], epsilon(m), last_sum(m), S(1));
    }
  }
};

}  // namespace
FLOWKERN_END
