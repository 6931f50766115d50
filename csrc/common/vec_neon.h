// Four floats or two doubles in a 128-bit register of AArch64, masks as all-ones lanes.
#pragma once

#include <arm_neon.h>

#include "scalar.h"

FLOWKERN_BEGIN

struct VecF {
  float32x4_t v;
  VecF() = default;
  FLOWKERN_HD VecF(float32x4_t v) : v(v) {}
  FLOWKERN_HD VecF(float s) : v(vdupq_n_f32(s)) {}
  FLOWKERN_HD explicit VecF(int s) : v(vdupq_n_f32(float(s))) {}
  FLOWKERN_HD explicit VecF(double s) : v(vdupq_n_f32(float(s))) {}
};
struct VecD {
  float64x2_t v;
  VecD() = default;
  FLOWKERN_HD VecD(float64x2_t v) : v(v) {}
  FLOWKERN_HD VecD(double s) : v(vdupq_n_f64(s)) {}
  FLOWKERN_HD explicit VecD(int s) : v(vdupq_n_f64(double(s))) {}
};
struct MaskF { uint32x4_t m; };
struct MaskD { uint64x2_t m; };

template <> struct Lanes<VecF> { using scalar = float; using mask = MaskF; static constexpr int count = 4; };
template <> struct Lanes<VecD> { using scalar = double; using mask = MaskD; static constexpr int count = 2; };

template <class S> struct VecOf;
template <> struct VecOf<float> { using type = VecF; };
template <> struct VecOf<double> { using type = VecD; };
template <class S> using Vec = typename VecOf<S>::type;

FLOWKERN_HD VecF load(const float* p) { return vld1q_f32(p); }
FLOWKERN_HD VecD load(const double* p) { return vld1q_f64(p); }
FLOWKERN_HD void store(float* p, VecF a) { vst1q_f32(p, a.v); }
FLOWKERN_HD void store(double* p, VecD a) { vst1q_f64(p, a.v); }

#define FLOWKERN_BINARY(op, f)                                                   \
  FLOWKERN_HD VecF operator op(VecF a, VecF b) { return f##_f32(a.v, b.v); } \
  FLOWKERN_HD VecD operator op(VecD a, VecD b) { return f##_f64(a.v, b.v); }
FLOWKERN_BINARY(+, vaddq)
FLOWKERN_BINARY(-, vsubq)
FLOWKERN_BINARY(*, vmulq)
FLOWKERN_BINARY(/, vdivq)
#undef FLOWKERN_BINARY

#define FLOWKERN_COMPARE(op, f)                                                    \
  FLOWKERN_HD MaskF operator op(VecF a, VecF b) { return {f##_f32(a.v, b.v)}; } \
  FLOWKERN_HD MaskD operator op(VecD a, VecD b) { return {f##_f64(a.v, b.v)}; }
FLOWKERN_COMPARE(>=, vcgeq)
FLOWKERN_COMPARE(<=, vcleq)
FLOWKERN_COMPARE(>, vcgtq)
FLOWKERN_COMPARE(<, vcltq)
FLOWKERN_COMPARE(==, vceqq)
#undef FLOWKERN_COMPARE

FLOWKERN_HD MaskF both(MaskF a, MaskF b) { return {vandq_u32(a.m, b.m)}; }
FLOWKERN_HD MaskD both(MaskD a, MaskD b) { return {vandq_u64(a.m, b.m)}; }
FLOWKERN_HD MaskF negate(MaskF a) { return {vmvnq_u32(a.m)}; }
FLOWKERN_HD MaskD negate(MaskD a) { return {veorq_u64(a.m, vdupq_n_u64(~0ull))}; }
FLOWKERN_HD VecF select(MaskF m, VecF a, VecF b) { return vbslq_f32(m.m, a.v, b.v); }
FLOWKERN_HD VecD select(MaskD m, VecD a, VecD b) { return vbslq_f64(m.m, a.v, b.v); }
FLOWKERN_HD VecF add_where(MaskF m, VecF a, VecF b) { return select(m, a + b, a); }
FLOWKERN_HD VecD add_where(MaskD m, VecD a, VecD b) { return select(m, a + b, a); }

// By comparison: the instructions for it return NaN where either is NaN, the vocabulary b.
FLOWKERN_HD VecF max(VecF a, VecF b) { return select(a > b, a, b); }
FLOWKERN_HD VecD max(VecD a, VecD b) { return select(a > b, a, b); }
FLOWKERN_HD VecF min(VecF a, VecF b) { return select(a < b, a, b); }
FLOWKERN_HD VecD min(VecD a, VecD b) { return select(a < b, a, b); }
FLOWKERN_HD VecF abs(VecF a) { return vabsq_f32(a.v); }
FLOWKERN_HD VecD abs(VecD a) { return vabsq_f64(a.v); }
FLOWKERN_HD VecF sqrt(VecF a) { return vsqrtq_f32(a.v); }
FLOWKERN_HD VecD sqrt(VecD a) { return vsqrtq_f64(a.v); }
FLOWKERN_HD VecF fma(VecF a, VecF b, VecF c) { return vfmaq_f32(c.v, a.v, b.v); }
FLOWKERN_HD VecD fma(VecD a, VecD b, VecD c) { return vfmaq_f64(c.v, a.v, b.v); }
FLOWKERN_HD VecF round(VecF a) { return vrndnq_f32(a.v); }
FLOWKERN_HD VecD round(VecD a) { return vrndnq_f64(a.v); }

// For a ≤ 0: a − floor(a), and b·2^floor(a). What is less than −126 (double: −1022) counts as that.
FLOWKERN_HD VecF floor_limited(VecF a) { return vrndmq_f32(max(VecF(-126.0f), a).v); }
FLOWKERN_HD VecD floor_limited(VecD a) { return vrndmq_f64(max(VecD(-1022.0), a).v); }
FLOWKERN_HD VecF fraction(VecF a) { return max(VecF(-126.0f), a) - floor_limited(a); }
FLOWKERN_HD VecD fraction(VecD a) { return max(VecD(-1022.0), a) - floor_limited(a); }
// 2ⁿ for an integral n in [−126, 127] (double: [−1022, 1023]): n plus the bias in the exponent field.
FLOWKERN_HD VecF power_of_two(VecF n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127)), 23));
}
FLOWKERN_HD VecD power_of_two(VecD n) {
  return vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vcvtq_s64_f64(n.v), vdupq_n_s64(1023)), 52));
}
FLOWKERN_HD VecF scale_by_floor(VecF b, VecF a) {
  const int32x4_t n = vshlq_n_s32(vcvtq_s32_f32(floor_limited(a).v), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(b.v), n));
}
FLOWKERN_HD VecD scale_by_floor(VecD b, VecD a) { return b * power_of_two(floor_limited(a)); }

// a·2ⁿ for an integral n, in two steps so that over- and underflow are gradual and right.
FLOWKERN_HD VecF scale_by_power(VecF a, VecF n) {
  n = max(VecF(-252.0f), min(VecF(254.0f), n));
  const VecF half = round(n * VecF(0.5f));
  return a * power_of_two(half) * power_of_two(n - half);
}
FLOWKERN_HD VecD scale_by_power(VecD a, VecD n) {
  n = max(VecD(-2044.0), min(VecD(2046.0), n));
  const VecD half = round(n * VecD(0.5));
  return a * power_of_two(half) * power_of_two(n - half);
}

// a = mantissa·2^exponent with mantissa in [0.75, 1.5); 0 has exponent −inf, inf +inf, a < 0 NaN.
template <class V, class S> FLOWKERN_HD void split_special(V a, S infinity, V& mantissa, V& exponent) {
  exponent = select(a == V(S(0)), V(-infinity), exponent);
  mantissa = select(a == V(S(0)), V(S(1)), mantissa);
  exponent = select(a == V(infinity), V(infinity), exponent);
  mantissa = select(a == V(infinity), V(S(1)), mantissa);
  mantissa = select(a >= V(S(0)), mantissa, V(infinity - infinity));
}
FLOWKERN_HD void split(VecF a, VecF& mantissa, VecF& exponent) {
  const MaskF small = a < VecF(1.17549435e-38f);  // subnormals are scaled up first
  const int32x4_t bits = vreinterpretq_s32_f32(select(small, a * VecF(8388608.0f), a).v);
  const int32x4_t e = vsubq_s32(bits, vdupq_n_s32(0x3F400000));  // bits of 0.75
  exponent = VecF(vcvtq_f32_s32(vshrq_n_s32(e, 23))) - select(small, VecF(23), VecF(0));
  mantissa = vreinterpretq_f32_s32(vsubq_s32(bits, vandq_s32(e, vdupq_n_s32(int(0xFF800000)))));
  split_special(a, __builtin_inff(), mantissa, exponent);
}
FLOWKERN_HD void split(VecD a, VecD& mantissa, VecD& exponent) {
  const MaskD small = a < VecD(2.2250738585072014e-308);
  const int64x2_t bits = vreinterpretq_s64_f64(select(small, a * VecD(4503599627370496.0), a).v);
  const int64x2_t e = vsubq_s64(bits, vdupq_n_s64(0x3FE8000000000000));  // bits of 0.75
  exponent = VecD(vcvtq_f64_s64(vshrq_n_s64(e, 52))) - select(small, VecD(52), VecD(0));
  mantissa = vreinterpretq_f64_s64(vsubq_s64(bits, vandq_s64(e, vdupq_n_s64(-0x0010000000000000))));
  split_special(a, __builtin_inf(), mantissa, exponent);
}

FLOWKERN_HD float sum(VecF a) { return vaddvq_f32(a.v); }
FLOWKERN_HD double sum(VecD a) { return vaddvq_f64(a.v); }

// values[i] for integral i, which may differ from lane to lane; lane l's begin l·stride further on.
FLOWKERN_HD VecF pick_lanes(const float* values, long stride, VecF i) {
  const int32x4_t at = vcvtq_s32_f32(i.v);
  float32x4_t v = vdupq_n_f32(values[vgetq_lane_s32(at, 0)]);
  v = vsetq_lane_f32(values[stride + vgetq_lane_s32(at, 1)], v, 1);
  v = vsetq_lane_f32(values[2 * stride + vgetq_lane_s32(at, 2)], v, 2);
  return vsetq_lane_f32(values[3 * stride + vgetq_lane_s32(at, 3)], v, 3);
}
FLOWKERN_HD VecD pick_lanes(const double* values, long stride, VecD i) {
  const int64x2_t at = vcvtq_s64_f64(i.v);
  const float64x2_t v = vdupq_n_f64(values[vgetq_lane_s64(at, 0)]);
  return vsetq_lane_f64(values[stride + vgetq_lane_s64(at, 1)], v, 1);
}

// A 4×4 block of floats, transposed.
FLOWKERN_HD void transpose(const float32x4_t* rows, float32x4_t* columns) {
  const float64x2_t ab_low = vreinterpretq_f64_f32(vzip1q_f32(rows[0], rows[1]));
  const float64x2_t ab_high = vreinterpretq_f64_f32(vzip2q_f32(rows[0], rows[1]));
  const float64x2_t cd_low = vreinterpretq_f64_f32(vzip1q_f32(rows[2], rows[3]));
  const float64x2_t cd_high = vreinterpretq_f64_f32(vzip2q_f32(rows[2], rows[3]));
  columns[0] = vreinterpretq_f32_f64(vzip1q_f64(ab_low, cd_low));
  columns[1] = vreinterpretq_f32_f64(vzip2q_f64(ab_low, cd_low));
  columns[2] = vreinterpretq_f32_f64(vzip1q_f64(ab_high, cd_high));
  columns[3] = vreinterpretq_f32_f64(vzip2q_f64(ab_high, cd_high));
}

// Four columns of four rows that lie `stride` floats apart, into one vector per column; and eight.
FLOWKERN_HD void load_columns4(const float* p, long stride, VecF* columns) {
  const float32x4_t rows[4] = {vld1q_f32(p), vld1q_f32(p + stride), vld1q_f32(p + 2 * stride),
                               vld1q_f32(p + 3 * stride)};
  float32x4_t out[4];
  transpose(rows, out);
  each<4>(4, [&](int i) FLOWKERN_INLINE { columns[i] = out[i]; });
}
FLOWKERN_HD void store_columns4(float* p, long stride, const VecF* columns) {
  const float32x4_t in[4] = {columns[0].v, columns[1].v, columns[2].v, columns[3].v};
  float32x4_t rows[4];
  transpose(in, rows);
  each<4>(4, [&](int r) FLOWKERN_INLINE { vst1q_f32(p + r * stride, rows[r]); });
}
FLOWKERN_HD void load_columns8(const float* p, long stride, VecF* columns) {
  load_columns4(p, stride, columns);
  load_columns4(p + 4, stride, columns + 4);
}
FLOWKERN_HD void store_columns8(float* p, long stride, const VecF* columns) {
  store_columns4(p, stride, columns);
  store_columns4(p + 4, stride, columns + 4);
}

FLOWKERN_END
