// Interleaved values a₀ b₀ a₁ b₁ …, as two vectors (low, high), to and from one vector of each.
#pragma once

#include "vec.h"

FLOWKERN_BEGIN

#if defined(__AVX512F__)

FLOWKERN_HD void unzip(VecF low, VecF high, VecF& a, VecF& b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  a = _mm512_permutex2var_ps(low.v, even, high.v);
  b = _mm512_permutex2var_ps(low.v, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high.v);
}
FLOWKERN_HD void unzip(VecD low, VecD high, VecD& a, VecD& b) {
  const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  a = _mm512_permutex2var_pd(low.v, even, high.v);
  b = _mm512_permutex2var_pd(low.v, _mm512_add_epi64(even, _mm512_set1_epi64(1)), high.v);
}
FLOWKERN_HD void zip(VecF a, VecF b, VecF& low, VecF& high) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  low = _mm512_permutex2var_ps(a.v, first, b.v);
  high = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b.v);
}
FLOWKERN_HD void zip(VecD a, VecD b, VecD& low, VecD& high) {
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  low = _mm512_permutex2var_pd(a.v, first, b.v);
  high = _mm512_permutex2var_pd(a.v, _mm512_add_epi64(first, _mm512_set1_epi64(4)), b.v);
}

#elif defined(__AVX2__)

FLOWKERN_HD VecF swap_middle(VecF a) {  // of the four 64-bit quarters
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a.v), 0xD8));
}
FLOWKERN_HD void unzip(VecF low, VecF high, VecF& a, VecF& b) {
  a = swap_middle(_mm256_shuffle_ps(low.v, high.v, 0x88));
  b = swap_middle(_mm256_shuffle_ps(low.v, high.v, 0xDD));
}
FLOWKERN_HD void unzip(VecD low, VecD high, VecD& a, VecD& b) {
  a = _mm256_permute4x64_pd(_mm256_unpacklo_pd(low.v, high.v), 0xD8);
  b = _mm256_permute4x64_pd(_mm256_unpackhi_pd(low.v, high.v), 0xD8);
}
FLOWKERN_HD void zip(VecF a, VecF b, VecF& low, VecF& high) {
  const __m256 even = _mm256_unpacklo_ps(a.v, b.v), odd = _mm256_unpackhi_ps(a.v, b.v);
  low = _mm256_permute2f128_ps(even, odd, 0x20);
  high = _mm256_permute2f128_ps(even, odd, 0x31);
}
FLOWKERN_HD void zip(VecD a, VecD b, VecD& low, VecD& high) {
  const __m256d even = _mm256_unpacklo_pd(a.v, b.v), odd = _mm256_unpackhi_pd(a.v, b.v);
  low = _mm256_permute2f128_pd(even, odd, 0x20);
  high = _mm256_permute2f128_pd(even, odd, 0x31);
}

#elif defined(FLOWKERN_NEON)

#define FLOWKERN_PAIRS(V, type)                                                                             \
  FLOWKERN_HD void unzip(V low, V high, V& a, V& b) { a = vuzp1q_##type(low.v, high.v), b = vuzp2q_##type(low.v, high.v); } \
  FLOWKERN_HD void zip(V a, V b, V& low, V& high) { low = vzip1q_##type(a.v, b.v), high = vzip2q_##type(a.v, b.v); }
FLOWKERN_PAIRS(VecF, f32)
FLOWKERN_PAIRS(VecD, f64)
#undef FLOWKERN_PAIRS

#else

template <class S> FLOWKERN_HD void unzip(S low, S high, S& a, S& b) { a = low, b = high; }
template <class S> FLOWKERN_HD void zip(S a, S b, S& low, S& high) { low = a, high = b; }

#endif

FLOWKERN_END
