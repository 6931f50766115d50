// What the torch side (cpu.cpp) hands to the loops (simd.cpp), which know nothing of torch.
#pragma once

#include "../common/platform.h"

#include <cstdint>

namespace flowkern {

constexpr int kMostStages = 8;

// Σ_j w_j k_j for elements (n, d) of contiguous tensors (N, D); weight j of row n is at
// weights[n·weights_row + j·weights_one], and weights_row is 0 where all rows share them.
template <class S> struct Combination {
  std::int64_t rows, width;
  int stages;
  const S* k[kMostStages];
  const S* weights;
  std::int64_t weights_row, weights_one;
};

template <class S> struct StageProblem {
  Combination<S> combination;
  const S* y;
  S* out;
};

// The combination is the error of the step from y0 to y1; sums is (N,).
template <class S> struct ErrorProblem {
  Combination<S> combination;
  const S *y0, *y1;
  S rtol, atol;
  S* sums;
};

#define FLOWKERN_DECLARE(S)                                                             \
  void runge_kutta_stage(const StageProblem<S>&, std::int64_t begin, std::int64_t end); \
  void runge_kutta_error(const ErrorProblem<S>&, std::int64_t begin, std::int64_t end);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
