// What the torch side (cpu.cpp) hands to the loops (simd.cpp), which know nothing of torch.
#pragma once

#include "../common/platform.h"

#include <cstdint>

namespace flowkern {

// Sizes and strides are in elements; index and bounds may be null, the grad_ fields in the forward.
template <class S> struct SplineProblem {
  std::int64_t rows, width, features, parameters;  // N, D, T, M
  const S* x;
  std::int64_t x_row, x_feature;
  const S* params;
  std::int64_t params_row, params_feature, params_one;
  const std::int64_t* index;
  const S* bounds;
  bool inverse, streams;  // streams: grad_params passes the caches by
  int tails, knots;
  S left, right, bottom, top, min_width, min_height, min_slope, softclip, scale;
  S* y;          // (N, D), contiguous; in the backward, the cotangent of x
  S* logabsdet;  // (N,)
  const S* grad_y;
  std::int64_t grad_y_row, grad_y_feature;
  const S* grad_logabsdet;
  std::int64_t grad_logabsdet_row;
  S* grad_params;
  std::int64_t grad_params_row, grad_params_feature, grad_params_one;
};

#define FLOWKERN_DECLARE(S)                                                           \
  void spline_forward(const SplineProblem<S>&, std::int64_t begin, std::int64_t end); \
  void spline_backward(const SplineProblem<S>&, std::int64_t begin, std::int64_t end);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
