// What the torch side (cpu.cpp) hands to the loops (simd.cpp), which know nothing of torch.
#pragma once

#include "../common/elements.h"
#include "../common/platform.h"

namespace flowkern {

// The fields named grad_ are those of the backward, in which y stands for the cotangent of x and
// columns_in for that of y. Additive couplings have no raw.
template <class S> struct AffineProblem {
  std::int64_t rows, width, features;  // N, D, T
  Elements<const S> x, shift, raw;     // transformed features, (N, T)
  Elements<S> y;
  Elements<const S> columns_in;  // all features (N, D), where some are only copied; else null
  Elements<S> columns_out;
  bool inverse, streams;  // streams: outputs pass the caches by
  int kind;
  S a, b, prefactor, shift_prefactor;
  S* logabsdet;  // (N,)
  Elements<const S> grad_y, grad_logabsdet;
  Elements<S> grad_shift, grad_raw;
};

#define FLOWKERN_DECLARE(S)                                                           \
  void affine_forward(const AffineProblem<S>&, std::int64_t begin, std::int64_t end); \
  void affine_backward(const AffineProblem<S>&, std::int64_t begin, std::int64_t end);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
