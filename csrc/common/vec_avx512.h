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
FLOWKERN_HD VecF add_where(MaskF m, VecF a, VecF b) { return _mm512_mask_add_ps(a.v, m.m, a.v, b.v); }
FLOWKERN_HD VecD add_where(MaskD m, VecD a, VecD b) { return _mm512_mask_add_pd(a.v, m.m, a.v, b.v); }

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
// a − floor(a), 0 for ±inf, and b·2^floor(a).
constexpr int kFloor = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
FLOWKERN_HD VecF fraction(VecF a) { return _mm512_reduce_ps(a.v, kFloor); }
FLOWKERN_HD VecD fraction(VecD a) { return _mm512_reduce_pd(a.v, kFloor); }
FLOWKERN_HD VecF scale_by_floor(VecF b, VecF a) { return _mm512_scalef_ps(b.v, a.v); }
FLOWKERN_HD VecD scale_by_floor(VecD b, VecD a) { return _mm512_scalef_pd(b.v, a.v); }
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

// values[i] for integral i, which may differ from lane to lane; lane l's begin l·stride further on.
FLOWKERN_HD VecF pick_lanes(const float* values, long stride, VecF i) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i first = _mm512_mullo_epi32(lane, _mm512_set1_epi32(int(stride)));
  return _mm512_i32gather_ps(_mm512_add_epi32(first, _mm512_cvtps_epi32(i.v)), values, 4);
}
FLOWKERN_HD VecD pick_lanes(const double* values, long stride, VecD i) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i first = _mm256_mullo_epi32(lane, _mm256_set1_epi32(int(stride)));
  return _mm512_i32gather_pd(_mm256_add_epi32(first, _mm512_cvtpd_epi32(i.v)), values, 8);
}

// Transposes 4×4 blocks of floats: one of a 128-bit quarter of the registers each.
FLOWKERN_HD void transpose_quarters(__m512 a, __m512 b, __m512 c, __m512 d, __m512* out) {
  const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
  const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
  out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
  out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
  out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
}

// Four columns of sixteen rows that lie `stride` floats apart, into one vector per column. A row's
// four floats land in one 128-bit quarter by a masked broadcast (no shuffle), then each quarter is
// transposed as a 4×4 block.
FLOWKERN_HD void load_columns4(const float* p, long stride, VecF* columns) {
  auto quarter = [&](long r) FLOWKERN_INLINE {
    const float* row = p + r * stride;
    __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(row));
    a = _mm512_mask_broadcast_f32x4(a, 0x00F0, _mm_loadu_ps(row + 4 * stride));
    a = _mm512_mask_broadcast_f32x4(a, 0x0F00, _mm_loadu_ps(row + 8 * stride));
    return _mm512_mask_broadcast_f32x4(a, 0xF000, _mm_loadu_ps(row + 12 * stride));
  };
  __m512 out[4];
  transpose_quarters(quarter(0), quarter(1), quarter(2), quarter(3), out);
  for (int i = 0; i < 4; ++i) columns[i] = out[i];
}

FLOWKERN_HD void store_columns4(float* p, long stride, const VecF* columns) {
  __m512 row[4];
  transpose_quarters(columns[0].v, columns[1].v, columns[2].v, columns[3].v, row);
  for (int r = 0; r < 4; ++r, p += stride) {
    _mm_storeu_ps(p, _mm512_castps512_ps128(row[r]));
    _mm_storeu_ps(p + 4 * stride, _mm512_extractf32x4_ps(row[r], 1));
    _mm_storeu_ps(p + 8 * stride, _mm512_extractf32x4_ps(row[r], 2));
    _mm_storeu_ps(p + 12 * stride, _mm512_extractf32x4_ps(row[r], 3));
  }
}

// Eight columns likewise, by halves: half[r] holds rows h(r) and h(r) + 4, with h = 0 1 2 3 8 9 10 11,
// so that its quarters are (row h, first four), (h, last four), (h + 4, first), (h + 4, last).
FLOWKERN_HD void load_columns8(const float* p, long stride, VecF* columns) {
  auto half = [&](long r) FLOWKERN_INLINE {
    const float* row = p + r * stride;
    const __m512 a = _mm512_castps256_ps512(_mm256_loadu_ps(row));
    return _mm512_mask_broadcast_f32x8(a, 0xFF00, _mm256_loadu_ps(row + 4 * stride));
  };
  __m512 low[4], high[4];
  transpose_quarters(half(0), half(1), half(2), half(3), low);
  transpose_quarters(half(8), half(9), half(10), half(11), high);
  for (int i = 0; i < 4; ++i) {
    columns[i] = _mm512_shuffle_f32x4(low[i], high[i], 0x88);      // quarters 0 2 of each
    columns[i + 4] = _mm512_shuffle_f32x4(low[i], high[i], 0xDD);  // 1 3
  }
}

FLOWKERN_HD void store_columns8(float* p, long stride, const VecF* columns) {
  __m512 left[4], right[4];  // rows r, r + 4, r + 8, r + 12 of the first and the last four columns
  transpose_quarters(columns[0].v, columns[1].v, columns[2].v, columns[3].v, left);
  transpose_quarters(columns[4].v, columns[5].v, columns[6].v, columns[7].v, right);
  const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int r = 0; r < 4; ++r, p += stride) {
    const __m512d l = _mm512_castps_pd(left[r]), t = _mm512_castps_pd(right[r]);
    const __m512 a = _mm512_castpd_ps(_mm512_permutex2var_pd(l, even, t));  // rows r and r + 8
    const __m512 b = _mm512_castpd_ps(_mm512_permutex2var_pd(l, odd, t));   // r + 4 and r + 12
    _mm256_storeu_ps(p, _mm512_castps512_ps256(a));
    _mm256_storeu_ps(p + 4 * stride, _mm512_castps512_ps256(b));
    _mm256_storeu_ps(p + 8 * stride, _mm512_extractf32x8_ps(a, 1));
    _mm256_storeu_ps(p + 12 * stride, _mm512_extractf32x8_ps(b, 1));
  }
}

FLOWKERN_END
