// The torch side of the masked autoregressive transform, the same on every device: checks, outputs.
// A Device has
//   explicit Device(x)   for the duration of a call
//   run(call)            computes what the call asks for
#pragma once

#include "../common/checks.h"

#include <algorithm>
#include <vector>

namespace flowkern {
namespace {

using Tensors = std::vector<std::optional<Tensor>>;  // weight, bias, gate, gain, offset of each layer

// What is no tensor; schema order, see flowkern/ops/_masked_autoregressive/native.py.
struct MaskedSettings {
  std::vector<std::int64_t> activations;
  std::vector<double> slopes;
  std::vector<std::int64_t> skips;
  bool inverse;
  ElementCode element;
};

// The element with these kinds of maps and constants, checked.
inline ElementCode element_code(std::int64_t kind, const std::vector<std::int64_t>& kinds, const std::vector<double>& constants) {
  FLOWKERN_CHECK(kinds.size() == 2, "kinds: expected two, got ", kinds.size());
  ElementCode element = checked_element(kind, kinds[0], kinds[1], std::int64_t(constants.size()));
  std::copy(constants.begin(), constants.end(), element.constants);
  return element;
}

// Of the context's term of each layer up to the last that has one: context, weight and bias, and its activation.
struct MaskedTerms {
  Tensors tensors;
  std::vector<std::int64_t> activations;
  std::vector<double> slopes;
};

// One call. The backward has grad_out and grad_logabsdet: it computes `out` as the cotangent of what was
// given, and into grads the gradients of the tensors, those of tensors (N, units) as (units, N); or the
// tape that gradients.py makes them of.
struct MaskedCall {
  const Tensor& x;  // what the conditioner sees; in the inverse's forward what is given
  const Tensor* y;  // in the backward what the transform maps x to
  const Tensor *grad_out, *grad_logabsdet;
  const Tensors& tensors;
  const Tensor &order, &ends;
  const MaskedSettings& set;
  Tensor& out;
  Tensor* logabsdet;
  Tensors* grads;
  Tensor* tape;
  const MaskedTerms* terms = nullptr;  // of a forward

  std::int64_t layers() const { return std::int64_t(tensors.size()) / 5; }
  std::int64_t features() const { return x.size(1); }
  std::int64_t levels() const { return ends.size(1) - 1; }
  std::int64_t units(std::int64_t layer) const { return tensors[5 * layer]->size(0); }
  std::int64_t parameters() const { return units(layers() - 1) / features(); }
  // The three of a layer's term, or null.
  const std::optional<Tensor>* term(std::int64_t layer) const {
    const bool has = terms && layer < std::int64_t(terms->tensors.size() / 3) && terms->tensors[3 * layer];
    return has ? &terms->tensors[3 * layer] : nullptr;
  }
};

inline void check_layer(const MaskedCall& c, std::int64_t k, std::int64_t inputs) {
  const Tensor& weight = *c.tensors[5 * k];
  FLOWKERN_CHECK(weight.dim() == 2 && weight.size(1) == inputs, "tensors: weight ", k, ": expected ", inputs, " columns");
  const char* const names[] = {"weight", "bias", "gate", "gain", "offset"};
  for (int i = 0; i < 5; ++i) {
    const std::optional<Tensor>& t = c.tensors[5 * k + i];
    if (!t) continue;
    FLOWKERN_CHECK(t->scalar_type() == c.x.scalar_type(), "tensors: ", names[i], " ", k, ": expected the dtype of x");
    check_device("tensors", *t, c.x);
    if (i == 0) continue;
    const bool by_row = t->dim() == 2 && (i == 1 || i == 2) && t->size(0) == c.x.size(0);
    FLOWKERN_CHECK((t->dim() == 1 || by_row) && t->size(t->dim() - 1) == weight.size(0), "tensors: ", names[i], " ", k,
                   ": expected shape (", weight.size(0), ",)", i < 3 ? " or one such row for each of x's" : "");
  }
}

inline void check_terms(const MaskedCall& c) {
  const MaskedTerms& terms = *c.terms;
  const std::size_t layers = terms.activations.size();
  FLOWKERN_CHECK(terms.tensors.size() == 3 * layers && terms.slopes.size() == layers && layers <= std::size_t(c.layers()),
                 "terms: expected three tensors, an activation and a slope for each of at most ", c.layers(), " layers");
  for (std::int64_t k = 0; k < c.layers(); ++k) {
    const std::optional<Tensor>* term = c.term(k);
    if (!term) continue;
    for (int i = 0; i < 3; ++i) {
      if (!term[i]) continue;
      FLOWKERN_CHECK(term[i]->scalar_type() == c.x.scalar_type(), "terms: expected the dtype of x");
      check_device("terms", *term[i], c.x);
    }
    FLOWKERN_CHECK(term[0]->dim() == 2 && term[0]->size(0) == c.x.size(0), "terms: context ", k, ": expected a row for each of x's");
    FLOWKERN_CHECK(term[1] && term[1]->dim() == 2 && term[1]->size(0) == c.units(k) && term[1]->size(1) == term[0]->size(1),
                   "terms: weight ", k, ": expected shape (", c.units(k), ", ", term[0]->size(1), ")");
    FLOWKERN_CHECK(!term[2] || (term[2]->dim() == 1 && term[2]->size(0) == c.units(k)), "terms: bias ", k, ": expected shape (", c.units(k), ",)");
    check_kind("term_activations", terms.activations[k], kActivations);
  }
}

inline void check_settings(const MaskedCall& c) {
  const MaskedSettings& set = c.set;
  const std::size_t layers = c.layers();
  FLOWKERN_CHECK(set.activations.size() == layers && set.slopes.size() == layers && set.skips.size() == layers,
                 "activations, slopes, skips: expected one for each of ", layers, " layers");
  for (std::size_t k = 0; k < layers; ++k) {
    check_kind("activations", set.activations[k], kActivations);
    const std::int64_t skip = set.skips[k];
    FLOWKERN_CHECK(skip == -1 || (skip >= 0 && skip < std::int64_t(k) && c.units(skip) == c.units(k) && k + 1 < layers),
                   "skips: expected −1 or an earlier layer of the same width, got ", skip);
  }
  FLOWKERN_CHECK(set.activations.back() == kIdentityActivation && !c.tensors[5 * layers - 3] && !c.tensors[5 * layers - 2] && !c.tensors[5 * layers - 1],
                 "tensors: the last layer takes no activation, gate, gain or offset");
  const std::int64_t p = c.parameters();
  FLOWKERN_CHECK(fits(set.element, p) && p * c.features() == c.units(c.layers() - 1), "tensors: the last layer's ", c.units(c.layers() - 1),
                 " outputs do not fit the element and ", c.features(), " features");
}

inline void check(const MaskedCall& c) {
  FLOWKERN_CHECK(c.x.dim() == 2 && c.x.size(1) > 0, "x: expected shape (N, D)");
  FLOWKERN_CHECK(c.x.scalar_type() == ScalarType::Float || c.x.scalar_type() == ScalarType::Double,
                 "x: expected float32 or float64");
  FLOWKERN_CHECK(c.tensors.size() % 5 == 0 && !c.tensors.empty(), "tensors: expected five for each layer");
  std::int64_t units = c.features(), total = 0;
  for (std::int64_t k = 0; k < c.layers(); ++k) {
    FLOWKERN_CHECK(c.tensors[5 * k].has_value(), "tensors: layer ", k, " has no weight");
    check_layer(c, k, units);
    total += units, units = c.units(k);
  }
  check_settings(c);
  if (c.terms) check_terms(c);
  const bool integers = c.order.scalar_type() == ScalarType::Long && c.ends.scalar_type() == ScalarType::Long;
  FLOWKERN_CHECK(integers && c.order.is_contiguous() && c.ends.is_contiguous(), "order, ends: expected contiguous int64");
  FLOWKERN_CHECK(c.order.dim() == 1 && c.order.size(0) == total, "order: expected ", total, " places");
  FLOWKERN_CHECK(c.ends.dim() == 2 && c.ends.size(0) == c.layers() && c.ends.size(1) >= 2, "ends: expected a row per layer");
  check_device("order", c.order, c.x);
  check_device("ends", c.ends, c.x);
}

// As gradients.py has it.
inline std::int64_t tape_rows(const MaskedCall& c) {
  std::int64_t rows = -c.units(c.layers() - 1);
  for (std::int64_t k = 0; k < c.layers(); ++k) {
    const bool gate = c.tensors[5 * k + 2].has_value(), norm = c.tensors[5 * k + 3] || c.tensors[5 * k + 4];
    rows += (2 + gate + 2 * norm) * c.units(k);
  }
  return rows;
}

template <class Device> struct MaskedOp {
  static std::tuple<Tensor, Tensor> forward(
      Tensor x, Tensors tensors, Tensor order, Tensor ends, std::vector<std::int64_t> activations,
      std::vector<double> slopes, std::vector<std::int64_t> skips, bool inverse, std::int64_t element,
      std::vector<std::int64_t> kinds, std::vector<double> constants, Tensors terms,
      std::vector<std::int64_t> term_activations, std::vector<double> term_slopes) {
    const MaskedSettings set{activations, slopes, skips, inverse, element_code(element, kinds, constants)};
    check_matrix("x", x);
    Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensor logabsdet = torch::stable::new_empty(x, {x.size(0)});
    const MaskedTerms of_context{terms, term_activations, term_slopes};
    const MaskedCall call{x, nullptr, nullptr, nullptr, tensors, order, ends, set, y, &logabsdet, nullptr, nullptr, &of_context};
    check(call);
    Device(x).run(call);
    return {y, logabsdet};
  }

  // The cotangent of what was given, and the tape (rows, N), without rows unless asked for.
  static std::tuple<Tensor, Tensor> backward(
      Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor y, bool tape, Tensors tensors, Tensor order, Tensor ends,
      std::vector<std::int64_t> activations, std::vector<double> slopes, std::vector<std::int64_t> skips, bool inverse,
      std::int64_t element, std::vector<std::int64_t> kinds, std::vector<double> constants) {
    check_cotangents(grad_y, grad_logabsdet, x);
    check_cotangents(y, grad_logabsdet, x);
    const MaskedSettings set{activations, slopes, skips, inverse, element_code(element, kinds, constants)};
    Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    MaskedCall call{inverse ? y : x, inverse ? &x : &y, &grad_y, &grad_logabsdet, tensors, order, ends, set, grad_x,
                    nullptr, nullptr, nullptr};
    check(call);
    Tensor on_tape = torch::stable::new_empty(x, {tape ? tape_rows(call) : 0, x.size(0)});
    if (tape) call.tape = &on_tape;
    Device(x).run(call);
    return {grad_x, on_tape};
  }

  // The cotangent of what was given, and the gradients of the tensors that need one, in order.
  static std::tuple<Tensor, std::vector<Tensor>> gradients(
      Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor y, std::vector<bool> needs, Tensors tensors, Tensor order,
      Tensor ends, std::vector<std::int64_t> activations, std::vector<double> slopes,
      std::vector<std::int64_t> skips, bool inverse, std::int64_t element,
      std::vector<std::int64_t> kinds, std::vector<double> constants) {
    check_cotangents(grad_y, grad_logabsdet, x);
    check_cotangents(y, grad_logabsdet, x);
    const MaskedSettings set{activations, slopes, skips, inverse, element_code(element, kinds, constants)};
    Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensors grads(tensors.size());
    // The inverse is given what the forward computes.
    const MaskedCall call{inverse ? y : x, inverse ? &x : &y, &grad_y, &grad_logabsdet, tensors, order, ends, set, grad_x,
                          nullptr, &grads, nullptr};
    check(call);
    FLOWKERN_CHECK(needs.size() == tensors.size(), "needs: expected one for each of ", tensors.size(), " tensors");
    for (std::size_t i = 0; i < needs.size(); ++i) {
      if (!needs[i] || !tensors[i]) continue;
      const bool by_row = i % 5 != 0 && tensors[i]->dim() == 2;
      grads[i] = torch::stable::new_empty(x, by_row ? std::vector<std::int64_t>{tensors[i]->size(1), x.size(0)} : sizes(*tensors[i]));
      torch::stable::zero_(*grads[i]);
    }
    Device(x).run(call);
    std::vector<Tensor> needed;
    for (const auto& grad : grads) if (grad) needed.push_back(*grad);
    return {grad_x, needed};
  }

 private:
  static std::vector<std::int64_t> sizes(const Tensor& t) {
    std::vector<std::int64_t> all;
    for (std::int64_t d = 0; d < t.dim(); ++d) all.push_back(t.size(d));
    return all;
  }
};

}  // namespace
}  // namespace flowkern
