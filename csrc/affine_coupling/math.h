// The affine coupling of one element, from its shift and raw scale, with its derivatives.
//
// T is float, double or a vector of lanes (common/vec.h). Both directions share their formulas by
// way of the factor q = s (inverse: 1/s): y = q·x + b and x = q·(y − b), each with logabsdet log q.
// Symbols and derivations: flowkern/ops/_affine_coupling/README.md.
#pragma once

#include "../common/kinds.h"
#include "../common/maths.h"

FLOWKERN_BEGIN

// What is the same for every element.
template <class S> struct AffineSettings { S a, b, prefactor, shift_prefactor; };

// q, log q and d log q/dv.
template <class T> struct Factor { T q, log_q, rate; };

// Maps from v = prefactor·u that give log s = l(v); the last of them is log s = v.
template <int kind, bool inverse, class T, class S>
FLOWKERN_HD Factor<T> factor_of_logarithm(T v, const AffineSettings<S>& set) {
  const T one = T(S(1)), a = T(set.a);
  T l = v, rate = one;
  if constexpr (kind == kSoftclip) {
    T shrink = one / fma(abs(v), T(S(1) / set.a), one);
    l = v * shrink, rate = shrink * shrink;
  } else if constexpr (kind == kTanh) {
    T t = tanh(v);
    l = a * t, rate = a * (one - t * t);
  } else if constexpr (kind == kAtan) {
    l = a * atan(v), rate = a / fma(v, v, one);
  } else {
    static_assert(kind == kExp, "a scale map without a formula");
  }
  if constexpr (inverse) l = T(S(0)) - l, rate = T(S(0)) - rate;
  return {exp(l), l, rate};
}

// q = g or 1/g with g = sigmoid z + b = (n + b·d)/d, where d = 1 + e, e = exp(−|z|), and n = 1 for
// z ≥ 0, else e: one division, and nothing overflows.
template <bool reciprocal, class T, class S>
FLOWKERN_HD Factor<T> factor_of_sigmoid(T z, const AffineSettings<S>& set) {
  const T zero = T(S(0)), one = T(S(1));
  T e = exp(zero - abs(z)), d = one + e;
  auto right = z >= zero;
  T n = select(right, one, e);
  T n_bd = fma(T(set.b), d, n);
  Factor<T> f;
  f.q = reciprocal ? d / n_bd : n_bd / d;
  if (set.b == S(0)) {  // log sigmoid z stays finite where sigmoid z underflows
    T log_g = min(zero, z) - log1p_unit(e);
    f.log_q = reciprocal ? zero - log_g : log_g;
    f.rate = select(right, e, one) / d;
  } else {
    f.log_q = log(f.q);
    f.rate = e / (d * n_bd);
  }
  if constexpr (reciprocal) f.rate = zero - f.rate;
  return f;
}

template <bool reciprocal, class T, class S>
FLOWKERN_HD Factor<T> factor_of_softplus(T z, const AffineSettings<S>& set) {
  const T zero = T(S(0)), one = T(S(1));
  T e = exp(zero - abs(z));
  T s = max(zero, z) + log1p_unit(e) + T(set.b);
  T log_s = log(s), rate = select(z >= zero, one, e) / ((one + e) * s);
  if (set.b == S(0)) {  // softplus z = e·(1 − e/2 + …), which underflows before its logarithm does
    auto tiny = z < T(S(-20));
    T half = e * T(S(0.5));
    log_s = select(tiny, z - half, log_s);
    rate = select(tiny, one - half, rate);
  }
  if constexpr (reciprocal) return {one / s, zero - log_s, zero - rate};
  else return {s, log_s, rate};
}

template <int kind, bool inverse, class T, class S>
FLOWKERN_HD Factor<T> factor(T raw, const AffineSettings<S>& set) {
  const T v = T(set.prefactor) * raw;
  const T z = v + T(set.a);
  if constexpr (kind == kSigmoid) return factor_of_sigmoid<inverse>(z, set);
  else if constexpr (kind == kReciprocalSigmoid) return factor_of_sigmoid<!inverse>(z, set);
  else if constexpr (kind == kSoftplus) return factor_of_softplus<inverse>(z, set);
  else return factor_of_logarithm<kind, inverse>(v, set);
}

// y and log s; inverse: x and −log s.
template <class T> struct AffineValue { T y, logabsdet; };

template <int kind, bool inverse, class T, class S>
FLOWKERN_HD AffineValue<T> affine(T x, T shift, T raw, const AffineSettings<S>& set) {
  const T b = T(set.shift_prefactor) * shift;
  if constexpr (kind == kAdditive) {
    return {inverse ? x - b : x + b, T(S(0))};
  } else {
    const Factor<T> f = factor<kind, inverse>(raw, set);
    return {inverse ? f.q * (x - b) : fma(f.q, x, b), f.log_q};
  }
}

// Cotangents of x, shift and raw, from those of y and logabsdet (inverse: of x and its logabsdet).
template <class T> struct AffineCotangent { T x, shift, raw; };

template <int kind, bool inverse, class T, class S>
FLOWKERN_HD AffineCotangent<T> affine_vjp(T x, T shift, T raw, T g_out, T g_logabsdet,
                                          const AffineSettings<S>& set) {
  const T zero = T(S(0)), by_shift = T(set.shift_prefactor);
  if constexpr (kind == kAdditive) {
    return {g_out, (inverse ? zero - g_out : g_out) * by_shift, zero};
  } else {
    const Factor<T> f = factor<kind, inverse>(raw, set);
    const T centred = inverse ? x - by_shift * shift : x;
    const T g_x = g_out * f.q;
    // q·centred is y − b (inverse: x): finite wherever the output is, even where g_x overflows.
    // The rate, which goes to 0 where a map saturates, multiplies g before y does: neither product is too large.
    const T g_raw = fma(g_out * f.rate, f.q * centred, g_logabsdet * f.rate) * T(set.prefactor);
    return {g_x, (inverse ? zero - g_x : g_out) * by_shift, g_raw};
  }
}

FLOWKERN_END
