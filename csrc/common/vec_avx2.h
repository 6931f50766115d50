// Eight floats or four doubles in a 256-bit register, masks as all-ones lanes.
#pragma once

#include <immintrin.h>

#include "scalar.h"

FLOWKERN_BEGIN

struct VecF {
  __m256 v;
  VecF() = default;
  FLOWKERN_HD VecF(__m256 v) : v(v) {}
  FLOWKERN_HD VecF(float s) : v(_mm256_set1_ps(s)) {}
  FLOWKERN_HD explicit VecF(int s) : v(_mm256_set1_ps(float(s))) {}
  FLOWKERN_HD explicit VecF(double s) : v(_mm256_set1_ps(float(s))) {}
};
struct VecD {
  __m256d v;
  VecD() = default;
  FLOWKERN_HD VecD(__m256d v) : v(v) {}
  FLOWKERN_HD VecD(double s) : v(_mm256_set1_pd(s)) {}
  FLOWKERN_HD explicit VecD(int s) : v(_mm256_set1_pd(double(s))) {}
};
struct MaskF { __m256 m; };
struct MaskD { __m256d m; };

template <> struct Lanes<VecF> { using scalar = float; using mask = MaskF; static constexpr int count = 8; };
template <> struct Lanes<VecD> { using scalar = double; using mask = MaskD; static constexpr int count = 4; };

template <class S> struct VecOf;
template <> struct VecOf<float> { using type = VecF; };
template <> struct VecOf<double> { using type = VecD; };
template <class S> using Vec = typename VecOf<S>::type;

FLOWKERN_HD VecF load(const float* p) { return _mm256_loadu_ps(p); }
FLOWKERN_HD VecD load(const double* p) { return _mm256_loadu_pd(p); }
FLOWKERN_HD void store(float* p, VecF a) { _mm256_storeu_ps(p, a.v); }
FLOWKERN_HD void store(double* p, VecD a) { _mm256_storeu_pd(p, a.v); }

#define FLOWKERN_BINARY(V, op, f) \
  FLOWKERN_HD V operator op(V a, V b) { return f(a.v, b.v); }
FLOWKERN_BINARY(VecF, +, _mm256_add_ps)
FLOWKERN_BINARY(VecF, -, _mm256_sub_ps)
FLOWKERN_BINARY(VecF, *, _mm256_mul_ps)
FLOWKERN_BINARY(VecF, /, _mm256_div_ps)
FLOWKERN_BINARY(VecD, +, _mm256_add_pd)
FLOWKERN_BINARY(VecD, -, _mm256_sub_pd)
FLOWKERN_BINARY(VecD, *, _mm256_mul_pd)
FLOWKERN_BINARY(VecD, /, _mm256_div_pd)
#undef FLOWKERN_BINARY

#define FLOWKERN_COMPARE(op, predicate)                                                     \
  FLOWKERN_HD MaskF operator op(VecF a, VecF b) { return {_mm256_cmp_ps(a.v, b.v, predicate)}; } \
  FLOWKERN_HD MaskD operator op(VecD a, VecD b) { return {_mm256_cmp_pd(a.v, b.v, predicate)}; }
FLOWKERN_COMPARE(>=, _CMP_GE_OQ)
FLOWKERN_COMPARE(<=, _CMP_LE_OQ)
FLOWKERN_COMPARE(>, _CMP_GT_OQ)
FLOWKERN_COMPARE(<, _CMP_LT_OQ)
FLOWKERN_COMPARE(==, _CMP_EQ_OQ)
#undef FLOWKERN_COMPARE

FLOWKERN_HD MaskF both(MaskF a, MaskF b) { return {_mm256_and_ps(a.m, b.m)}; }
FLOWKERN_HD MaskD both(MaskD a, MaskD b) { return {_mm256_and_pd(a.m, b.m)}; }
FLOWKERN_HD MaskF negate(MaskF a) { return {_mm256_xor_ps(a.m, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))}; }
FLOWKERN_HD MaskD negate(MaskD a) { return {_mm256_xor_pd(a.m, _mm256_castsi256_pd(_mm256_set1_epi32(-1)))}; }
FLOWKERN_HD VecF select(MaskF m, VecF a, VecF b) { return _mm256_blendv_ps(b.v, a.v, m.m); }
FLOWKERN_HD VecD select(MaskD m, VecD a, VecD b) { return _mm256_blendv_pd(b.v, a.v, m.m); }
FLOWKERN_HD VecF add_where(MaskF m, VecF a, VecF b) { return a + VecF(_mm256_and_ps(m.m, b.v)); }
FLOWKERN_HD VecD add_where(MaskD m, VecD a, VecD b) { return a + VecD(_mm256_and_pd(m.m, b.v)); }

FLOWKERN_HD VecF max(VecF a, VecF b) { return _mm256_max_ps(a.v, b.v); }
FLOWKERN_HD VecD max(VecD a, VecD b) { return _mm256_max_pd(a.v, b.v); }
FLOWKERN_HD VecF min(VecF a, VecF b) { return _mm256_min_ps(a.v, b.v); }
FLOWKERN_HD VecD min(VecD a, VecD b) { return _mm256_min_pd(a.v, b.v); }
FLOWKERN_HD VecF abs(VecF a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
FLOWKERN_HD VecD abs(VecD a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
FLOWKERN_HD VecF sqrt(VecF a) { return _mm256_sqrt_ps(a.v); }
FLOWKERN_HD VecD sqrt(VecD a) { return _mm256_sqrt_pd(a.v); }
FLOWKERN_HD VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
FLOWKERN_HD VecD fma(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
FLOWKERN_HD VecF round(VecF a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FLOWKERN_HD VecD round(VecD a) { return _mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// For a ≤ 0: a − floor(a), and b·2^floor(a). What is less than −126 (double: −1022) counts as that.
FLOWKERN_HD VecF floor_limited(VecF a) { return _mm256_floor_ps(max(VecF(-126.0f), a).v); }
FLOWKERN_HD VecD floor_limited(VecD a) { return _mm256_floor_pd(max(VecD(-1022.0), a).v); }
FLOWKERN_HD VecF fraction(VecF a) { return max(VecF(-126.0f), a) - floor_limited(a); }
FLOWKERN_HD VecD fraction(VecD a) { return max(VecD(-1022.0), a) - floor_limited(a); }
// 2ⁿ for an integral n in [−126, 127] (double: [−1022, 1023]): n placed in the exponent field by
// adding the bias to it as a float, whose low bits are then the integer.
FLOWKERN_HD VecF power_of_two(VecF n) {
  __m256i i = _mm256_cvtps_epi32(n.v);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(127)), 23));
}
FLOWKERN_HD VecD power_of_two(VecD n) {
  __m256i i = _mm256_castpd_si256((n + VecD(6755399441055744.0 + 1023)).v);  // 1.5·2⁵² + bias
  return _mm256_castsi256_pd(_mm256_slli_epi64(i, 52));
}

FLOWKERN_HD VecF scale_by_floor(VecF b, VecF a) {
  __m256i n = _mm256_slli_epi32(_mm256_cvtps_epi32(floor_limited(a).v), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(b.v), n));
}
FLOWKERN_HD VecD scale_by_floor(VecD b, VecD a) { return b * power_of_two(floor_limited(a)); }

// a·2ⁿ for an integral n, in two steps so that over- and underflow are gradual and right.
FLOWKERN_HD VecF scale_by_power(VecF a, VecF n) {
  n = max(VecF(-252.0f), min(VecF(254.0f), n));
  VecF half = round(n * VecF(0.5f));
  return a * power_of_two(half) * power_of_two(n - half);
}
FLOWKERN_HD VecD scale_by_power(VecD a, VecD n) {
  n = max(VecD(-2044.0), min(VecD(2046.0), n));
  VecD half = round(n * VecD(0.5));
  return a * power_of_two(half) * power_of_two(n - half);
}

// a = mantissa·2^exponent with mantissa in [0.75, 1.5); 0 has exponent −inf, inf +inf, a < 0 NaN.
FLOWKERN_HD void split(VecF a, VecF& mantissa, VecF& exponent) {
  const VecF infinity = __builtin_inff();
  MaskF small = a < VecF(1.17549435e-38f);  // subnormals are scaled up first
  VecF b = select(small, a * VecF(8388608.0f), a);
  __m256i bits = _mm256_castps_si256(b.v);
  __m256i e = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x3F400000));  // bits of 0.75
  exponent = VecF(_mm256_cvtepi32_ps(_mm256_srai_epi32(e, 23))) - select(small, VecF(23), VecF(0));
  mantissa = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_and_si256(e, _mm256_set1_epi32(int(0xFF800000)))));
  exponent = select(a == VecF(0), VecF(0) - infinity, exponent);
  mantissa = select(a == VecF(0), VecF(1), mantissa);
  exponent = select(a == infinity, infinity, exponent);
  mantissa = select(a == infinity, VecF(1), mantissa);
  mantissa = select(a >= VecF(0), mantissa, VecF(__builtin_nanf("")));
}
FLOWKERN_HD void split(VecD a, VecD& mantissa, VecD& exponent) {
  const VecD infinity = __builtin_inf();
  MaskD small = a < VecD(2.2250738585072014e-308);
  VecD b = select(small, a * VecD(4503599627370496.0), a);
  __m256i bits = _mm256_castpd_si256(b.v);
  __m256i e = _mm256_sub_epi64(bits, _mm256_set1_epi64x(0x3FE8000000000000));  // bits of 0.75
  // The exponent as a double: the shifted field, made positive by a bias, in the low bits of 2⁵².
  __m256i field = _mm256_srli_epi64(_mm256_add_epi64(e, _mm256_set1_epi64x(0x4000000000000000)), 52);
  VecD biased = VecD(_mm256_castsi256_pd(_mm256_or_si256(field, _mm256_set1_epi64x(0x4330000000000000))));
  exponent = biased - VecD(4503599627370496.0 + 1024) - select(small, VecD(52), VecD(0));
  mantissa = _mm256_castsi256_pd(_mm256_sub_epi64(bits, _mm256_and_si256(e, _mm256_set1_epi64x(0xFFF0000000000000))));
  exponent = select(a == VecD(0), VecD(0) - infinity, exponent);
  mantissa = select(a == VecD(0), VecD(1), mantissa);
  exponent = select(a == infinity, infinity, exponent);
  mantissa = select(a == infinity, VecD(1), mantissa);
  mantissa = select(a >= VecD(0), mantissa, VecD(__builtin_nan("")));
}

FLOWKERN_HD float sum(VecF a) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
FLOWKERN_HD double sum(VecD a) {
  __m128d h = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

// values[i] for integral i, which may differ from lane to lane; lane l's begin l·stride further on.
FLOWKERN_HD VecF pick_lanes(const float* values, long stride, VecF i) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i first = _mm256_mullo_epi32(lane, _mm256_set1_epi32(int(stride)));
  return _mm256_i32gather_ps(values, _mm256_add_epi32(first, _mm256_cvtps_epi32(i.v)), 4);
}
FLOWKERN_HD VecD pick_lanes(const double* values, long stride, VecD i) {
  const __m128i lane = _mm_mullo_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(int(stride)));
  return _mm256_i32gather_pd(values, _mm_add_epi32(lane, _mm256_cvtpd_epi32(i.v)), 8);
}

// Four columns of eight rows that lie `stride` floats apart, into one vector per column: each half
// is transposed as a 4×4 block.
FLOWKERN_HD void load_columns4(const float* p, long stride, VecF* columns) {
  auto half = [&](long r) FLOWKERN_INLINE {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + r)),
                                _mm_loadu_ps(p + 4 * stride + r), 1);
  };
  __m256 a = half(0), b = half(stride), c = half(2 * stride), d = half(3 * stride);
  __m256d ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)), ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
  __m256d cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d)), cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  columns[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
  columns[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
  columns[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
  columns[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
}

FLOWKERN_HD void store_columns4(float* p, long stride, const VecF* columns) {
  __m256d ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(columns[0].v, columns[1].v));
  __m256d ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(columns[0].v, columns[1].v));
  __m256d cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(columns[2].v, columns[3].v));
  __m256d cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(columns[2].v, columns[3].v));
  __m256 row[4] = {_mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low)),
                   _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low)),
                   _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high)),
                   _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high))};
  for (int r = 0; r < 4; ++r, p += stride) {
    _mm_storeu_ps(p, _mm256_castps256_ps128(row[r]));
    _mm_storeu_ps(p + 4 * stride, _mm256_extractf128_ps(row[r], 1));
  }
}

// Eight columns: four and four, which takes fewer shuffles than an 8×8 transpose.
FLOWKERN_HD void load_columns8(const float* p, long stride, VecF* columns) {
  load_columns4(p, stride, columns);
  load_columns4(p + 4, stride, columns + 4);
}
FLOWKERN_HD void store_columns8(float* p, long stride, const VecF* columns) {
  store_columns4(p, stride, columns);
  store_columns4(p + 4, stride, columns + 4);
}

FLOWKERN_END
