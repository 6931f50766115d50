// Sixteen floats or eight doubles in a 512-bit register, masks in mask registers.
#pragma once

#include <immintrin.h>

#include "scalar.h"

FLOWKERN_BEGIN

struct VecF {
  __m512 v;
  VecF() = default;
  FLOWKERN_HD VecF(__m512 v) : v(v) {}
  FLOWKERN_HD VecF(float s) : v(_mm512_set1_ps(s)) {}
  FLOWKERN_HD explicit VecF(int s) : v(_mm512_set1_ps(float(s))) {}
  FLOWKERN_HD explicit VecF(double s) : v(_mm512_set1_ps(float(s))) {}
};
struct VecD {
  __m512d v;
  VecD() = default;
  FLOWKERN_HD VecD(__m512d v) : v(v) {}
  FLOWKERN_HD VecD(double s) : v(_mm512_set1_pd(s)) {}
  FLOWKERN_HD explicit VecD(int s) : v(_mm512_set1_pd(double(s))) {}
};
struct MaskF { __mmask16 m; };
struct MaskD { __mmask8 m; };

template <> struct Lanes<VecF> { using scalar = float; using mask = MaskF; static constexpr int count = 16; };
template <> struct Lanes<VecD> { using scalar = double; using mask = MaskD; static constexpr int count = 8; };

template <class S> struct VecOf;
template <> struct VecOf<float> { using type = VecF; };
template <> struct VecOf<double> { using type = VecD; };
template <class S> using Vec = typename VecOf<S>::type;

FLOWKERN_HD VecF load(const float* p) { return _mm512_loadu_ps(p); }
FLOWKERN_HD VecD load(const double* p) { return _mm512_loadu_pd(p); }
FLOWKERN_HD void store(float* p, VecF a) { _mm512_storeu_ps(p, a.v); }
FLOWKERN_HD void store(double* p, VecD a) { _mm512_storeu_pd(p, a.v); }

#define FLOWKERN_BINARY(V, op, f) \
  FLOWKERN_HD V operator op(V a, V b) { return f(a.v, b.v); }
FLOWKERN_BINARY(VecF, +, _mm512_add_ps)
FLOWKERN_BINARY(VecF, -, _mm512_sub_ps)
FLOWKERN_BINARY(VecF, *, _mm512_mul_ps)
FLOWKERN_BINARY(VecF, /, _mm512_div_ps)
FLOWKERN_BINARY(VecD, +, _mm512_add_pd)
FLOWKERN_BINARY(VecD, -, _mm512_sub_pd)
FLOWKERN_BINARY(VecD, *, _mm512_mul_pd)
FLOWKERN_BINARY(VecD, /, _mm512_div_pd)
#undef FLOWKERN_BINARY

#define FLOWKERN_COMPARE(op, predicate)                                                     \
  FLOWKERN_HD MaskF operator op(VecF a, VecF b) { return {_mm512_cmp_ps_mask(a.v, b.v, predicate)}; } \
  FLOWKERN_HD MaskD operator op(VecD a, VecD b) { return {_mm512_cmp_pd_mask(a.v, b.v, predicate)}; }
FLOWKERN_COMPARE(>=, _CMP_GE_OQ)
FLOWKERN_COMPARE(<=, _CMP_LE_OQ)
FLOWKERN_COMPARE(>, _CMP_GT_OQ)
FLOWKERN_COMPARE(<, _CMP_LT_OQ)
FLOWKERN_COMPARE(==, _CMP_EQ_OQ)
#undef FLOWKERN_COMPARE

FLOWKERN_HD MaskF both(MaskF a, MaskF b) { return {__mmask16(a.m & b.m)}; }
FLOWKERN_HD MaskD both(MaskD a, MaskD b) { return {__mmask8(a.m & b.m)}; }
FLOWKERN_HD MaskF negate(MaskF a) { return {__mmask16(~a.m)}; }
FLOWKERN_HD MaskD negate(MaskD a) { return {__mmask8(~a.m)}; }
FLOWKERN_HD VecF select(MaskF m, VecF a, VecF b) { return _mm512_mask_blend_ps(m.m, b.v, a.v); }
FLOWKERN_HD VecD select(MaskD m, VecD a, VecD b) { return _mm512_mask_blend_pd(m.m, b.v, a.v); }

FLOWKERN_HD VecF max(VecF a, VecF b) { return _mm512_max_ps(a.v, b.v); }
FLOWKERN_HD VecD max(VecD a, VecD b) { return _mm512_max_pd(a.v, b.v); }
FLOWKERN_HD VecF min(VecF a, VecF b) { return _mm512_min_ps(a.v, b.v); }
FLOWKERN_HD VecD min(VecD a, VecD b) { return _mm512_min_pd(a.v, b.v); }
FLOWKERN_HD VecF abs(VecF a) { return _mm512_abs_ps(a.v); }
FLOWKERN_HD VecD abs(VecD a) { return _mm512_abs_pd(a.v); }
FLOWKERN_HD VecF sqrt(VecF a) { return _mm512_sqrt_ps(a.v); }
FLOWKERN_HD VecD sqrt(VecD a) { return _mm512_sqrt_pd(a.v); }
FLOWKERN_HD VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
FLOWKERN_HD VecD fma(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
// a − round(a), and 0 for ±inf.
FLOWKERN_HD VecF fraction(VecF a) { return _mm512_reduce_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FLOWKERN_HD VecD fraction(VecD a) { return _mm512_reduce_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FLOWKERN_HD VecF round(VecF a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FLOWKERN_HD VecD round(VecD a) { return _mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// a·2ⁿ for an integral n; over- and underflow are gradual and right.
FLOWKERN_HD VecF scale_by_power(VecF a, VecF n) { return _mm512_scalef_ps(a.v, n.v); }
FLOWKERN_HD VecD scale_by_power(VecD a, VecD n) { return _mm512_scalef_pd(a.v, n.v); }

// a = mantissa·2^exponent with mantissa in [0.75, 1.5); 0 has exponent −inf, inf +inf, a < 0 NaN.
FLOWKERN_HD void split(VecF a, VecF& mantissa, VecF& exponent) {
  mantissa = _mm512_getmant_ps(a.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  // The exponent of a, plus one where its mantissa in [1, 2) is 1.5 or more.
  exponent = VecF(_mm512_getexp_ps(a.v)) - VecF(_mm512_getexp_ps(mantissa.v));
}
FLOWKERN_HD void split(VecD a, VecD& mantissa, VecD& exponent) {
  mantissa = _mm512_getmant_pd(a.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  exponent = VecD(_mm512_getexp_pd(a.v)) - VecD(_mm512_getexp_pd(mantissa.v));
}

FLOWKERN_HD float sum(VecF a) { return _mm512_reduce_add_ps(a.v); }
FLOWKERN_HD double sum(VecD a) { return _mm512_reduce_add_pd(a.v); }

// Four columns of sixteen rows that lie `stride` floats apart, into one vector per column. A row's
// four floats land in one 128-bit quarter by a masked broadcast (no shuffle), then each quarter is
// transposed as a 4×4 block.
FLOWKERN_HD void load_columns4(const float* p, long stride, VecF* columns) {
  const float *q0 = p, *q1 = p + 4 * stride, *q2 = p + 8 * stride, *q3 = p + 12 * stride;
  auto quarter = [&](long r) FLOWKERN_INLINE {
    __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(q0 + r));
    a = _mm512_mask_broadcast_f32x4(a, 0x00F0, _mm_loadu_ps(q1 + r));
    a = _mm512_mask_broadcast_f32x4(a, 0x0F00, _mm_loadu_ps(q2 + r));
    return _mm512_mask_broadcast_f32x4(a, 0xF000, _mm_loadu_ps(q3 + r));
  };
  __m512 a = quarter(0), b = quarter(stride), c = quarter(2 * stride), d = quarter(3 * stride);
  __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)), cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
  columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
  columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
  columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
}

FLOWKERN_HD void store_columns4(float* p, long stride, const VecF* columns) {
  __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(columns[0].v, columns[1].v));
  __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(columns[0].v, columns[1].v));
  __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(columns[2].v, columns[3].v));
  __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(columns[2].v, columns[3].v));
  __m512 row[4] = {_mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)),
                   _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)),
                   _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
                   _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high))};
  for (int r = 0; r < 4; ++r, p += stride) {
    _mm_storeu_ps(p, _mm512_castps512_ps128(row[r]));
    _mm_storeu_ps(p + 4 * stride, _mm512_extractf32x4_ps(row[r], 1));
    _mm_storeu_ps(p + 8 * stride, _mm512_extractf32x4_ps(row[r], 2));
    _mm_storeu_ps(p + 12 * stride, _mm512_extractf32x4_ps(row[r], 3));
  }
}

FLOWKERN_END
