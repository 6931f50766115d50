// What every kernel source agrees on: one namespace per instruction set, inlining, no torch header.
//
// The CPU kernels are compiled once per instruction set (portable; avx2, avx512; neon) and the choice is
// made at run time. Each copy lives in a namespace of its own, so that the linker can never keep an
// inline function of one copy for another: that would run AVX-512 code on a machine without it.
#pragma once

#ifndef FLOWKERN_ISA
#define FLOWKERN_ISA portable
#endif

#define FLOWKERN_BEGIN namespace flowkern { namespace FLOWKERN_ISA {
#define FLOWKERN_END } }

// DECLARE(S) for float and double, in the namespace of each instruction set.
#define FLOWKERN_ON_EACH_ISA(DECLARE)                   \
  namespace portable { DECLARE(float) DECLARE(double) } \
  namespace avx2 { DECLARE(float) DECLARE(double) }     \
  namespace avx512 { DECLARE(float) DECLARE(double) }   \
  namespace neon { DECLARE(float) DECLARE(double) }

// FLOWKERN_INLINE stands behind a lambda's parameters. Sanitizers watch the variables of each function:
// for them, functions stay small.
#if defined(FLOWKERN_SANITIZED)
#define FLOWKERN_HD inline
#define FLOWKERN_INLINE
#elif defined(__CUDACC__)
#define FLOWKERN_HD __host__ __device__ __forceinline__
#define FLOWKERN_INLINE __attribute__((always_inline))
#else
#define FLOWKERN_HD inline __attribute__((always_inline))
#define FLOWKERN_INLINE __attribute__((always_inline))
#endif

FLOWKERN_BEGIN

// body(i) for i in [first, count): written out where the count K is known, else (K = 0) a loop.
template <int K, int first = 0, class F> FLOWKERN_HD void each(int count, const F& body) {
  if constexpr (K == 0) {
    for (int i = first; i < count; ++i) body(i);
  } else if constexpr (first < K) {
    body(first);
    each<K, first + 1>(K, body);
  }
}

FLOWKERN_END
