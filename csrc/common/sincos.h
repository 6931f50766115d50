// sin and cos, of 2πu or of an angle, for one lane or many: for u in turns, the reduction to a quarter turn
// is exact.
#pragma once

#include "vec.h"

FLOWKERN_BEGIN

// sin 2πx for |x| ≤ ¼ as x·P(x²); near-minimax fits, beside each its error relative to the sine.
template <class T> FLOWKERN_HD T sin_of_quarter_turn(T x, float) {
  constexpr float P[] = {6.283185482f, -41.3416824341f, 81.6024780273f, -76.5811691284f, 39.7598266602f};  // 4e-8
  return x * polynomial(x * x, P);
}
template <class T> FLOWKERN_HD T sin_of_quarter_turn(T x, double) {
  constexpr double P[] = {6.283185307179586, -41.341702240399755, 81.60524927607362,  // 4e-17
                          -76.70585975282492, 42.058693925428685, -15.0946416761179,
                          3.8199280942271643, -0.7177337921413454, 0.10089695501646812};
  return x * polynomial(x * x, P);
}

// With u = n + v and h = |v| ≤ ½: cos 2πu = sin 2π(¼ − h), and sin 2πu = ±sin 2πh = ±sin 2π(½ − h).
template <class T> FLOWKERN_HD void sincos_turns(T u, T& sine, T& cosine) {
  using S = typename Lanes<T>::scalar;
  const T zero = T(S(0)), v = u - round(u), h = abs(v);
  const T size = sin_of_quarter_turn(min(T(S(0.5)) - h, h), S());
  sine = select(v < zero, zero - size, size);
  cosine = sin_of_quarter_turn(T(S(0.25)) - h, S());
}

// 2π = high + low, where n·high is exact for n up to 2^16 (double: 2^26).
template <class S> struct Turn;
template <> struct Turn<float> { static constexpr float high = 6.28125f, low = 1.935307179586477e-3f; };
template <> struct Turn<double> {
  static constexpr double high = 6.283185303211212, low = 3.968374318722162e-9;
};

// Of an angle in radians, of up to 10⁴ turns.
template <class T> FLOWKERN_HD void sincos(T angle, T& sine, T& cosine) {
  using S = typename Lanes<T>::scalar;
  const T inverse = T(S(0.15915494309189535)), turns = round(angle * inverse);
  const T rest = fma(turns, T(-Turn<S>::low), fma(turns, T(-Turn<S>::high), angle));
  sincos_turns(rest * inverse, sine, cosine);
}

FLOWKERN_END
