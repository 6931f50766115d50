// From raw parameters to the bin of an element, and from the cotangents of the bin back to them.
//
// T is float, double or a vector of lanes (common/vec.h). Raw parameters, in the order [K widths |
// K heights | slopes], come through u, from wherever they are (registers, shared or main memory):
// u.fetch<K>(first, count, out) copies a run of them, where count is K unless K = 0, and
// u.pick(first, i) gives number first + i, where i is integral but may differ from lane to lane.
// U::rereads() says that fetching a parameter again costs less than keeping what was computed from it.
// Cotangents go out through put.run<K>(first, count, values).
// Symbols and derivations: flowkern/ops/_rational_quadratic_spline/README.md.
#pragma once

#include "../common/kinds.h"
#include "../common/maths.h"

FLOWKERN_BEGIN


// What is the same for every element. `knots` is the map from raw parameters to knots: softplus
// with floors (nflows, normflows), or the soft clip u/(1 + |u|/c) with c = softclip (zuko).
template <class S, int knots> struct SplineSettings {
  using scalar = S;
  static constexpr bool soft = knots == kSoftclipKnots;
  static_assert(soft || knots == kSoftplusKnots, "a knot map without a formula");
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
template <class T, class S, class Set>
FLOWKERN_HD T softclip_derivative(T v, S times, const Set& set) {
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
  T e[K ? K : kMostBins];
  FLOWKERN_HD T operator()(int i) const { return e[i]; }
};
// Each computed when it is asked for.
template <class T, class U, class Set> struct Recomputed {
  const U* u;
  int first;
  const Set* set;
  T top;
  FLOWKERN_HD T exponent_of(int i) const {
    T raw;
    u->template fetch<1>(first + i, 1, &raw);
    return exponent(raw, *set);
  }
  FLOWKERN_HD T operator()(int i) const { return share(exponent_of(i), top, *set); }
};

template <int K, class U> constexpr bool kKeeps = K != 0 || !U::rereads();
template <bool keeps, class T, int K, class U, class Set> struct SharesOf { using type = Kept<T, K>; };
template <class T, int K, class U, class Set> struct SharesOf<false, T, K, U, Set> {
  using type = Recomputed<T, U, Set>;
};
template <class T, int K, class U, class Set>
using Shares = typename SharesOf<kKeeps<K, U>, T, K, U, Set>::type;

// Both are filled in place: an array of any number of bins is too large to copy. Their raw
// parameters begin at number `first`.
template <class T, int K, class U, class Set>
FLOWKERN_HD void fill(Kept<T, K>& shares, const U& u, int first, int bins, const Set& set) {
  T* e = shares.e;
  u.template fetch<K>(first, bins, e);
  each<K>(bins, [&](int i) FLOWKERN_INLINE { e[i] = exponent(e[i], set); });
  T top = e[0];
  each<K, 1>(bins, [&](int i) FLOWKERN_INLINE { top = max(top, e[i]); });
  each<K>(bins, [&](int i) FLOWKERN_INLINE { e[i] = share(e[i], top, set); });
}
template <class T, class U, class Set>
FLOWKERN_HD void fill(Recomputed<T, U, Set>& shares, const U& u, int first, int bins, const Set& set) {
  shares.u = &u, shares.first = first, shares.set = &set;
  shares.top = shares.exponent_of(0);
  for (int i = 1; i < bins; ++i) shares.top = max(shares.top, shares.exponent_of(i));
}

// One axis at an element: its shares and knots, and what lies below the element's bin k.
template <class T, class Shares> struct Side {
  Shares e;
  T inverse_total;  // 1/Σe
  Knots<T> knots;
  T below, own;  // Σ_{i<k} e_i and e_k
};

// The axis whose raw parameters begin at number `first`, with the bin 0.
template <int K, class T, class Shares, class U, class Set>
FLOWKERN_HD void prepare(Side<T, Shares>& s, const U& u, int first, int bins, const Set& set, Axis<T> axis,
                         typename Set::scalar minimum) {
  using S = typename Set::scalar;
  fill(s.e, u, first, bins, set);
  s.below = T(S(0)), s.own = s.e(0);
  T total = s.own;
  each<K, 1>(bins, [&](int i) FLOWKERN_INLINE { total = total + s.e(i); });
  s.inverse_total = reciprocal(total);
  const T span = axis.high - axis.low;
  s.knots = {axis.low, span * T(minimum), span * T(S(1) - minimum * S(bins)) * s.inverse_total};
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

template <class T, class Set> FLOWKERN_HD T slope(T raw, const Set& set) {
  if constexpr (Set::soft) return exp(softclip(raw, typename Set::scalar(1), set));
  else return T(set.min_slope) + softplus(raw);
}

// The slopes of a bin, from its raw ones.
template <class T, class Set> FLOWKERN_HD void set_slopes(Bin<T>& bin, const Set& set) {
  using S = typename Set::scalar;
  const T one = T(S(1));
  bin.p = slope(bin.raw_p, set);
  bin.r = slope(bin.raw_r, set);
  if (set.tails == kIdentity) {  // slope 1 at both ends
    bin.p = select(bin.index == T(S(0)), one, bin.p);
    bin.r = select(bin.last, one, bin.r);
  }
}

// The bin of x (of y if `on_heights`) and both axes there.
template <class T, class Shares> struct Located {
  Side<T, Shares> widths, heights;
  Bin<T> bin;
};

// The raw slopes of a bin. Knot i's is number i − 1 of them with tails `identity`, else number i. A
// slope that is not free is replaced later: what is read in its place is some other parameter.
template <class T, class U, class Set>
FLOWKERN_HD void pick_slopes(const U& u, int bins, const Set& set, Bin<T>& bin) {
  using S = typename Set::scalar;
  const int lead = set.tails == kIdentity ? 1 : 0, count = bins + more_slopes(set.tails);
  T right = bin.index + T(S(1 - lead));
  if (set.tails == kCircular) right = select(right == T(S(count)), T(S(0)), right);
  else right = min(right, T(S(count - 1)));
  bin.raw_p = u.pick(2 * bins, bin.index - T(S(lead)));
  bin.raw_r = u.pick(2 * bins, right);
}

template <int K, bool on_heights, class T, class Shares, class U, class Set>
FLOWKERN_HD void locate(Located<T, Shares>& at, T x, const U& u, const Set& set, Axis<T> across,
                        Axis<T> up) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  Side<T, Shares>&widths = at.widths, &heights = at.heights;
  Bin<T>& bin = at.bin;
  prepare<K>(widths, u, 0, bins, set, across, set.min_width);
  prepare<K>(heights, u, bins, bins, set, up, set.min_height);
  bin.index = search<K>(x, bins, on_heights ? heights : widths);
  follow<K>(bin.index, bins, on_heights ? widths : heights);
  bin.x_k = widths.knots.at(bin.index, widths.below);
  bin.y_k = heights.knots.at(bin.index, heights.below);
  bin.w = fma(widths.own, widths.knots.g, widths.knots.m);
  bin.h = fma(heights.own, heights.knots.g, heights.knots.m);
  // Exact, so that both ends are.
  if (bins == 1) bin.w = across.high - across.low, bin.h = up.high - up.low;
  bin.last = bin.index == T(S(bins - 1));
  pick_slopes(u, bins, set, bin);
  set_slopes(bin, set);
}

// d slope/d raw: softplus' = sigmoid, or exp(v)·softclip'(raw).
template <class T, class Set> FLOWKERN_HD T slope_derivative(T raw, T value, const Set& set) {
  if constexpr (Set::soft) return value * softclip_derivative(raw, typename Set::scalar(1), set);
  else return sigmoid(raw);
}

// Puts value(i) as number first + i, for i < count, where count is K unless K = 0. Kept shares, which
// value(i) is the last to need, give their room to the values.
template <int K, class T, int N, class Put, class F>
FLOWKERN_HD void put_each(Kept<T, N>& room, const Put& put, int first, int count, const F& value) {
  each<K>(count, [&](int i) FLOWKERN_INLINE { room.e[i] = value(i); });
  put.template run<K>(first, count, room.e);
}
template <int K, class T, class U, class Set, class Put, class F>
FLOWKERN_HD void put_each(Recomputed<T, U, Set>&, const Put& put, int first, int count, const F& value) {
  for (int i = 0; i < count; ++i) {
    const T v = value(i);
    put.template run<1>(first + i, 1, &v);
  }
}

// Cotangents of one axis' raw parameters: factor·softmax_i·(G_i − Σ_j softmax_j G_j), where G_i is
// the cotangent of share i: that of the left knot for bins below k, of the size for bin k, else 0.
template <int K, class T, class Shares, class U, class Set, class Put>
FLOWKERN_HD void softmax_vjp(Side<T, Shares>& s, T index, const U& u, int first, const Set& set,
                             T g_knot, T g_size, const Put& put) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T by_e = s.knots.g * T(set.scale);  // span·(1 − minimum·K)·scale/Σe
  const T at_knot = g_knot * by_e, at_size = g_size * by_e;
  const T mean = fma(at_knot, s.below, at_size * s.own) * s.inverse_total;
  const T below = at_knot - mean, own = at_size - mean, above = T(S(0)) - mean;
  put_each<K>(s.e, put, first, bins, [&](int i) FLOWKERN_INLINE {
    const T g = s.e(i) * select(index >= T(S(i + 1)), below, select(index >= T(S(i)), own, above));
    if constexpr (!Set::soft) return g;
    T raw;
    u.template fetch<1>(first + i, 1, &raw);
    return g * softclip_derivative(raw * T(set.scale), S(2), set);
  });
}

// Cotangents of the free raw slopes: knot i's is that of the left slope in bin i, of the right one
// in bin i − 1.
template <int K, class T, class Shares, class Set, class Put>
FLOWKERN_HD void slopes_vjp(Shares& room, T index, const Set& set, T g_p, T g_r, const Put& put) {
  using S = typename Set::scalar;
  const int bins = K ? K : set.bins;
  const T zero = T(S(0));
  // Index of the raw slope of knot 1; knots 1 … K − 1 have one each whatever the tails.
  const int inner = 2 * bins + (set.tails == kIdentity ? 0 : 1);
  put_each<K ? K - 1 : 0>(room, put, inner, bins - 1, [&](int i) FLOWKERN_INLINE {
    return select(index == T(S(i + 1)), g_p, select(index == T(S(i)), g_r, zero));
  });
  if (set.tails == kIdentity) return;
  T left = select(index == zero, g_p, zero), right = select(index == T(S(bins - 1)), g_r, zero);
  if (set.tails == kCircular) left = left + right;
  else put.template run<1>(3 * bins, 1, &right);
  put.template run<1>(2 * bins, 1, &left);
}

FLOWKERN_END
