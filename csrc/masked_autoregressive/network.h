// A conditioned transform as the torch side hands it to the plan: plain pointers, nothing sorted yet.
#pragma once

#include "cpu.h"

#include <vector>

namespace flowkern {

// A matrix and its strides.
template <class S> struct Matrix { S* values; std::int64_t row, column; };

template <class S> struct MaskedNetwork {
  // A context's term, and where the gradients of C and d go; null: not wanted.
  struct Term {
    bool given = false;
    Elements<const S> context{};
    int inputs = 0;
    Matrix<const S> weight{};
    Elements<const S> bias{};
    int activation = 0;
    S slope = 0;
    Matrix<S> grad_weight{};
    S* grad_bias = nullptr;
  };
  // Vectors: bias, gate, gain, offset; base null: none. Their gradients are sums over the samples, or
  // rows (units, N); null: not wanted.
  struct Layer {
    int units = 0;
    Matrix<const S> weight{};
    Elements<const S> vectors[4]{};
    Term term, gate_term;
    int activation = 0, skip = -1;
    S slope = 0;
    Matrix<S> grad_weight{};
    S *grad_sums[4]{}, *grad_rows[4]{};
  };

  std::int64_t rows = 0;
  int features = 0, levels = 0, parameters = 0, passive = 0;
  const std::int64_t *order = nullptr, *ends = nullptr;  // of the features and the hidden units, as `Degrees.on`
  const std::int64_t* columns = nullptr;  // of the first weight, for the feature at each place; null: its number
  const std::int64_t* outputs = nullptr;  // the outputs in the order of their features' places; null: by number
  std::vector<Layer> layers;
  // The element transform, and the direction.
  ElementCode element{};
  bool inverse = false, backward = false;
  bool keeps = false;  // whether all values are laid out that a backward reads
};

}  // namespace flowkern
