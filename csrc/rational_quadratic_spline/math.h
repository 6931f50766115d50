// The rational-quadratic spline of one element, from its raw parameters, with its derivatives.
// Symbols and derivations: flowkern/ops/_rational_quadratic_spline/README.md.
#pragma once

#include "bin.h"

FLOWKERN_BEGIN

// θ and 1 − θ, both to full relative accuracy, and what the formulas share.
template <class T> struct Position {
  T theta, rest;  // θ, 1 − θ
  T s, inverse_w;
};

// Where `value` lies between the knots `low` and `low + size`, given 1/size. In the last bin it is
// measured from the end of the interval, which Σ sizes meets only up to rounding.
template <class T>
FLOWKERN_HD void measure(T value, T low, T inverse_size, const Bin<T>& bin, T end, T& from_left,
                         T& from_right) {
  using S = typename Lanes<T>::scalar;
  const T one = T(S(1));
  T part = (select(bin.last, end, value) - select(bin.last, value, low)) * inverse_size;
  part = max(T(S(0)), min(one, part));
  from_left = select(bin.last, one - part, part);
  from_right = select(bin.last, part, one - part);
}

template <class T> FLOWKERN_HD Position<T> position_of_x(T x, const Bin<T>& bin, Axis<T> across) {
  Position<T> at;
  at.inverse_w = reciprocal(bin.w);
  at.s = bin.h * at.inverse_w;
  measure(x, bin.x_k, at.inverse_w, bin, across.high, at.theta, at.rest);
  return at;
}

// Solves the quadratic for θ given y, with η = (y − y_k)/h: every sum below has terms of one sign.
template <class T> FLOWKERN_HD Position<T> position_of_y(T y, const Bin<T>& bin, Axis<T> up) {
  using S = typename Lanes<T>::scalar;
  const T zero = T(S(0)), one = T(S(1));
  Position<T> at;
  at.inverse_w = reciprocal(bin.w);
  at.s = bin.h * at.inverse_w;
  T eta, co_eta;
  measure(y, bin.y_k, reciprocal(bin.h), bin, up.high, eta, co_eta);
  T a = bin.p * co_eta - bin.r * eta;
  T two_s = at.s + at.s;
  T root = sqrt(fma(a, a, two_s * two_s * eta * co_eta));
  root = select(root == T(S(__builtin_inff())), abs(a), root);  // a² overflows, and is all there is beside s²
  // From the left where a ≥ 0: θ = 2sη/(2sη + root + a); else 1 − θ likewise from the right.
  auto left = a >= zero;
  T near = two_s * select(left, eta, co_eta);
  T part = quotient(near, near + root + abs(a));
  at.theta = select(left, part, one - part);
  at.rest = select(left, one - part, part);
  return at;
}

// The point a share `from_left` of the way along a bin, measured as in `measure` and kept inside.
template <class T>
FLOWKERN_HD T place(T low, T size, const Bin<T>& bin, Axis<T> axis, T from_left, T from_right) {
  using S = typename Lanes<T>::scalar;
  T step = select(bin.last, T(S(0)) - size, size), part = select(bin.last, from_right, from_left);
  T point = fma(step, part, select(bin.last, axis.high, low));
  return max(axis.low, min(axis.high, point));
}

// y and log dy/dx at a position: D = s(θ² + (1−θ)²) + (p+r)θ(1−θ), M = rθ² + 2sθ(1−θ) + p(1−θ)².
template <class T> struct Value {
  T y, log_slope;
  T beta, inverse_d, n, co_n, m, slope;  // θ(1−θ), 1/D, N/D with N = sθ² + pθ(1−θ), 1 − N/D, M, dy/dx
};

template <class T> FLOWKERN_HD Value<T> evaluate(const Bin<T>& bin, const Position<T>& at, Axis<T> up) {
  Value<T> v;
  T theta2 = at.theta * at.theta, rest2 = at.rest * at.rest;
  v.beta = at.theta * at.rest;
  T n = fma(at.s, theta2, bin.p * v.beta);
  T co_n = fma(at.s, rest2, bin.r * v.beta);
  v.inverse_d = reciprocal(n + co_n);
  v.n = n * v.inverse_d, v.co_n = co_n * v.inverse_d;
  v.m = fma(bin.r, theta2, fma(at.s + at.s, v.beta, bin.p * rest2));
  v.y = place(bin.y_k, bin.h, bin, up, v.n, v.co_n);
  T ratio = at.s * v.inverse_d;
  v.slope = ratio * (ratio * v.m);  // in this order nothing over- or underflows early
  v.log_slope = log(v.slope);
  return v;
}

template <class T> struct Cotangent { T x, x_k, w, y_k, h, p, r; };

// ∂ log(dy/dx)/∂θ.
template <class T>
FLOWKERN_HD T log_slope_by_theta(const Bin<T>& bin, const Position<T>& at, const Value<T>& v) {
  T tilt = at.rest - at.theta;
  T by_m = (bin.r * at.theta + at.s * tilt - bin.p * at.rest) / v.m;
  T q = bin.p + bin.r - (at.s + at.s);
  T half = by_m - q * tilt * v.inverse_d;
  return half + half;
}

// The vector-Jacobian product of (y, log_slope) with respect to x and the bin; g_theta is that of θ.
template <class T>
FLOWKERN_HD Cotangent<T> vjp(const Bin<T>& bin, const Position<T>& at, const Value<T>& v, T g_theta, T g_y,
                             T g_l) {
  using S = typename Lanes<T>::scalar;
  const T two = T(S(2));
  T theta2 = at.theta * at.theta, rest2 = at.rest * at.rest;
  T inverse_m = reciprocal(v.m);
  // D grows with the slopes: what is divided by it is so before a cotangent multiplies it.
  T by_share = g_y * bin.h * (v.beta * v.inverse_d), tilt = (bin.r * theta2 - bin.p * rest2) * v.inverse_d;
  T l_d = two * g_l * v.inverse_d, l_m = g_l * inverse_m;
  T g_s = fma(by_share, tilt, fma(two * l_m, v.beta, two * g_l / at.s - l_d * (theta2 + rest2)));
  Cotangent<T> g;
  g.p = fma(by_share, v.co_n, l_m * rest2 - l_d * v.beta);
  g.r = l_m * theta2 - l_d * v.beta - by_share * v.n;
  g.x = g_theta * at.inverse_w;
  // In the last bin, measured from its right end, the left knot plays no part.
  const T zero = T(S(0));
  g.x_k = select(bin.last, zero, zero - g.x);
  g.w = zero - fma(g_theta, select(bin.last, zero - at.rest, at.theta), g_s * at.s) * at.inverse_w;
  g.h = fma(g_y, select(bin.last, zero - v.co_n, v.n), g_s * at.inverse_w);
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
  Located<T, Shares<T, K, U, Set>> found;
  locate<K, inverse>(found, x_in, u, set, across, up);
  const Bin<T>& bin = found.bin;
  const Position<T> at = inverse ? position_of_y(x_in, bin, up) : position_of_x(x_in, bin, across);
  const Value<T> v = evaluate(bin, at, up);
  const T y = inverse ? place(bin.x_k, bin.w, bin, across, at.theta, at.rest) : v.y;
  const T l = inverse ? T(S(0)) - v.log_slope : v.log_slope;
  const T nan = T(S(__builtin_nanf("")));
  const bool none = set.tails == kNone;
  return {select(in, y, none ? nan : x), select(in, l, none ? nan : T(S(0)))};
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
  Located<T, Shares<T, K, U, Set>> found;
  locate<K, inverse>(found, x_in, u, set, across, up);
  const Bin<T>& bin = found.bin;
  const Position<T> at = inverse ? position_of_y(x_in, bin, up) : position_of_x(x_in, bin, across);
  const Value<T> v = evaluate(bin, at, up);
  const T by_theta = log_slope_by_theta(bin, at, v);
  T g_y = g_out, g_l = g_logabsdet, g_theta = fma(g_out * bin.w, v.slope, g_logabsdet * by_theta);
  if (inverse) {
    // With λ = ∂L/∂x: the input's cotangent is λ/f', the parameters' those of f at (−λ/f', −g_l).
    // There g_θ = −λw + g_l·∂ℓ/∂θ, in which all but the first term of λ cancels.
    const T inverse_slope = T(S(1)) / v.slope;
    g_y = g_logabsdet * (by_theta * at.inverse_w * inverse_slope) - g_out * inverse_slope;
    g_l = zero - g_logabsdet;
    g_theta = zero - g_out * bin.w;
  }
  const Cotangent<T> g = vjp(bin, at, v, g_theta, g_y, g_l);

  // Outside, nothing reaches the parameters: cotangents are replaced, not multiplied by zero.
  auto keep = [&](T value) FLOWKERN_INLINE { return select(in, value, zero); };
  softmax_vjp<K>(found.widths, bin.index, u, 0, set, keep(g.x_k), keep(g.w), put);
  softmax_vjp<K>(found.heights, bin.index, u, bins, set, keep(g.y_k), keep(g.h), put);
  slopes_vjp<K>(found.heights.e, bin.index, set, keep(g.p * slope_derivative(bin.raw_p, bin.p, set)),
                keep(g.r * slope_derivative(bin.raw_r, bin.r, set)), put);
  const T outside = set.tails == kNone ? zero : g_out;
  return select(in, inverse ? zero - g_y : g.x, outside);
}

FLOWKERN_END
