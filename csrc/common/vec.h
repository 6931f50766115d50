// float and double vectors for one instruction set, with the vocabulary of scalar.h.
//
// Vec<S> is what one register holds. The portable copy has no vector (FLOWKERN_VECTORS is not defined): Vec<S>
// is S, and the kernels run one element at a time.
#pragma once

#include "scalar.h"

#if defined(__AVX512F__) || defined(__AVX2__) || defined(FLOWKERN_NEON)
#define FLOWKERN_VECTORS
#endif

#if defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#elif defined(FLOWKERN_NEON)
#include "vec_neon.h"
#else
FLOWKERN_BEGIN
template <class S> using Vec = S;
FLOWKERN_HD float load(const float* p) { return *p; }
FLOWKERN_HD double load(const double* p) { return *p; }
FLOWKERN_HD void store(float* p, float v) { *p = v; }
FLOWKERN_HD void store(double* p, double v) { *p = v; }
FLOWKERN_HD float pick_lanes(const float* values, long, float i) { return values[int(i)]; }
FLOWKERN_HD double pick_lanes(const double* values, long, double i) { return values[int(i)]; }
FLOWKERN_END
#endif

#if defined(FLOWKERN_VECTORS)
#include "vec_maths.h"
#endif

#include "maths.h"
