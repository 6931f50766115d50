// The vocabulary in which the ops write their formulas, for one float or double.
//
// vec.h gives the same names to a vector of lanes, so that a formula written once as a template runs
// on a CUDA thread, on a plain CPU and on eight or sixteen lanes at a time.
#pragma once

#include "platform.h"

FLOWKERN_BEGIN

template <class T> struct Lanes { using scalar = T; using mask = bool; static constexpr int count = 1; };

FLOWKERN_HD float select(bool m, float a, float b) { return m ? a : b; }
FLOWKERN_HD double select(bool m, double a, double b) { return m ? a : b; }
// a + b where m holds, else a.
FLOWKERN_HD float add_where(bool m, float a, float b) { return m ? a + b : a; }
FLOWKERN_HD double add_where(bool m, double a, double b) { return m ? a + b : a; }
// Both return b where either is NaN, as the vector instructions do; on a GPU, NaN.
#if defined(__CUDA_ARCH__)
FLOWKERN_HD float max(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
FLOWKERN_HD float min(float a, float b) {
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
#else
FLOWKERN_HD float max(float a, float b) { return a > b ? a : b; }
FLOWKERN_HD float min(float a, float b) { return a < b ? a : b; }
#endif
FLOWKERN_HD double max(double a, double b) { return a > b ? a : b; }
FLOWKERN_HD double min(double a, double b) { return a < b ? a : b; }
FLOWKERN_HD bool both(bool a, bool b) { return a && b; }
FLOWKERN_HD bool negate(bool a) { return !a; }

#if defined(__CUDACC__)
FLOWKERN_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FLOWKERN_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
FLOWKERN_HD float abs(float a) { return ::fabsf(a); }
FLOWKERN_HD double abs(double a) { return ::fabs(a); }
FLOWKERN_HD float sqrt(float a) { return ::sqrtf(a); }
FLOWKERN_HD double sqrt(double a) { return ::sqrt(a); }
FLOWKERN_HD float round(float a) { return ::rintf(a); }
FLOWKERN_HD double round(double a) { return ::rint(a); }
FLOWKERN_HD float exp(float a) { return ::expf(a); }
FLOWKERN_HD double exp(double a) { return ::exp(a); }
FLOWKERN_HD float exp2_nonpositive(float a) {
#if defined(__CUDA_ARCH__)
  float power;  // exp2f differs in results below 2^-126 alone, which are 0 here
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a));
  return power;
#else
  return ::exp2f(a);
#endif
}
FLOWKERN_HD double exp2_nonpositive(double a) { return ::exp2(a); }
// 1/b and a/b, to a rounding or two, where b and 1/b are between 2^-126 and 2^126: without a GPU's branch for others.
FLOWKERN_HD float reciprocal(float b) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  return ::fmaf(r, ::fmaf(-b, r, 1.0f), r);
#else
  return 1.0f / b;
#endif
}
FLOWKERN_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  const float r = reciprocal(b), q = a * r;
  return ::fmaf(r, ::fmaf(-b, q, a), q);
#else
  return a / b;
#endif
}
FLOWKERN_HD float log(float a) { return ::logf(a); }
FLOWKERN_HD double log(double a) { return ::log(a); }
FLOWKERN_HD float tanh(float a) { return ::tanhf(a); }
FLOWKERN_HD double tanh(double a) { return ::tanh(a); }
FLOWKERN_HD float atan(float a) { return ::atanf(a); }
FLOWKERN_HD double atan(double a) { return ::atan(a); }
#else
// Compiler builtins instead of <cmath>: a standard header would bring inline functions along.
FLOWKERN_HD float fma(float a, float b, float c) { return a * b + c; }
FLOWKERN_HD double fma(double a, double b, double c) { return a * b + c; }
FLOWKERN_HD float abs(float a) { return __builtin_fabsf(a); }
FLOWKERN_HD double abs(double a) { return __builtin_fabs(a); }
FLOWKERN_HD float sqrt(float a) { return __builtin_sqrtf(a); }
FLOWKERN_HD double sqrt(double a) { return __builtin_sqrt(a); }
FLOWKERN_HD float round(float a) { return __builtin_rintf(a); }
FLOWKERN_HD double round(double a) { return __builtin_rint(a); }
FLOWKERN_HD float exp(float a) { return __builtin_expf(a); }
FLOWKERN_HD double exp(double a) { return __builtin_exp(a); }
FLOWKERN_HD float exp2_nonpositive(float a) { return __builtin_exp2f(a); }
FLOWKERN_HD double exp2_nonpositive(double a) { return __builtin_exp2(a); }
FLOWKERN_HD float log(float a) { return __builtin_logf(a); }
FLOWKERN_HD double log(double a) { return __builtin_log(a); }
FLOWKERN_HD float tanh(float a) { return __builtin_tanhf(a); }
FLOWKERN_HD double tanh(double a) { return __builtin_tanh(a); }
FLOWKERN_HD float atan(float a) { return __builtin_atanf(a); }
FLOWKERN_HD double atan(double a) { return __builtin_atan(a); }
#endif

// Horner's rule, coefficients from the constant term up.
template <class V, class S, int N> FLOWKERN_HD V polynomial(V x, const S (&c)[N]) {
  V y = V(c[N - 1]);
  each<N, 1>(N, [&](int i) FLOWKERN_INLINE { y = fma(y, x, V(c[N - 1 - i])); });
  return y;
}

FLOWKERN_END
