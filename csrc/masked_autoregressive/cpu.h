// What the torch side hands to the loops of the masked autoregressive transform.
//
// The units of a layer are sorted by rank: layer 0 holds the features, layers 1 … M the hidden
// units, layer M + 1 the outputs, P for each feature. Step r of the solve computes the hidden units
// of rank r, the outputs that see them, and the features of rank r + 1 (r = 0 … levels − 1). Steps
// are grouped into blocks. Symbols: flowkern/ops/_masked_autoregressive/README.md.
#pragma once

#include "../common/elements.h"
#include "../common/kinds.h"
#include "../common/platform.h"

namespace flowkern {

// A matrix, its columns and rows sorted by rank and masked, in panels of as many rows as a kernel
// computes at a time: entry (row, column) of the panel that begins at `row − j` is at [column][j].
template <class S> struct Panels {
  const S* values;      // of the first panel of the block
  int row, end;         // the block's rows
  int column, columns;  // the first column, and how many
  std::int64_t apart = 0;  // rows that lie as they came are so far from each other; 0: they are in panels
};

// Where the gradient of a vector of a layer (bias, gate, gain, offset) goes: to a sum over samples
// for each unit in a chunk's memory, or to rows (units, N), or nowhere.
template <class S> struct VectorGradient {
  std::int64_t sums;  // −1: none
  S* rows;
};
enum VectorOf { kBias = 0, kGate = 1, kGain = 2, kOffset = 3 };

// What a context adds to a layer's bias, or its gate: activation(C c + d). The rows of C are sorted and
// in panels.
template <class S> struct ContextTerm {
  bool given;
  Elements<const S> context;  // base null: the tile holds c already
  int inputs;
  const S *weight, *bias;
  int activation;
  S slope;
  // Rows where the tile keeps the term, for the backward C c + d (−1: nowhere), and among the cotangents its own.
  int keeps, before, cotangent;
  std::int64_t weight_sums, bias_sums;  // as VectorGradient's; of the weight in groups of rows
};

template <class S> struct MaskedUnits {
  const std::int64_t* order;  // number of the unit at each place
  const int* place;           // where each unit stands
  int units;                  // of the layer
  int used;                   // units that some output sees; the rest is at the end
  // Of the linear map into the layer (none for the features), and of what follows it.
  Elements<const S> bias, gate;  // base null: none; row 0: the same for all samples
  Elements<const S> gain, offset;
  ContextTerm<S> term, gate_term;
  int skip;  // layer whose z is added, unit by unit; −1: none
  int activation;
  S slope;
  bool keeps_z;  // whether z is needed besides u
  // Where values are in the tile's memory, in rows; v only with a gate. Cotangents have rows of their own.
  int u, z, v, grad, grad_skip;
  // The weight's gradient, in a chunk's memory: for each group of as many rows as there are lanes
  // and each column that they see, the rows' sums. Null: not wanted.
  const std::int64_t* groups;  // where each begins, and the end
  VectorGradient<S> vectors[4];
  const Panels<S>* into;  // for each block, from the layer before
};

template <class S> struct MaskedProblem {
  std::int64_t rows, features;
  int levels, layers, blocks;  // layers = M + 2
  const int* first;            // rank with which each block begins, and `levels`
  const MaskedUnits<S>* units;
  const int* counts;  // [layer][rank + 1]: how many units have at most this rank, −1 … levels
  int values, memory;  // rows of a tile's memory: of values, and all
  int other;          // where the tile keeps y: given in the inverse, computed in the forward
  int context;        // and the inputs of a layer's term
  // Element transform, of all features but the first `passive`, which stay as they are.
  int passive, parameters;
  ElementCode element;
  bool inverse;
  // The features that the conditioner sees, those given, and those computed (or the cotangents).
  Elements<const S> x, y;
  Elements<S> out;
  S* logabsdet;
  // Backward.
  Elements<const S> grad_out, grad_logabsdet;
};

// The loops' memory: a tile's values and cotangents, and in the backward the sums of the tiles of a chunk; where
// the tile holds a context's inputs, and gathers their cotangents (null: not wanted).
template <class S> struct MaskedMemory { S *values = nullptr, *grads = nullptr, *chunk = nullptr, *context = nullptr, *grad_context = nullptr; };

// How the loops want things: rows of a panel, lanes, samples of a wide and of a narrow tile. They may
// read `lanes` or kColumns rows more of a tile's memory than there are.
struct MaskedShape { int panel, lanes, wide, narrow; };
constexpr int kColumns = 8;  // of a weight's gradient, computed at a time

// The loops take samples [row, row + samples). A flow's program calls the last three for a tile whose features are in
// its memory already: given → result and log-det, given → values of the conditioner, and from their cotangents back.
#define FLOWKERN_DECLARE(S)                                                                                \
  MaskedShape masked_shape(S);                                                                             \
  void masked_forward(const MaskedProblem<S>&, std::int64_t row, int samples, bool wide, MaskedMemory<S>); \
  void masked_backward(const MaskedProblem<S>&, std::int64_t row, int samples, bool wide, MaskedMemory<S>); \
  void conditioned_forward(const MaskedProblem<S>&, std::int64_t row, int samples, bool wide, MaskedMemory<S>, S* logabsdet); \
  void conditioned_values(const MaskedProblem<S>&, std::int64_t row, int samples, bool wide, MaskedMemory<S>); \
  void conditioned_backward(const MaskedProblem<S>&, std::int64_t row, int samples, bool wide, MaskedMemory<S>, const S* g_logabsdet);
FLOWKERN_ON_EACH_ISA(FLOWKERN_DECLARE)
#undef FLOWKERN_DECLARE

}  // namespace flowkern
