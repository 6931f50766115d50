// Stores that pass the caches by, for outputs larger than these: a cache line that is written whole
// need not be read first. The address must be aligned to a vector, and flush_streams() must follow
// before another thread reads.
#pragma once

#include "vec.h"

FLOWKERN_BEGIN

#if defined(__AVX512F__)
FLOWKERN_HD void stream(float* p, VecF a) { _mm512_stream_ps(p, a.v); }
FLOWKERN_HD void stream(double* p, VecD a) { _mm512_stream_pd(p, a.v); }
FLOWKERN_HD void flush_streams() { _mm_sfence(); }
#elif defined(__AVX2__)
FLOWKERN_HD void stream(float* p, VecF a) { _mm256_stream_ps(p, a.v); }
FLOWKERN_HD void stream(double* p, VecD a) { _mm256_stream_pd(p, a.v); }
FLOWKERN_HD void flush_streams() { _mm_sfence(); }
#else  // AArch64 promises no such store: its caches see for themselves that lines are written whole
template <class S> FLOWKERN_HD void stream(S* p, Vec<S> a) { store(p, a); }
FLOWKERN_HD void flush_streams() {}
#endif

FLOWKERN_END
