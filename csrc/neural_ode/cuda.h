// What the torch side (cuda.cpp) asks of the kernels (cuda.cu), which know nothing of torch. Symbols:
// flowkern/ops/_neural_ode/README.md.
//
// A block takes a tile of samples through all steps. The tile is a matrix with a column for each of its
// samples and a row for each number that a sample has.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace flowkern {
namespace cuda {

// A problem is handed to a kernel by value, in at most 4 KiB.
constexpr int kMostOdeLayers = 24, kMostOdeStages = 8;

// Before an OdeSolve is filled.
inline void check_ode_table(std::int64_t layers, std::int64_t stages) {
  const auto most = [](const char* name, int limit, std::int64_t got) {
    if (got <= limit) return;
    const auto text = ": at most " + std::to_string(limit) + " on CUDA, got " + std::to_string(got);
    throw std::runtime_error(name + text);
  };
  most("layers", kMostOdeLayers, layers), most("stages", kMostOdeStages, stages);
}

template <class S> struct OdeLayer {
  int units, inputs;
  const S *weight, *bias;  // contiguous; bias: null for none
  int activation;          // of hidden layers
  S slope;
  S *grad_weight, *grad_bias;
  // From here on by ode_plan. Rows of the tile, or −1: what the layer gives, its activation's derivatives, what
  // a direction becomes by W and by the derivative, what the trace adds to the cotangent of W u + b.
  int u, d, e, w, v, extra;
  std::int64_t packed, weight_sums, bias_sums;  // places in the packed weights, and in a block's sums
};

template <class S> struct OdeSolve {
  std::int64_t rows;
  int features, layers, stages, intervals, steps, every, directions;  // steps: of an interval
  int frequencies, phi;  // how many there are; φ(t) of so many numbers
  bool closed, kinetic, jacobian, backward, adjoint;  // closed: the trace, by a vector or a matrix
  S weight;                                           // of a direction
  S a[kMostOdeStages * (kMostOdeStages - 1) / 2], b[kMostOdeStages], c[kMostOdeStages];
  const S *y, *starts, *sizes, *time, *omega;  // omega: frequencies, null for φ(t) = t
  const S *row_bias, *closed_form, *epsilon;  // the latter of directions, at [m][n][f] by strides
  std::int64_t epsilon_stride[3];
  S *ends, *sums, *kept;  // the backward reads ends and kept
  const S *grad_ends, *grad_sums;
  S *grad_y, *grad_starts, *grad_sizes, *grad_row_bias, *grad_time, *grad_omega, *grad_closed;
  OdeLayer<S> layer[kMostOdeLayers];

  // From here on by ode_plan; of_… are rows of the tile, or −1.
  std::int64_t scratch_size;  // numbers in main memory that the kernels need beside all this
  S* scratch;                 // to be given then, aligned to 16 bytes: packed weights, tiles, sums
  int shift, tile_rows;       // the tile has 2^shift samples
  std::int64_t blocks;
  bool tile_is_shared, weights_are_shared;  // in shared memory
  std::int64_t packed_size, closed_packed;
  std::int64_t slices, slice;  // where the blocks' sums begin, and of how many numbers each are
  std::int64_t start_sums, size_sums, time_sums, omega_sums, closed_sums;  // in a block's sums
  int of_y, of_x, of_k, of_sums, of_bias, of_epsilon, of_s, of_parts;
  int of_states, of_lambda, of_mu, of_cot, of_fbar, of_ybar, of_g, of_q, of_rate, of_h, of_grad_bias;
};

// Lays out tile and scratch memory for the current device. Throws std::runtime_error where a weight is too large.
void ode_plan(OdeSolve<float>&);
void ode_plan(OdeSolve<double>&);

// What a plan asks for. `stream` is a cudaStream_t. Throws std::runtime_error where a kernel cannot be launched.
void ode_solve(const OdeSolve<float>&, void* stream);
void ode_solve(const OdeSolve<double>&, void* stream);

}  // namespace cuda
}  // namespace flowkern
