// The rational-quadratic spline of one element, from its raw parameters, with its derivatives.
//
// T is float, double or a vector of lanes (common/vec.h). Raw parameters, in the order [K widths |
// K heights | slopes], come through u, from wherever they are (registers, shared or main memory):
// u.fetch<K>(first, count, out) copies a run of them, where count is K unless K = 0. Cotangents go
// out through put.run<K>(first, count, values) in the same way.
// Symbols and derivations: flowkern/ops/rational_quadratic_spline/README.md.
#pragma once

#include "../common/maths.h"

FLOWKERN_BEGIN

constexpr int kMaxBins = 256;
enum Tails { kIdentity = 0, kCircular = 1, kNone = 2 };

// What is the same for every element. `soft` names the map from raw parameters to knots: softplus
// with floors (nflows, normflows), or the soft clip u/(1 + |u|/c) with c = softclip (zuko).
template <class S, bool soft_> struct SplineSettings {
  using scalar = S;
  static constexpr bool soft = soft_;
  int bins, tails;
  S left, right, bottom, top;
  S min_width, min_height, min_slope;
  S softclip;
  S scale;  // positive factor on raw widths and heights
};

// One axis of the interval, as lanes: where it begins and how long it is.
template <class T> struct Axis { T low, high; };

// The bin that holds an element.
template <class T> struct Bin {
  T x_k, w, y_k, h;      // left knot, width, lower knot, height
  T p, r;                // slopes at the left and right knot
  T raw_p, raw_r;        // and the raw parameters behind them
  T cum_x, cum_y;        // Σ e_i below the bin, on the width and on the height axis
  T e_x, e_y;            // e_k of the bin itself
  T index;               // k
  typename Lanes<T>::mask last;  // whether k = K − 1
};

// e_i = 2^(v_i − max v), so that softmax_i = e_i/Σe, kept for the backward pass.
template <class T, int K> struct Shares {
  T e[K ? K : kMaxBins];
  T inverse_total;
};

// v/(1 + |v|·times/c).
template <class T, class S, class Set> FLOWKERN_HD T softclip(T v, S times, const Set& set) {
  return v / (T(S(1)) + abs(v) * T(times / set.softclip));
}
// Its derivative, 1/(1 + |v|·times/c)².
template <class T, class S, class Set> FLOWKERN_HD T softclip_derivative(T v, S times, const Set& set) {
  T shrink = T(S(1)) / (T(S(1)) + abs(v) * T(times / set.softclip));
  return shrink * shrink;
}

constexpr double kLog2E = 1.44269504088896340736;

// The softmax of raw parameters u(first) … u(first + K − 1).
template <int K, class T, class U, class Set>
FLOWKERN_HD void softmax(const U& u, int first, const Set& set, Shares<T, K>& shares) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  T* e = shares.e;
  u.template fetch<K>(first, bins, e);
  if constexpr (Set::soft)
    each<K>(bins, [&](int i) FLOWKERN_INLINE { e[i] = softclip(e[i] * T(set.scale), S(2), set); });
  T top = e[0];
  each<K, 1>(bins, [&](int i) FLOWKERN_INLINE { top = max(top, e[i]); });
  const T factor = T(S((Set::soft ? S(1) : set.scale) * kLog2E));
  T total = T(S(0));
  each<K>(bins, [&](int i) FLOWKERN_INLINE {
    e[i] = exp2((e[i] - top) * factor);
    total = total + e[i];
  });
  shares.inverse_total = T(S(1)) / total;
}

template <class T, class Set> FLOWKERN_HD T slope(T raw, const Set& set) {
  if constexpr (Set::soft) return exp(softclip(raw, typename Set::scalar(1), set));
  else return T(set.min_slope) + softplus(raw);
}

// Index of the raw slope of knot 1; knots 1 … K − 1 have one each whatever the tails.
template <class Set> FLOWKERN_HD int inner_slopes(const Set& set) { return 2 * set.bins + (set.tails == kIdentity ? 0 : 1); }

// Finds the bin of x (of y if `on_heights`) and collects all that its formulas need. The knots are
// x_i = low + m·i + g·Σ_{j<i} e_j with m = span·minimum and g = span·(1 − minimum·K)/Σe.
template <int K, bool on_heights, class T, class U, class Set>
FLOWKERN_HD Bin<T> locate(T x, const U& u, const Set& set, Axis<T> across, Axis<T> up,
                          const Shares<T, K>& widths, const Shares<T, K>& heights) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T span_x = across.high - across.low, span_y = up.high - up.low;
  const T m_x = span_x * T(set.min_width), m_y = span_y * T(set.min_height);
  const T g_x = span_x * T(S(1) - set.min_width * S(bins)) * widths.inverse_total;
  const T g_y = span_y * T(S(1) - set.min_height * S(bins)) * heights.inverse_total;
  constexpr int inner = K ? K - 1 : 0;
  T raw[K ? K : kMaxBins];  // raw[i − 1] is the raw slope of knot i
  u.template fetch<inner>(inner_slopes(set), bins - 1, raw);

  Bin<T> bin;
  bin.cum_x = bin.cum_y = bin.index = T(S(0));
  bin.e_x = widths.e[0];
  bin.e_y = heights.e[0];
  T left = T(S(0)), right = T(S(0));  // raw slopes of the end knots, where they are free
  if (set.tails != kIdentity) {
    u.template fetch<1>(2 * bins, 1, &left);
    right = left;
    if (set.tails == kNone) u.template fetch<1>(3 * bins, 1, &right);
  }
  bin.raw_p = left;
  bin.raw_r = bins > 1 ? raw[0] : right;
  T cum_x = T(S(0)), cum_y = T(S(0));
  each<K, 1>(bins, [&](int i) FLOWKERN_INLINE {
    cum_x = cum_x + widths.e[i - 1];
    cum_y = cum_y + heights.e[i - 1];
    T knot = on_heights ? fma(cum_y, g_y, fma(T(S(i)), m_y, up.low))
                        : fma(cum_x, g_x, fma(T(S(i)), m_x, across.low));
    auto right_of = x >= knot;
    bin.index = select(right_of, T(S(i)), bin.index);
    bin.cum_x = select(right_of, cum_x, bin.cum_x);
    bin.cum_y = select(right_of, cum_y, bin.cum_y);
    bin.e_x = select(right_of, widths.e[i], bin.e_x);
    bin.e_y = select(right_of, heights.e[i], bin.e_y);
    bin.raw_p = select(right_of, raw[i - 1], bin.raw_p);
    bin.raw_r = select(right_of, i + 1 < bins ? raw[i] : right, bin.raw_r);
  });
  bin.x_k = fma(bin.cum_x, g_x, fma(bin.index, m_x, across.low));
  bin.y_k = fma(bin.cum_y, g_y, fma(bin.index, m_y, up.low));
  bin.w = fma(bin.e_x, g_x, m_x);
  bin.h = fma(bin.e_y, g_y, m_y);
  if (bins == 1) bin.w = span_x, bin.h = span_y;  // exact, so that both ends are
  bin.last = bin.index == T(S(bins - 1));
  bin.p = slope(bin.raw_p, set);
  bin.r = slope(bin.raw_r, set);
  if (set.tails == kIdentity) {  // slope 1 at both ends
    bin.p = select(bin.index == T(S(0)), T(S(1)), bin.p);
    bin.r = select(bin.last, T(S(1)), bin.r);
  }
  return bin;
}

// θ and 1 − θ, both to full relative accuracy, and what the formulas share.
template <class T> struct Position {
  T theta, rest;  // θ, 1 − θ
  T s, inverse_w;
};

// Where `value` lies between the knots `low` and `low + size`. In the last bin it is measured from
// the end of the interval, which Σ sizes meets only up to rounding.
template <class T> FLOWKERN_HD void measure(T value, T low, T size, const Bin<T>& bin, T end, T& from_left, T& from_right) {
  using S = typename Lanes<T>::scalar;
  const T one = T(S(1));
  T part = (select(bin.last, end, value) - select(bin.last, value, low)) / size;
  part = max(T(S(0)), min(one, part));
  from_left = select(bin.last, one - part, part);
  from_right = select(bin.last, part, one - part);
}

template <class T> FLOWKERN_HD Position<T> position_of_x(T x, const Bin<T>& bin, Axis<T> across) {
  using S = typename Lanes<T>::scalar;
  Position<T> at;
  at.inverse_w = T(S(1)) / bin.w;
  at.s = bin.h * at.inverse_w;
  measure(x, bin.x_k, bin.w, bin, across.high, at.theta, at.rest);
  return at;
}

// Solves the quadratic for θ given y, with η = (y − y_k)/h: every sum below has terms of one sign.
template <class T> FLOWKERN_HD Position<T> position_of_y(T y, const Bin<T>& bin, Axis<T> up) {
  using S = typename Lanes<T>::scalar;
  const T zero = T(S(0)), one = T(S(1));
  Position<T> at;
  at.inverse_w = one / bin.w;
  at.s = bin.h * at.inverse_w;
  T eta, co_eta;
  measure(y, bin.y_k, bin.h, bin, up.high, eta, co_eta);
  T a = bin.p * co_eta - bin.r * eta;
  T two_s = at.s + at.s;
  T root = sqrt(fma(a, a, two_s * two_s * eta * co_eta));
  // From the left where a ≥ 0: θ = 2sη/(2sη + root + a); else 1 − θ likewise from the right.
  auto left = a >= zero;
  T near = two_s * select(left, eta, co_eta);
  T part = near / (near + root + abs(a));
  at.theta = select(left, part, one - part);
  at.rest = select(left, one - part, part);
  return at;
}

// The point a share `from_left` of the way along a bin, measured as in `measure` and kept inside.
template <class T> FLOWKERN_HD T place(T low, T size, const Bin<T>& bin, Axis<T> axis, T from_left, T from_right) {
  using S = typename Lanes<T>::scalar;
  T point = fma(select(bin.last, T(S(0)) - size, size), select(bin.last, from_right, from_left), select(bin.last, axis.high, low));
  return max(axis.low, min(axis.high, point));
}

// y and log dy/dx at a position: D = s(θ² + (1−θ)²) + (p+r)θ(1−θ), M = rθ² + 2sθ(1−θ) + p(1−θ)².
template <class T> struct Value {
  T y, log_slope;
  T beta, inverse_d, n, co_n, m, slope;  // θ(1−θ), 1/D, N = sθ² + pθ(1−θ), D − N, M, dy/dx
};

template <class T> FLOWKERN_HD Value<T> evaluate(const Bin<T>& bin, const Position<T>& at, Axis<T> up) {
  using S = typename Lanes<T>::scalar;
  Value<T> v;
  T theta2 = at.theta * at.theta, rest2 = at.rest * at.rest;
  v.beta = at.theta * at.rest;
  v.n = fma(at.s, theta2, bin.p * v.beta);
  v.co_n = fma(at.s, rest2, bin.r * v.beta);
  v.inverse_d = T(S(1)) / (v.n + v.co_n);
  v.m = fma(bin.r, theta2, fma(at.s + at.s, v.beta, bin.p * rest2));
  v.y = place(bin.y_k, bin.h, bin, up, v.n * v.inverse_d, v.co_n * v.inverse_d);
  T ratio = at.s * v.inverse_d;
  v.slope = ratio * (ratio * v.m);  // in this order nothing over- or underflows early
  v.log_slope = log(v.slope);
  return v;
}

template <class T> struct Cotangent { T x, x_k, w, y_k, h, p, r; };

// ∂ log(dy/dx)/∂θ.
template <class T> FLOWKERN_HD T log_slope_by_theta(const Bin<T>& bin, const Position<T>& at, const Value<T>& v) {
  T tilt = at.rest - at.theta;
  T by_m = (bin.r * at.theta + at.s * tilt - bin.p * at.rest) / v.m;
  T q = bin.p + bin.r - (at.s + at.s);
  T half = by_m - q * tilt * v.inverse_d;
  return half + half;
}

// The vector-Jacobian product of (y, log_slope) with respect to x and the bin; g_theta is that of θ.
template <class T> FLOWKERN_HD Cotangent<T> vjp(const Bin<T>& bin, const Position<T>& at, const Value<T>& v, T g_theta, T g_y, T g_l) {
  using S = typename Lanes<T>::scalar;
  const T one = T(S(1)), two = T(S(2));
  T theta2 = at.theta * at.theta, rest2 = at.rest * at.rest;
  T inverse_m = one / v.m;
  T y_scale = g_y * bin.h * v.inverse_d * v.inverse_d;
  T l_d = two * g_l * v.inverse_d, l_m = g_l * inverse_m;
  T g_s = fma(y_scale * v.beta, bin.r * theta2 - bin.p * rest2,
              fma(two * l_m, v.beta, two * g_l / at.s - l_d * (theta2 + rest2)));
  Cotangent<T> g;
  g.p = fma(y_scale * v.beta, v.co_n, l_m * rest2 - l_d * v.beta);
  g.r = l_m * theta2 - l_d * v.beta - y_scale * v.n * v.beta;
  g.x = g_theta * at.inverse_w;
  // In the last bin, measured from its right end, the left knot plays no part.
  const T zero = T(S(0));
  g.x_k = select(bin.last, zero, zero - g.x);
  g.w = zero - fma(g_theta, select(bin.last, zero - at.rest, at.theta), g_s * at.s) * at.inverse_w;
  g.h = fma(g_y * select(bin.last, zero - v.co_n, v.n), v.inverse_d, g_s * at.inverse_w);
  g.y_k = select(bin.last, zero, g_y);
  return g;
}

// Result of the forward or inverse map at one element.
template <class T> struct Mapped { T y, logabsdet; };

template <class T> FLOWKERN_HD auto inside(T x, Axis<T> axis) { return both(x >= axis.low, x <= axis.high); }

// y and log|dy/dx| (inverse: x and log|dx/dy|); outside the interval the tails.
template <int K, bool inverse, class T, class U, class Set>
FLOWKERN_HD Mapped<T> transform(T x, const U& u, const Set& set, Axis<T> across, Axis<T> up) {
  using S = typename Set::scalar;
  const Axis<T> axis = inverse ? up : across;
  const auto in = inside(x, axis);
  const T x_in = select(in, x, axis.low);
  Shares<T, K> widths, heights;
  softmax<K>(u, 0, set, widths);
  softmax<K>(u, K ? K : set.bins, set, heights);
  const Bin<T> bin = locate<K, inverse>(x_in, u, set, across, up, widths, heights);
  const Position<T> at = inverse ? position_of_y(x_in, bin, up) : position_of_x(x_in, bin, across);
  const Value<T> v = evaluate(bin, at, up);
  const T y = inverse ? place(bin.x_k, bin.w, bin, across, at.theta, at.rest) : v.y;
  const T l = inverse ? T(S(0)) - v.log_slope : v.log_slope;
  const T nan = T(S(__builtin_nanf("")));
  return {select(in, y, set.tails == kNone ? nan : x), select(in, l, set.tails == kNone ? nan : T(S(0)))};
}

// d slope/d raw: softplus' = sigmoid, or exp(v)·softclip'(raw).
template <class T, class Set> FLOWKERN_HD T slope_derivative(T raw, T value, const Set& set) {
  if constexpr (Set::soft) return value * softclip_derivative(raw, typename Set::scalar(1), set);
  else return sigmoid(raw);
}

// Cotangents of one axis' raw parameters: factor·softmax_i·(G_i − Σ_j softmax_j G_j), where G_i is
// the cotangent of share i: that of the left knot for bins below k, of the size for bin k, else 0.
template <int K, class T, class U, class Set, class Put>
FLOWKERN_HD void softmax_vjp(const U& u, int first, const Set& set, Shares<T, K>& shares, const Bin<T>& bin,
                             T cum, T e_k, T g_knot, T g_size, T factor, const Put& put) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T scaled = factor * T(set.scale) * shares.inverse_total;
  const T below = g_knot * scaled, at = g_size * scaled;
  const T mean = fma(below, cum, at * e_k) * shares.inverse_total;
  T* e = shares.e;
  each<K>(bins, [&](int i) FLOWKERN_INLINE {
    T g = select(bin.index > T(S(i)), below, select(bin.index == T(S(i)), at, T(S(0))));
    e[i] = e[i] * (g - mean);
  });
  if constexpr (Set::soft) {
    T raw[K ? K : kMaxBins];
    u.template fetch<K>(first, bins, raw);
    each<K>(bins, [&](int i) FLOWKERN_INLINE {
      e[i] = e[i] * softclip_derivative(raw[i] * T(set.scale), S(2), set);
    });
  }
  put.template run<K>(first, bins, e);
}

// Cotangents of the free raw slopes: knot i's is that of the left slope in bin i, of the right one
// in bin i − 1.
template <int K, class T, class Set, class Put>
FLOWKERN_HD void slopes_vjp(const Set& set, const Bin<T>& bin, T g_p, T g_r, const Put& put) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T zero = T(S(0)), next = bin.index + T(S(1));
  T g[K ? K : kMaxBins];
  each<K ? K - 1 : 0>(bins - 1, [&](int i) FLOWKERN_INLINE {
    const T knot = T(S(i + 1));
    g[i] = select(bin.index == knot, g_p, select(next == knot, g_r, zero));
  });
  put.template run<K ? K - 1 : 0>(inner_slopes(set), bins - 1, g);
  if (set.tails == kIdentity) return;
  T left = select(bin.index == zero, g_p, zero), right = select(next == T(S(bins)), g_r, zero);
  if (set.tails == kCircular) left = left + right;
  else put.template run<1>(3 * bins, 1, &right);
  put.template run<1>(2 * bins, 1, &left);
}

// Cotangents of x and of every raw parameter, from those of y and logabsdet (inverse: of x and its
// logabsdet). put receives the cotangent of each raw parameter once.
template <int K, bool inverse, class T, class U, class Set, class Put>
FLOWKERN_HD T transform_vjp(T x, const U& u, const Set& set, Axis<T> across, Axis<T> up, T g_out,
                            T g_logabsdet, const Put& put) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T zero = T(S(0));
  const Axis<T> axis = inverse ? up : across;
  const auto in = inside(x, axis);
  const T x_in = select(in, x, axis.low);
  Shares<T, K> widths, heights;
  softmax<K>(u, 0, set, widths);
  softmax<K>(u, bins, set, heights);
  const Bin<T> bin = locate<K, inverse>(x_in, u, set, across, up, widths, heights);
  const Position<T> at = inverse ? position_of_y(x_in, bin, up) : position_of_x(x_in, bin, across);
  const Value<T> v = evaluate(bin, at, up);
  const T by_theta = log_slope_by_theta(bin, at, v);
  T g_y = g_out, g_l = g_logabsdet, g_theta = fma(g_out * bin.w, v.slope, g_logabsdet * by_theta);
  if (inverse) {
    // With λ = ∂L/∂x: the input's cotangent is λ/f', the parameters' those of f at (−λ/f', −g_l).
    // There g_θ = −λw + g_l·∂ℓ/∂θ, in which all but the first term of λ cancels.
    T lambda = g_out - g_logabsdet * by_theta * at.inverse_w;
    g_y = zero - lambda / v.slope;
    g_l = zero - g_logabsdet;
    g_theta = zero - g_out * bin.w;
  }
  const Cotangent<T> g = vjp(bin, at, v, g_theta, g_y, g_l);

  // Outside, nothing reaches the parameters: cotangents are replaced, not multiplied by zero.
  auto keep = [&](T value) FLOWKERN_INLINE { return select(in, value, zero); };
  const T share_x = (across.high - across.low) * T(S(1) - set.min_width * S(bins));
  const T share_y = (up.high - up.low) * T(S(1) - set.min_height * S(bins));
  softmax_vjp<K>(u, 0, set, widths, bin, bin.cum_x, bin.e_x, keep(g.x_k), keep(g.w), share_x, put);
  softmax_vjp<K>(u, bins, set, heights, bin, bin.cum_y, bin.e_y, keep(g.y_k), keep(g.h), share_y, put);
  slopes_vjp<K>(set, bin, keep(g.p * slope_derivative(bin.raw_p, bin.p, set)),
                keep(g.r * slope_derivative(bin.raw_r, bin.r, set)), put);
  const T outside = set.tails == kNone ? zero : g_out;
  return select(in, inverse ? zero - g_y : g.x, outside);
}

FLOWKERN_END
