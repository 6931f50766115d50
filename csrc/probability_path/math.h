// Probability paths x_t = α(t)·x0 + β(t)·x1 + σ(t)·ε with the velocity u_t = dx_t/dt, element by element.
//
// T is float, double or a vector of lanes (common/vec.h), S what one lane holds. Formulas and sources:
// flowkern/ops/_probability_path/README.md.
#pragma once

#include "../common/kinds.h"
#include "../common/philox.h"
#include "../common/sincos.h"

FLOWKERN_BEGIN

// The streams of a seed.
enum : std::uint32_t { kNoiseStream = 0, kTimeStream = 1 };

// Two independent normal numbers from two uniform ones (Box and Muller).
template <class T> FLOWKERN_HD void box_muller(T u, T v, T& first, T& second) {
  using S = typename Lanes<T>::scalar;
  const T radius = sqrt(T(S(-2)) * log(u));
  T sine, cosine;
  sincos_turns(v, sine, cosine);
  first = radius * cosine, second = radius * sine;
}

// Of x0, x1 and the noise in a sum.
template <class T> struct Weights { T x0, x1, noise; };

template <class T> FLOWKERN_HD T weighted(const Weights<T>& w, T x0, T x1, T noise) {
  return fma(w.x0, x0, fma(w.x1, x1, w.noise * noise));
}

// The weights of x_t and of u_t, and the derivatives of both by t. `exact` are the derivatives of the
// first: for a Schrödinger bridge the second keep clear of a division by zero.
template <class T> struct Path { Weights<T> x, u, exact, slope; };

template <int kind, class T> FLOWKERN_HD Path<T> path_at(T t, typename Lanes<T>::scalar sigma) {
  using S = typename Lanes<T>::scalar;
  const T zero = T(S(0)), one = T(S(1)), minus = T(S(-1)), s = T(sigma);
  Path<T> p{{one - t, t, s}, {minus, one, zero}, {}, {zero, zero, zero}};
  if constexpr (kind == kTarget) {
    const T rate = s - one;
    p.x = {zero, t, fma(rate, t, one)}, p.u = {zero, one, rate};
  } else if constexpr (kind == kVariancePreserving) {
    const T rate = T(S(1.57079632679489661923));
    T sine, cosine;
    sincos_turns(t * T(S(0.25)), sine, cosine);
    p.x = {cosine, sine, s}, p.u = {zero - rate * sine, rate * cosine, zero};
    p.slope = {zero - rate * p.u.x1, rate * p.u.x0, zero};
  } else if constexpr (kind == kSchroedingerBridge) {
    const T q = t * (one - t), root = sqrt(q), r = fma(T(S(-2)), t, one);
    const T above = T(S(2)) * q + T(S(1e-8));  // torchcfm adds this 1e-8
    p.x.noise = s * root, p.u.noise = s * root * r / above;
    const T half = r / (root + root);  // of √q
    p.exact = {minus, one, s * half};
    // (√q·r/a)' = (√q'·r − 2√q − 2r·(√q·r/a))/a
    p.slope.noise = s * (half * r - T(S(2)) * root - T(S(2)) * r * (root * r / above)) / above;
  } else {
    static_assert(kind == kConditional, "a path without a formula");
  }
  if constexpr (kind != kSchroedingerBridge) p.exact = p.u;
  return p;
}

// x_t and u_t.
template <class T> struct Sample { T x, u; };

template <int kind, class T> FLOWKERN_HD Sample<T> sample(T x0, T x1, T noise, T t, typename Lanes<T>::scalar sigma) {
  const Path<T> p = path_at<kind>(t, sigma);
  return {weighted(p.x, x0, x1, noise), weighted(p.u, x0, x1, noise)};
}

// Cotangents of x0 and x1 and this element's part of that of t, from those of x_t and u_t.
template <class T> struct PathCotangent { T x0, x1, t; };

template <int kind, class T>
FLOWKERN_HD PathCotangent<T> sample_vjp(T g_x, T g_u, T x0, T x1, T noise, T t, typename Lanes<T>::scalar sigma) {
  const Path<T> p = path_at<kind>(t, sigma);
  return {fma(p.x.x0, g_x, p.u.x0 * g_u), fma(p.x.x1, g_x, p.u.x1 * g_u),
          fma(g_x, weighted(p.exact, x0, x1, noise), g_u * weighted(p.slope, x0, x1, noise))};
}

FLOWKERN_END
