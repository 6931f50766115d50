// What the torch side of every op checks, on any device.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "kinds.h"

#include <cstdint>
#include <optional>
#include <tuple>

namespace flowkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#define FLOWKERN_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

// `kinds`: how many there are.
inline void check_kind(const char* name, std::int64_t kind, int kinds) {
  FLOWKERN_CHECK(kind >= 0 && kind < kinds, name, ": expected 0 to ", kinds - 1, ", got ", kind);
}

// Whether a feature of the element takes this many parameters.
inline bool fits(const ElementCode& element, std::int64_t parameters) {
  if (element.kind == kAffine) return parameters == (element.scale_map() == kAdditive ? 1 : 2);
  const std::int64_t thrice = parameters - portable::more_slopes(element.tails());
  return thrice >= 3 && thrice % 3 == 0 && thrice <= 3 * kMostBins;
}

// The element of these kinds, without its constants, of which there must be the right number.
inline ElementCode checked_element(std::int64_t kind, std::int64_t first, std::int64_t second, std::int64_t constants) {
  check_kind("element", kind, kElements);
  check_kind("kinds", first, kind == kAffine ? int(kScaleMaps) : int(kTails));
  check_kind("kinds", second, kind == kAffine ? 2 : int(kKnotMaps));
  FLOWKERN_CHECK(constants == portable::constants_of(int(kind)), "constants: got ", constants);
  return {int(kind), int(first), int(second), {}};
}

inline void check_device(const char* name, const Tensor& tensor, const Tensor& x) {
  FLOWKERN_CHECK(tensor.is_cuda() == x.is_cuda() && tensor.get_device_index() == x.get_device_index(),
                 name, ": expected the device of x");
}

// Before anything asks for its sizes.
inline void check_matrix(const char* name, const Tensor& x) {
  FLOWKERN_CHECK(x.dim() == 2, name, ": expected shape (N, D)");
}

inline void check_coupling(const Tensor& x, const Tensor& params) {
  check_matrix("x", x);
  FLOWKERN_CHECK(params.dim() == 3, "params: expected shape (N, T, P)");
  FLOWKERN_CHECK(params.size(0) == x.size(0), "params: expected ", x.size(0), " rows, got ", params.size(0));
  FLOWKERN_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                 "x: expected float32 or float64");
  FLOWKERN_CHECK(params.scalar_type() == x.scalar_type(), "params: expected the dtype of x");
  check_device("params", params, x);
}

inline void check_cotangents(const Tensor& grad_y, const Tensor& grad_logabsdet, const Tensor& x) {
  check_matrix("x", x);
  FLOWKERN_CHECK(grad_y.dim() == 2 && grad_y.size(0) == x.size(0) && grad_y.size(1) == x.size(1), "grad_y: expected the shape of x");
  FLOWKERN_CHECK(grad_logabsdet.dim() == 1 && grad_logabsdet.size(0) == x.size(0), "grad_logabsdet: expected shape (N,)");
  FLOWKERN_CHECK(grad_y.scalar_type() == x.scalar_type() && grad_logabsdet.scalar_type() == x.scalar_type(),
                 "grad_y, grad_logabsdet: expected the dtype of x");
  check_device("grad_y", grad_y, x);
  check_device("grad_logabsdet", grad_logabsdet, x);
}

// The index of transformed features as a pointer; its entries are not looked at.
inline const std::int64_t* index_values(const std::optional<Tensor>& index, const Tensor& x, const Tensor& params) {
  const std::int64_t features = params.size(1), width = x.size(1);
  if (!index) {
    FLOWKERN_CHECK(features == width, "params: ", features, " transformed features, but x has ", width);
    return nullptr;
  }
  FLOWKERN_CHECK(index->scalar_type() == ScalarType::Long && index->dim() == 1 && index->is_contiguous(),
                 "index: expected a contiguous int64 vector");
  check_device("index", *index, x);
  FLOWKERN_CHECK(index->size(0) == features, "index: names ", index->size(0), " features, but params has ", features);
  return static_cast<const std::int64_t*>(index->const_data_ptr());
}

// An empty tensor laid out as `like` where that has no holes or overlaps, else contiguous:
// what torch.empty_like does.
inline Tensor empty_as(const Tensor& like) { return torch::stable::empty_like(like); }

}  // namespace flowkern
