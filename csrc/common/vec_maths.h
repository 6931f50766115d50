// exp, 2^x, log, tanh and atan on vectors, to one or two units in the last place, special values
// included.
//
// The polynomials are near-minimax fits (Chebyshev interpolation in 40 digits) on the reduced range;
// beside each stands its error there, in absolute terms.
#pragma once

#include "scalar.h"
#if defined(__AVX512F__)
#include "tanh_avx512.h"
#endif

FLOWKERN_BEGIN

// 2^x = 2ⁿ·2^f with n = floor x, f = x − n, 2^f = 1 + f·P(f).
FLOWKERN_HD VecF exp2_nonpositive(VecF x) {
  constexpr float P[] = {0.6931471709f, 0.2402272042f, 0.05549602356f,  // 5e-9
                         0.009652195056f, 0.001269216607f, 0.0002081791504f};
  VecF f = fraction(x);
  return scale_by_floor(fma(f, polynomial(f, P), VecF(1.0f)), x);
}
FLOWKERN_HD VecD exp2_nonpositive(VecD x) {
  constexpr double P[] = {0.693147180559945309, 0.240226506959100776, 0.0555041086648185607,  // 1e-19
                          0.00961812910768474737, 0.00133335581410155709, 0.000154035307002398686,
                          0.0000152527227928132238, 1.32157463441484434e-6, 1.017401785226927e-7,
                          7.09679519777703998e-9, 4.17505280589935886e-10, 3.5440421858907e-11};
  VecD f = fraction(x);
  return scale_by_floor(fma(f, polynomial(f, P), VecD(1.0)), x);
}

// exp x = 2ⁿ·exp r with n = round(x/ln 2), r = x − n·ln 2 by two steps, exp r = 1 + r + r²·Q(r).
// NaN passes through max and min, which return their second argument then.
FLOWKERN_HD VecF exp(VecF x) {
  constexpr float Q[] = {0.5f, 0.1666657703f, 0.04166655466f, 0.008363173075f, 0.001392617612f};  // 6e-8·r²
  x = max(VecF(-105.0f), min(VecF(89.0f), x));
  VecF n = round(x * VecF(1.44269504089f));
  VecF r = fma(n, VecF(-0.693145751953125f), x);
  r = fma(n, VecF(-1.428606765e-6f), r);
  VecF e = fma(polynomial(r, Q), r * r, r) + VecF(1.0f);
  return scale_by_power(e, n);
}
FLOWKERN_HD VecD exp(VecD x) {
  constexpr double Q[] = {0.5, 0.16666666666666671, 0.0416666666666666698, 0.00833333333332614088,  // 1e-18·r²
                          0.00138888888888837524, 0.00019841269874800492, 0.0000248015873255333638,
                          2.75572554257464343e-6, 2.75572736613486362e-7, 2.51052063739570111e-8,
                          2.09146793765839351e-9};
  x = max(VecD(-746.0), min(VecD(710.0), x));
  VecD n = round(x * VecD(1.44269504088896340736));
  VecD r = fma(n, VecD(-0.693147180369123816490), x);
  r = fma(n, VecD(-1.90821492927058770002e-10), r);
  VecD e = fma(polynomial(r, Q), r * r, r) + VecD(1.0);
  return scale_by_power(e, n);
}

// log x = e·ln 2 + log m with m in [¾, 1½), f = m − 1, log(1 + f) = f − f²/2 + f³·P(f).
FLOWKERN_HD VecF log(VecF x) {
  constexpr float P[] = {0.3333334632f, -0.2500014408f, 0.1999687406f, -0.1664944838f,  // 2e-7·f³
                         0.1438231738f, -0.1306141532f, 0.1089631439f, -0.05147591755f};
  VecF m, e;
  split(x, m, e);
  VecF f = m - VecF(1.0f), f2 = f * f;
  VecF tail = fma(polynomial(f, P), f2 * f, VecF(-0.5f) * f2);
  // ln 2 in two parts: the first has 16 bits, so that its product with e is exact; both are
  // positive, so that e = ±inf stays.
  return fma(e, VecF(0.693145751953125f), f + fma(e, VecF(1.428606765e-6f), tail));
}
// log m = 2s + s³·R(s²) with s = f/(2 + f), rearranged as f − s·(f − s²·R(s²)).
FLOWKERN_HD VecD log(VecD x) {
  constexpr double R[] = {0.666666666666666642, 0.400000000000078006, 0.285714285673391893,  // 3e-17·s³
                          0.222222230378072419, 0.181817384547230256, 0.153888346778019151,
                          0.132103604851326198, 0.136040157071240775};
  VecD m, e;
  split(x, m, e);
  VecD f = m - VecD(1.0), s = f / (f + VecD(2.0)), z = s * s;
  VecD tail = VecD(0.0) - s * (f - z * polynomial(z, R));
  return fma(e, VecD(0.693147180369123816490), f + fma(e, VecD(1.90821492927058770002e-10), tail));
}

// log(1 + e) = e + e²·P(e) for e in [0, 1].
FLOWKERN_HD VecF log1p_unit(VecF e) {
  constexpr float P[] = {-0.4999999698f, 0.3333284189f, -0.2498652617f, 0.1985410623f,  // 2e-8
                         -0.1584756572f, 0.1156184545f, -0.06675772506f, 0.02522405435f,
                         -0.004466211601f};
  return fma(e * e, polynomial(e, P), e);
}

// tanh x = x·(1 + x²·P(x²)) where |x| < 9/16, else ±(1 − 2/(exp 2|x| + 1)).
template <class V, class S, int N> FLOWKERN_HD V tanh_by(V x, const S (&P)[N]) {
  V size = abs(x), z = x * x;
  V near = x * fma(z, polynomial(z, P), V(S(1)));
  V far = V(S(1)) - V(S(2)) / (exp(size + size) + V(S(1)));
  return select(size < V(S(0.5625)), near, select(x < V(S(0)), V(S(0)) - far, far));
}
#if !defined(__AVX512F__)
FLOWKERN_HD VecF tanh(VecF x) {
  constexpr float P[] = {-0.3333333135f, 0.1333307326f, -0.05390175432f, 0.02126335353f,  // 2e-8·x³
                         -0.006525572389f};
  return tanh_by(x, P);
}
#endif
FLOWKERN_HD VecD tanh(VecD x) {
  constexpr double P[] = {-0.333333333333333321, 0.133333333333323909,  // 2e-17·x³
                          -0.0539682539670593965, 0.0218694884769625614, -0.0088632340215295136,
                          0.00359210553213276877, -0.00145562397741926778, 0.000588753711183480391,
                          -0.000234105569366727973, 0.000084265222039580661,
                          -0.0000200267400853176847};
  return tanh_by(x, P);
}

// atan x = atan t + 0, ±π/4 or ±π/2 with t = x, (|x| − 1)/(|x| + 1) or −1/|x|; |t| ≤ tan ½, because
// from there on the sum is ½ or more, which keeps the rounding of t small beside it.
// atan t = t·(1 + t²·P(t²)).
template <class V, class S, int N> FLOWKERN_HD V atan_by(V x, const S (&P)[N]) {
  const V zero = V(S(0)), one = V(S(1));
  V size = abs(x);
  auto near = size < V(S(0.5463024898437905)), far = size > V(S(2.414213562373095));
  V t = select(far, zero - one, size - one) / select(far, size, size + one);
  t = select(near, x, t);
  V z = t * t, angle = t * fma(z, polynomial(z, P), one);
  V whole = angle + select(far, V(S(1.5707963267948966192)), V(S(0.7853981633974483096)));
  return select(near, angle, select(x < zero, zero - whole, whole));
}
FLOWKERN_HD VecF atan(VecF x) {
  constexpr float P[] = {-0.3333333135f, 0.1999972761f, -0.1427488029f, 0.1095021293f,  // 2e-8·t³
                         -0.07972017676f, 0.03800407052f};
  return atan_by(x, P);
}
FLOWKERN_HD VecD atan(VecD x) {
  constexpr double P[] = {-0.333333333333333304, 0.199999999999966338,  // 4e-17·t³
                          -0.142857142850802755, 0.111111110640331014, -0.0909090726757727562,
                          0.076922654652534355,
                          -0.0666603500141548689, 0.0587596557649866963, -0.0521836464008231288,
                          0.045416251278098801, -0.0358871343307895326, 0.0218458774042326795,
                          -0.00720851095210739668};
  return atan_by(x, P);
}

FLOWKERN_END
