// What the torch side (cuda.cpp) asks of the kernels (cuda.cu), which know nothing of torch.
//
// Layer 0 holds the features, layers 1 … M the hidden units, layer M + 1 the outputs, P for each
// feature; the units of a layer are sorted by rank. Symbols: flowkern/ops/_masked_autoregressive/README.md.
#pragma once

#include "../common/elements.h"
#include "../common/kinds.h"

#include <cstddef>
#include <vector>

namespace flowkern {

// What a context adds to a layer's bias: activation(C c + d).
template <class S> struct ContextTerm {
  Elements<const S> context, weight, bias;
  int inputs = -1;  // −1: no term; a context of 0 features has one, its bias
  int activation;
  S slope;
};

// A layer: the linear map into it (none for the features), and what follows. A vector's base is null
// where there is none; its row is 0 where all samples share it.
template <class S> struct MaskedLayer {
  Elements<const S> weight, bias, gate, gain, offset;
  S slope;
  int activation, units;
  int skip;  // the layer whose z is added; −1: none
  ContextTerm<S> term;
  // The rest is the plan's.
  int per_place;                     // units for each place in the order: 1, or P for the outputs
  const std::int64_t *order, *ends;  // the unit, or feature, at each place; how many units have rank ≤ r
  int u, z, grad_skip;               // where the rows of a tile begin; −1: not kept
  std::int64_t tape_u, tape_v, tape_gate, tape_gain, tape_offset;  // rows of the tape; −1: none
  std::int64_t panels[2], spans[2];  // where the weight and its transpose are packed, see tile.cuh
};

// One call. The backward has grad_out; tape may be null.
template <class S> struct MaskedTransform {
  std::int64_t rows;
  int features, levels, parameters;
  ElementCode element;
  bool inverse;
  const std::int64_t *order, *ends;
  Elements<const S> given, known;  // what the transform is applied to; in the backward, what the network sees
  Elements<S> out;
  S* logabsdet;
  Elements<const S> grad_out, grad_logabsdet;
  S* tape;  // (rows, N): what gradients.py makes the tensors' gradients of
};

namespace cuda {

// How many numbers of memory a call needs, and the call. `layers` begins with the first hidden layer;
// `stream` is a cudaStream_t. Throws std::runtime_error where a kernel cannot be launched.
#define FLOWKERN_DECLARE(S)                                                                          \
  std::int64_t masked_scratch(const MaskedTransform<S>&, const std::vector<MaskedLayer<S>>& layers); \
  void masked_autoregressive(const MaskedTransform<S>&, const std::vector<MaskedLayer<S>>& layers,   \
                             S* scratch, void* stream);
FLOWKERN_DECLARE(float)
FLOWKERN_DECLARE(double)
#undef FLOWKERN_DECLARE

}  // namespace cuda
}  // namespace flowkern
