// The rational-quadratic spline of one element, from its raw parameters, with its derivatives.
//
// T is float, double or a vector of lanes (common/vec.h). Raw parameters, in the order [K widths |
// K heights | slopes], come through u, from wherever they are (registers, shared or main memory):
// u.fetch<K>(first, count, out) copies a run of them, where count is K unless K = 0, and
// u.pick(first, i) gives number first + i, where i is integral but may differ from lane to lane.
// U::rereads() says that fetching a parameter again costs less than keeping what was computed from it.
// Cotangents go out through put.run<K>(first, count, values).
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

// The knots of one axis: x_i = low + m·i + g·Σ_{j<i} e_j, with m = span·minimum and
// g = span·(1 − minimum·K)/Σe.
template <class T> struct Knots {
  T low, m, g;
  FLOWKERN_HD T at(T i, T sum) const { return fma(sum, g, fma(i, m, low)); }
};

// The bin that holds an element.
template <class T> struct Bin {
  T x_k, w, y_k, h;              // left knot, width, lower knot, height
  T raw_p, raw_r;                // the raw slopes at the left and right knot, where these are free
  T index;                       // k
  T p, r;                        // the slopes
  typename Lanes<T>::mask last;  // whether k = K − 1
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

// e_i = 2^(v_i − max v) of one axis, so that softmax_i = e_i/Σe. Of v = softclip(scale·u), or of
// v = u, whose scale is in the factor.
template <class T, class Set> FLOWKERN_HD T exponent(T raw, const Set& set) {
  using S = typename Set::scalar;
  if constexpr (Set::soft) return softclip(raw * T(set.scale), S(2), set);
  else return raw;
}
template <class T, class Set> FLOWKERN_HD T share(T exponent, T top, const Set& set) {
  using S = typename Set::scalar;
  return exp2_nonpositive((exponent - top) * T(S((Set::soft ? S(1) : set.scale) * kLog2E)));
}

// All of them, kept.
template <class T, int K> struct Kept {
  T e[K ? K : kMaxBins];
  FLOWKERN_HD T operator()(int i) const { return e[i]; }
};
// Each computed when it is asked for.
template <class T, class U, class Set> struct Recomputed {
  const U& u;
  int first;
  const Set& set;
  T top;
  FLOWKERN_HD T exponent_of(int i) const {
    T raw;
    u.template fetch<1>(first + i, 1, &raw);
    return exponent(raw, set);
  }
  FLOWKERN_HD T operator()(int i) const { return share(exponent_of(i), top, set); }
};

template <int K, class U> constexpr bool kKeeps = K != 0 || !U::rereads();

// The shares of the K bins whose raw parameters begin at number `first`.
template <int K, class T, class U, class Set>
FLOWKERN_HD auto shares(const U& u, int first, int bins, const Set& set) {
  if constexpr (kKeeps<K, U>) {
    Kept<T, K> shares;
    T* e = shares.e;
    u.template fetch<K>(first, bins, e);
    each<K>(bins, [&](int i) FLOWKERN_INLINE { e[i] = exponent(e[i], set); });
    T top = e[0];
    each<K, 1>(bins, [&](int i) FLOWKERN_INLINE { top = max(top, e[i]); });
    each<K>(bins, [&](int i) FLOWKERN_INLINE { e[i] = share(e[i], top, set); });
    return shares;
  } else {
    Recomputed<T, U, Set> shares{u, first, set, T()};
    shares.top = shares.exponent_of(0);
    for (int i = 1; i < bins; ++i) shares.top = max(shares.top, shares.exponent_of(i));
    return shares;
  }
}

// One axis at an element: its shares and knots, and what lies below the element's bin k.
template <class T, class Shares> struct Side {
  Shares e;
  T inverse_total;  // 1/Σe
  Knots<T> knots;
  T below, own;  // Σ_{i<k} e_i and e_k
};

// The axis whose raw parameters begin at number `first`; its bin is not known yet.
template <int K, class T, class U, class Set>
FLOWKERN_HD auto side(const U& u, int first, int bins, const Set& set, Axis<T> axis, typename Set::scalar minimum) {
  using S = typename Set::scalar;
  Side<T, decltype(shares<K, T>(u, first, bins, set))> s{shares<K, T>(u, first, bins, set)};
  T total = s.e(0);
  s.below = T(S(0)), s.own = total;
  each<K, 1>(bins, [&](int i) FLOWKERN_INLINE { total = total + s.e(i); });
  s.inverse_total = T(S(1)) / total;
  const T span = axis.high - axis.low;
  s.knots = {axis.low, span * T(minimum), span * T(S(1) - minimum * S(bins)) * s.inverse_total};
  return s;
}

// The bin of x by the knots of an axis.
template <int K, class T, class Shares> FLOWKERN_HD T search(T x, int bins, Side<T, Shares>& s) {
  using S = typename Lanes<T>::scalar;
  T index = T(S(0)), sum = s.e(0);
  each<K, 1>(bins, [&](int i) FLOWKERN_INLINE {
    const T e = s.e(i);
    auto right_of = x >= s.knots.at(T(S(i)), sum);
    index = select(right_of, T(S(i)), index);
    s.below = select(right_of, sum, s.below);
    s.own = select(right_of, e, s.own);
    sum = sum + e;
  });
  return index;
}

// The same bin on the other axis.
template <int K, class T, class Shares> FLOWKERN_HD void follow(T index, int bins, Side<T, Shares>& s) {
  using S = typename Lanes<T>::scalar;
  T last = s.own;
  each<K, 1>(bins, [&](int i) FLOWKERN_INLINE {
    const T e = s.e(i);
    auto right_of = index >= T(S(i));
    s.below = add_where(right_of, s.below, last);
    s.own = select(right_of, e, s.own);
    last = e;
  });
}

// The bin of x (of y if `on_heights`) and both axes there.
template <class T, class OneSide> struct Located {
  OneSide widths, heights;
  Bin<T> bin;
};

// The raw slopes of a bin. Knot i's is number i − 1 of them with tails `identity`, else number i. A
// slope that is not free is replaced later: what is read in its place is some other parameter.
template <class T, class U, class Set> FLOWKERN_HD void pick_slopes(const U& u, int bins, const Set& set, Bin<T>& bin) {
  using S = typename Set::scalar;
  const int lead = set.tails == kIdentity ? 1 : 0, count = bins - 1 + set.tails;
  T right = bin.index + T(S(1 - lead));
  if (set.tails == kCircular) right = select(right == T(S(count)), T(S(0)), right);
  else right = min(right, T(S(count - 1)));
  bin.raw_p = u.pick(2 * bins, bin.index - T(S(lead)));
  bin.raw_r = u.pick(2 * bins, right);
}

template <int K, bool on_heights, class T, class U, class Set>
FLOWKERN_HD auto locate(T x, const U& u, const Set& set, Axis<T> across, Axis<T> up) {
  const int bins = K ? K : set.bins;
  using OneSide = decltype(side<K, T>(u, 0, bins, set, across, set.min_width));
  Located<T, OneSide> at{side<K, T>(u, 0, bins, set, across, set.min_width),
                         side<K, T>(u, bins, bins, set, up, set.min_height)};
  OneSide &widths = at.widths, &heights = at.heights;
  Bin<T>& bin = at.bin;
  bin.index = search<K>(x, bins, on_heights ? heights : widths);
  follow<K>(bin.index, bins, on_heights ? widths : heights);
  bin.x_k = widths.knots.at(bin.index, widths.below);
  bin.y_k = heights.knots.at(bin.index, heights.below);
  bin.w = fma(widths.own, widths.knots.g, widths.knots.m);
  bin.h = fma(heights.own, heights.knots.g, heights.knots.m);
  if (bins == 1) bin.w = across.high - across.low, bin.h = up.high - up.low;  // exact, so that both ends are
  pick_slopes(u, bins, set, bin);
  return at;
}

template <class T, class Set> FLOWKERN_HD T slope(T raw, const Set& set) {
  if constexpr (Set::soft) return exp(softclip(raw, typename Set::scalar(1), set));
  else return T(set.min_slope) + softplus(raw);
}

// Completes a bin that `locate` has found: p, r and last.
template <int K, class T, class Set> FLOWKERN_HD void complete(Bin<T>& bin, const Set& set) {
  using S = typename Set::scalar;
  const T one = T(S(1));
  bin.last = bin.index == T(S((K ? K : set.bins) - 1));
  bin.p = slope(bin.raw_p, set);
  bin.r = slope(bin.raw_r, set);
  if (set.tails == kIdentity) {  // slope 1 at both ends
    bin.p = select(bin.index == T(S(0)), one, bin.p);
    bin.r = select(bin.last, one, bin.r);
  }
}

// θ and 1 − θ, both to full relative accuracy, and what the formulas share.
template <class T> struct Position {
  T theta, rest;  // θ, 1 − θ
  T s, inverse_w;
};

// Where `value` lies between the knots `low` and `low + size`, given 1/size. In the last bin it is measured from
// the end of the interval, which Σ sizes meets only up to rounding.
template <class T> FLOWKERN_HD void measure(T value, T low, T inverse_size, const Bin<T>& bin, T end, T& from_left, T& from_right) {
  using S = typename Lanes<T>::scalar;
  const T one = T(S(1));
  T part = (select(bin.last, end, value) - select(bin.last, value, low)) * inverse_size;
  part = max(T(S(0)), min(one, part));
  from_left = select(bin.last, one - part, part);
  from_right = select(bin.last, part, one - part);
}

template <class T> FLOWKERN_HD Position<T> position_of_x(T x, const Bin<T>& bin, Axis<T> across) {
  using S = typename Lanes<T>::scalar;
  Position<T> at;
  at.inverse_w = T(S(1)) / bin.w;
  at.s = bin.h * at.inverse_w;
  measure(x, bin.x_k, at.inverse_w, bin, across.high, at.theta, at.rest);
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
  measure(y, bin.y_k, one / bin.h, bin, up.high, eta, co_eta);
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

// Where the bin of an element is looked for: outside the interval, at its lower end.
template <class T> FLOWKERN_HD T put_inside(T x, Axis<T> axis) { return select(inside(x, axis), x, axis.low); }

// y and log|dy/dx| (inverse: x and log|dx/dy|) from the bin; outside the interval the tails.
template <int K, bool inverse, class T, class Set>
FLOWKERN_HD Mapped<T> transform_in(Bin<T>& bin, T x, const Set& set, Axis<T> across, Axis<T> up) {
  using S = typename Set::scalar;
  const Axis<T> axis = inverse ? up : across;
  const auto in = inside(x, axis);
  const T x_in = put_inside(x, axis);
  complete<K>(bin, set);
  const Position<T> at = inverse ? position_of_y(x_in, bin, up) : position_of_x(x_in, bin, across);
  const Value<T> v = evaluate(bin, at, up);
  const T y = inverse ? place(bin.x_k, bin.w, bin, across, at.theta, at.rest) : v.y;
  const T l = inverse ? T(S(0)) - v.log_slope : v.log_slope;
  const T nan = T(S(__builtin_nanf("")));
  return {select(in, y, set.tails == kNone ? nan : x), select(in, l, set.tails == kNone ? nan : T(S(0)))};
}

template <int K, bool inverse, class T, class U, class Set>
FLOWKERN_HD Bin<T> find_bin(T x, const U& u, const Set& set, Axis<T> across, Axis<T> up) {
  return locate<K, inverse>(put_inside(x, inverse ? up : across), u, set, across, up).bin;
}

template <int K, bool inverse, class T, class U, class Set>
FLOWKERN_HD Mapped<T> transform(T x, const U& u, const Set& set, Axis<T> across, Axis<T> up) {
  Bin<T> bin = find_bin<K, inverse>(x, u, set, across, up);
  return transform_in<K, inverse>(bin, x, set, across, up);
}

// d slope/d raw: softplus' = sigmoid, or exp(v)·softclip'(raw).
template <class T, class Set> FLOWKERN_HD T slope_derivative(T raw, T value, const Set& set) {
  if constexpr (Set::soft) return value * softclip_derivative(raw, typename Set::scalar(1), set);
  else return sigmoid(raw);
}

// Puts value(i) as number first + i, for i < count.
template <int K, bool kept, class T, class Put, class F>
FLOWKERN_HD void put_each(const Put& put, int first, int count, const F& value) {
  if constexpr (kept) {
    T values[K ? K : kMaxBins];
    each<K>(count, [&](int i) FLOWKERN_INLINE { values[i] = value(i); });
    put.template run<K>(first, count, values);
  } else {
    for (int i = 0; i < count; ++i) {
      const T v = value(i);
      put.template run<1>(first + i, 1, &v);
    }
  }
}

// Cotangents of one axis' raw parameters: factor·softmax_i·(G_i − Σ_j softmax_j G_j), where G_i is
// the cotangent of share i: that of the left knot for bins below k, of the size for bin k, else 0.
template <int K, class T, class Shares, class U, class Set, class Put>
FLOWKERN_HD void softmax_vjp(const Side<T, Shares>& s, T index, const U& u, int first, const Set& set,
                             T g_knot, T g_size, const Put& put) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T by_e = s.knots.g * T(set.scale);  // span·(1 − minimum·K)·scale/Σe
  const T at_knot = g_knot * by_e, at_size = g_size * by_e;
  const T mean = fma(at_knot, s.below, at_size * s.own) * s.inverse_total;
  const T below = at_knot - mean, own = at_size - mean, above = T(S(0)) - mean;
  put_each<K, kKeeps<K, U>, T>(put, first, bins, [&](int i) FLOWKERN_INLINE {
    const T g = s.e(i) * select(index >= T(S(i + 1)), below, select(index >= T(S(i)), own, above));
    if constexpr (!Set::soft) return g;
    T raw;
    u.template fetch<1>(first + i, 1, &raw);
    return g * softclip_derivative(raw * T(set.scale), S(2), set);
  });
}

// Cotangents of the free raw slopes: knot i's is that of the left slope in bin i, of the right one
// in bin i − 1.
template <int K, bool kept, class T, class Set, class Put>
FLOWKERN_HD void slopes_vjp(const Set& set, T index, T g_p, T g_r, const Put& put) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T zero = T(S(0));
  // Index of the raw slope of knot 1; knots 1 … K − 1 have one each whatever the tails.
  const int inner = 2 * bins + (set.tails == kIdentity ? 0 : 1);
  put_each<K ? K - 1 : 0, kept, T>(put, inner, bins - 1, [&](int i) FLOWKERN_INLINE {
    return select(index == T(S(i + 1)), g_p, select(index == T(S(i)), g_r, zero));
  });
  if (set.tails == kIdentity) return;
  T left = select(index == zero, g_p, zero), right = select(index == T(S(bins - 1)), g_r, zero);
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
  const T x_in = put_inside(x, axis);
  auto found = locate<K, inverse>(x_in, u, set, across, up);
  Bin<T>& bin = found.bin;
  complete<K>(bin, set);
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
  softmax_vjp<K>(found.widths, bin.index, u, 0, set, keep(g.x_k), keep(g.w), put);
  softmax_vjp<K>(found.heights, bin.index, u, bins, set, keep(g.y_k), keep(g.h), put);
  slopes_vjp<K, kKeeps<K, U>>(set, bin.index, keep(g.p * slope_derivative(bin.raw_p, bin.p, set)),
                              keep(g.r * slope_derivative(bin.raw_r, bin.r, set)), put);
  const T outside = set.tails == kNone ? zero : g_out;
  return select(in, inverse ? zero - g_y : g.x, outside);
}

FLOWKERN_END
