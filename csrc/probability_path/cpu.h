// What the torch side (cpu.cpp) hands to the loops (simd.cpp), which know nothing of torch.
#pragma once

#include "../common/platform.h"

#include <cstdint>

namespace flowkern {

// A call; all tensors are contiguous, those of elements (N, D).
template <class S> struct PathProblem {
  std::int64_t rows, features;  // N, D
  int kind;
  double sigma;
  const std::int64_t* seed;
  const S *x0, *x1;
  const S* noise;    // null: drawn if draws_noise, else 0
  bool draws_noise;
  const S* given_t;  // (N,); null: drawn
  S* t;              // (N,), the drawn ones
  S *x_t, *u_t;
  bool streams;  // outputs pass the caches by
  // Of the backward.
  const S *grad_x, *grad_u;
  S *grad_x0, *grad_x1;
  S* grad_t;  // (N, D), the parts of each element; null: not wanted
};

// Elements and times are worked on in blocks of as many; `begin` and `end` count blocks.
constexpr std::int64_t kPathBlock = 128;

#define FLOWKERN_DECLARE(S)                                                       \
  void path_times(const PathProblem<S>&, std::int64_t begin, std::int64_t end);   \
  void path_forward(const PathProblem<S>&, std::int64_t begin, std::int64_t end); \
  void path_backward(const PathProblem<S>&, std::int64_t begin, std::int64_t end);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
