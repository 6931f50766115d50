// The activations of conditioners and vector fields, with their derivatives, for one lane or many.
#pragma once

#include "kinds.h"
#include "maths.h"

FLOWKERN_BEGIN

// Σ c_j·T_j(y) by Clenshaw's rule, with half of c_0.
template <class T, class S, int N> FLOWKERN_HD T chebyshev(T y, const S (&c)[N]) {
  const T two_y = y + y, zero = T(S(0));
  T b = zero, b_next = zero;
  each<N, 1>(N, [&](int i) FLOWKERN_INLINE {
    const T b_now = fma(two_y, b, T(c[N - i]) - b_next);
    b_next = b, b = b_now;
  });
  return fma(y, b, T(c[0] * S(0.5)) - b_next);
}

// log(erfc(a)·exp(a²)/t) with t = 1/(1 + a/2), fitted in t for a up to `furthest`, and t mapped to [−1, 1].
template <class S> struct ErfcFit;
template <> struct ErfcFit<float> {  // 4e-8
  static constexpr float furthest = 8.0f;
  template <class T> static FLOWKERN_HD T at(T y) {
    constexpr float c[] = {-1.0606281f, 0.53060203f, 0.0053763242f, -0.0057293599f, -7.4883563e-5f,
                           1.4886784e-4f, -4.9245801e-6f, -4.6370475e-6f, 5.3460632e-7f, 1.2713165e-7f};
    return chebyshev(y, c);
  }
};
template <> struct ErfcFit<double> {  // 3e-17
  static constexpr double furthest = 20.0;
  template <class T> static FLOWKERN_HD T at(T y) {
    constexpr double c[] = {
        -1.195139379501488976,     0.593312207790659739,       0.01227289999620251475,    -0.007840160061620577315,
        -0.0004372295595657757681, 0.0002633327548008880392,   9.78896168713888087e-6,    -0.00001189446570674565853,
        2.556141694168383967e-7,   5.679968739528649527e-7,    -6.135035506141350365e-8,  -2.401533632616467861e-8,
        5.812299558196842464e-9,   6.404647024837991295e-10,   -3.954891085361746301e-10, 1.618922260197154821e-11,
        1.93721526558807517e-11,   -3.65180314609476438e-12,   -4.930872009852796463e-13, 2.697175595155491945e-13,
        -1.807851606895260339e-14, -1.058511138422363752e-14,  2.731429064500644736e-15};
    return chebyshev(y, c);
  }
};

// Φ(z) = erfc(−z/√2)/2, to about one rounding of 1.
template <class T> FLOWKERN_HD T normal_cdf(T z) {
  using S = typename Lanes<T>::scalar;
  using Fit = ErfcFit<S>;
  constexpr S low = S(1) / (S(1) + Fit::furthest / 2);
  const T one = T(S(1)), zero = T(S(0));
  const T a = abs(z) * T(S(0.70710678118654752440));
  const T t = one / fma(min(T(Fit::furthest), a), T(S(0.5)), one);
  const T y = fma(t, T(2 / (1 - low)), T(S(-1) - 2 * low / (1 - low)));
  const T tail = T(S(0.5)) * t * exp(Fit::at(y) - a * a);
  return select(z < zero, tail, one - tail);
}

// exp z − 1 for z ≤ 0, to full relative accuracy.
template <class T> FLOWKERN_HD T expm1_negative(T z) {
  using S = typename Lanes<T>::scalar;
  const T t = tanh(z * T(S(0.5)));
  return (t + t) / (T(S(1)) - t);
}

// An activation with its derivatives up to `order`; at a kink those from the left.
template <class T> struct Jet { T u, d, e; };

template <int kind, int order, class T, class S> FLOWKERN_HD Jet<T> activation_jet(S slope, T z) {
  const T zero = T(S(0)), one = T(S(1)), two = T(S(2));
  if constexpr (kind == kLeakyRelu) {
    return {max(zero, z) + T(slope) * min(zero, z), select(z > zero, one, T(slope)), zero};
  } else if constexpr (kind == kTanhActivation) {
    const T t = tanh(z), d = one - t * t;
    return {t, d, zero - two * t * d};
  } else if constexpr (kind == kElu) {
    const T u = max(zero, z) + T(slope) * expm1_negative(min(zero, z));
    if constexpr (order == 0) return {u, zero, zero};
    const T grows = T(slope) * exp(min(zero, z));
    return {u, select(z > zero, one, grows), select(z > zero, zero, grows)};
  } else if constexpr (kind == kSilu) {
    const T s = sigmoid(z), rest = one - s;
    return {z * s, s * fma(z, rest, one), s * rest * fma(z, rest - s, two)};
  } else if constexpr (kind == kGelu) {
    const T below = normal_cdf(z);
    if constexpr (order == 0) return {z * below, zero, zero};
    const T density = T(S(0.39894228040143267794)) * exp(T(S(-0.5)) * z * z);
    return {z * below, fma(z, density, below), density * (two - z * z)};
  } else if constexpr (kind == kSigmoidActivation) {
    const T s = sigmoid(z), d = s * (one - s);
    return {s, d, d * (one - two * s)};
  } else if constexpr (kind == kSoftplusActivation) {
    const T u = softplus(z);
    if constexpr (order == 0) return {u, zero, zero};
    const T s = sigmoid(z);
    return {u, s, s * (one - s)};
  } else {
    static_assert(kind == kIdentityActivation, "an activation without a formula");
    return {z, one, zero};
  }
}

// The activation alone, of a kind known at run time; NaN for any other code.
template <class T, class S> FLOWKERN_HD T activate(int kind, S slope, T z) {
  T u = T(S(__builtin_nanf("")));
  by_activation(kind, [&](auto k) FLOWKERN_INLINE { u = activation_jet<decltype(k)::value, 0>(slope, z).u; });
  return u;
}

// Its derivative; at the kink of leaky_relu and elu that from the left, as PyTorch has it.
template <class T, class S> FLOWKERN_HD T activation_derivative(int kind, S slope, T z) {
  T d = T(S(__builtin_nanf("")));
  by_activation(kind, [&](auto k) FLOWKERN_INLINE { d = activation_jet<decltype(k)::value, 1>(slope, z).d; });
  return d;
}

// The same where u = activate(z) is known, which spares some kinds a second one.
template <class T, class S> FLOWKERN_HD T activation_derivative(int kind, S slope, T z, T u) {
  const T one = T(S(1));
  if (kind == kTanhActivation) return one - u * u;
  if (kind == kSigmoidActivation) return u * (one - u);
  return activation_derivative(kind, slope, kind == kLeakyRelu && slope >= S(0) ? u : z);  // of one sign
}
// Whether it needs u alone: z may be u.
template <class S> constexpr bool differentiates_by_value(int kind, S slope) {
  const bool keeps_sign = kind == kLeakyRelu && slope >= S(0);
  return keeps_sign || kind == kIdentityActivation || kind == kTanhActivation || kind == kSigmoidActivation;
}

FLOWKERN_END
