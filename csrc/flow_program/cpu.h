// What the torch side hands to the loops of a flow's program: its steps, in the order of the call.
//
// A tile of samples goes through all of them, one row of memory for each feature. Symbols:
// flowkern/ops/_flow_program/README.md.
#pragma once

#include "../masked_autoregressive/cpu.h"

namespace flowkern {

enum FlowStepKind { kConditionedStep = 0, kLuStep = 1, kPermutationStep = 2, kScaleStep = 3, kLinearStep = 4 };

template <class S> struct FlowStep {
  int kind;
  bool inverse;
  const MaskedProblem<S>* conditioned;
  // LU: both triangles as whole matrices, with the diagonal, row by row and in panels.
  const S *lower, *upper, *lower_panels, *upper_panels;
  const std::int64_t* order;  // of a permutation, in the direction of the call
  const S *scale, *shift;     // of a scale; shift also of LU
  const S* panels;            // of a linear step: the matrix that it multiplies by
  bool transposed;            // whether that is the transpose of its tensor
  bool wants_matrix;          // whether the gradient of the tensor is wanted
  S logabsdet;                // of LU, scale and linear steps, the same for all samples
  std::int64_t sums;          // where the step's sums begin in a chunk
  int kept;                   // the first of the rows in which a conditioned step's values are kept
};

template <class S> struct FlowProblem {
  std::int64_t rows;
  int features, context_features, steps;
  const FlowStep<S>* step;
  int memory;         // rows of a step's memory
  bool normal;        // whether the result is a log-density with a standard normal base
  Elements<const S> x, context;
  S *out, *log;       // (N, D), in the backward the cotangent of x; (N,)
  S* states;          // (steps − 1, D, N): the features between steps; null: not kept
  S* kept;            // the values of all conditioned steps, tile by tile; null: not kept
  int kept_rows;
  // Backward.
  const S *y;                        // (N, D) what the forward gave
  Elements<const S> grad_y, grad_l;  // base null: zero
  S* grad_context;                   // (N, context features); null: not wanted
};

// Rows of a tile's memory before a step's: the features before and after a step, or their cotangents and
// the known features, the context's inputs and their cotangents.
template <class S> FLOWKERN_HD int flow_rows(const FlowProblem<S>& p) { return 4 * p.features + 2 * p.context_features; }

// Sums of a matrix's gradient: groups of as many rows as there are lanes, and for each a few columns at
// a time.
FLOWKERN_HD int matrix_columns(int features) { return (features + kColumns - 1) / kColumns * kColumns; }
FLOWKERN_HD std::int64_t matrix_sums(int features, int lanes) {
  return std::int64_t(features + lanes - 1) / lanes * lanes * matrix_columns(features);
}

// The loops take samples [row, row + samples). A chunk's sums begin with that of the cotangents of l.
#define FLOWKERN_DECLARE(S)                                                                               \
  void flow_forward(const FlowProblem<S>&, std::int64_t row, int samples, bool wide, S* tile);            \
  void flow_backward(const FlowProblem<S>&, std::int64_t row, int samples, bool wide, S* tile, S* chunk);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
