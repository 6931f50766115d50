// What the torch side hands to the loops of the neural ODE solve. Symbols:
// flowkern/ops/_neural_ode/README.md.
//
// A tile of samples keeps one row for each number that a sample has. A frame holds what one evaluation
// of the field leaves for its backward.
#pragma once

#include "../common/platform.h"

#include <cstdint>

namespace flowkern {

template <class S> struct OdeLayer {
  int inputs, units;
  const S *into, *back;  // W and Wᵀ in panels
  const S* bias;         // null for none
  int activation;
  S slope;
  int u, d, e;  // rows in a frame: what the layer gives, its activation's derivatives
  int w, v;     // rows of a direction in a frame: W v, and that times d
  int grad, extra;  // rows of the tile: cotangent of W u + b; what the trace adds to it
  std::int64_t weight_sums, bias_sums;  // in a chunk's memory
};

enum OdeTrace { kNoTrace = 0, kClosedVector = 1, kClosedMatrix = 2, kDirections = 3 };

template <class S> struct OdeProblem {
  std::int64_t rows;
  int features, layers, stages, intervals, steps, every, directions;  // steps: of an interval
  int frequencies, phi;  // how many there are; φ(t) of so many numbers
  OdeTrace trace;
  bool kinetic, jacobian, adjoint, backward;
  S weight;  // of a direction
  const S *a, *b, *c;
  const S *starts, *sizes;
  const S *time, *omega;  // columns of W beside φ(t), each padded; frequencies, null for φ(t) = t
  const S *row_bias, *closed, *closed_back;  // the latter two in panels, of a vector as of one row
  const S* epsilon;                          // of the directions, at [m][n][f] by strides
  std::int64_t epsilon_stride[3];
  const OdeLayer<S>* layer;
  const S* y;
  S *ends, *sums, *kept;  // the backward reads ends and kept
  const S *grad_ends, *grad_sums;
  S *grad_y, *grad_row_bias;
  // Rows of the tile.
  int of_y, of_k, of_rate, of_sums, of_bias, of_epsilon, of_directions, apart, of_frames, of_states, memory;
  int of_lambda, of_mu, of_cot, of_fbar, of_ybar, of_g, of_q, of_grad_bias;
  // Rows of a frame.
  int frame, at_x, at_f, at_s, at_directions, per_direction, at_j;
  int of_first, of_totals, of_phi, of_phi_bar, numbers;  // numbers that belong to no sample, behind the tile
  std::int64_t start_sums, size_sums, time_sums, omega_sums, closed_sums;  // in a chunk's memory
};

template <class S> struct OdeMemory { S *tile, *chunk; };

// Rows of a panel, lanes, samples of a wide and of a narrow tile.
struct OdeShape { int panel, lanes, wide, narrow; };

// Arrays of rows are padded to a multiple of this, so that vectors of rows can be read to the end.
constexpr int kOdePad = 32;
constexpr int ode_padded(int count) { return (count + kOdePad - 1) / kOdePad * kOdePad; }
constexpr int ode_columns(int count) { return (count + 7) / 8 * 8; }  // of a gradient's sums

// The loops take samples [row, row + samples).
#define FLOWKERN_DECLARE(S)                                                                       \
  OdeShape ode_shape(S);                                                                          \
  void ode_forward(const OdeProblem<S>&, std::int64_t row, int samples, bool wide, OdeMemory<S>); \
  void ode_backward(const OdeProblem<S>&, std::int64_t row, int samples, bool wide, OdeMemory<S>);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
