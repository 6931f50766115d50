// What the torch side (cpu.cpp) hands to the loops (simd.cpp), which know nothing of torch.
#pragma once

#include "../common/platform.h"

#include <cstdint>

namespace flowkern {

template <class S> struct ScaleProblem {
  std::int64_t features;
  const S *x, *u, *grad_y, *grad_l;
  S *y, *logabsdet, *grad_x, *grad_u;
};

#define FLOWKERN_DECLARE(S)                                                          \
  void tanh_scale_forward(const ScaleProblem<S>&, std::int64_t begin, std::int64_t end); \
  void tanh_scale_backward(const ScaleProblem<S>&, std::int64_t begin, std::int64_t end);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
