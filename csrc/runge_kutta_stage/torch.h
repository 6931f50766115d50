// The torch side of Runge-Kutta stages, the same on every device: checks, outputs, and the problem for
// the loops or kernels. A Device has
//   explicit Device(y)                     for the duration of a call
//   stage(problem), error(problem)         runs the loops or kernels
#pragma once

#include "../common/checks.h"
#include "cpu.h"

#include <vector>

namespace flowkern {
namespace {

template <class Device> struct StageOp {
  // Checks that `tensor` can be read beside y, element by element.
  static void check_like(const char* name, const Tensor& tensor, const Tensor& y) {
    FLOWKERN_CHECK(tensor.scalar_type() == y.scalar_type(), name, ": expected the dtype of y");
    check_device(name, tensor, y);
    FLOWKERN_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
    FLOWKERN_CHECK(tensor.dim() == y.dim(), name, ": expected the shape of y");
    for (std::int64_t i = 0; i < y.dim(); ++i)
      FLOWKERN_CHECK(tensor.size(i) == y.size(i), name, ": expected the shape of y");
  }

  // Of the tensors of a call: y is (N, …) contiguous, weights (s,) or (N, s).
  template <class S>
  static Combination<S> combination(const Tensor& y, const std::vector<Tensor>& k, const Tensor& weights) {
    const std::int64_t rows = y.dim() > 0 ? y.size(0) : 1;
    Combination<S> c{rows, rows ? y.numel() / rows : 0, int(k.size())};
    for (int j = 0; j < c.stages; ++j) c.k[j] = static_cast<const S*>(k[j].const_data_ptr());
    const bool shared = weights.dim() == 1;
    c.weights = static_cast<const S*>(weights.const_data_ptr());
    c.weights_row = shared ? 0 : weights.stride(0);
    c.weights_one = weights.stride(shared ? 0 : 1);
    return c;
  }

  static void check(const Tensor& y, const std::vector<Tensor>& k, const Tensor& weights) {
    FLOWKERN_CHECK(y.scalar_type() == ScalarType::Float || y.scalar_type() == ScalarType::Double,
                   "y: expected float32 or float64");
    check_like("y", y, y);
    FLOWKERN_CHECK(k.size() >= 1 && k.size() <= kMostStages, "k: expected 1 to ", kMostStages, " tensors, got ", k.size());
    for (const Tensor& stage : k) check_like("k", stage, y);
    FLOWKERN_CHECK(weights.scalar_type() == y.scalar_type(), "weights: expected the dtype of y");
    check_device("weights", weights, y);
    const std::int64_t dims = weights.dim();
    FLOWKERN_CHECK((dims == 1 || (dims == 2 && y.dim() > 0 && weights.size(0) == y.size(0))) &&
                       weights.size(dims - 1) == std::int64_t(k.size()),
                   "weights: expected one for each of ", k.size(), " tensors k, or one such row for each of y's");
  }

  template <class S>
  static void run_stage(const Tensor& y, const std::vector<Tensor>& k, const Tensor& weights, Tensor& out) {
    const StageProblem<S> p{combination<S>(y, k, weights), static_cast<const S*>(y.const_data_ptr()),
                            static_cast<S*>(out.mutable_data_ptr())};
    Device(y).stage(p);
  }

  static Tensor stage(Tensor y, std::vector<Tensor> k, Tensor weights) {
    check(y, k, weights);
    Tensor out = torch::stable::empty_like(y);
    (y.scalar_type() == ScalarType::Double ? run_stage<double> : run_stage<float>)(y, k, weights, out);
    return out;
  }

  template <class S>
  static void run_error(const Tensor& y0, const Tensor& y1, const std::vector<Tensor>& k, const Tensor& weights,
                        double rtol, double atol, Tensor& sums) {
    const ErrorProblem<S> p{combination<S>(y0, k, weights), static_cast<const S*>(y0.const_data_ptr()),
                            static_cast<const S*>(y1.const_data_ptr()), S(rtol), S(atol),
                            static_cast<S*>(sums.mutable_data_ptr())};
    Device(y0).error(p);
  }

  static Tensor error(Tensor y0, Tensor y1, std::vector<Tensor> k, Tensor weights, double rtol, double atol) {
    check(y0, k, weights);
    check_like("y1", y1, y0);
    Tensor sums = torch::stable::new_empty(y0, {y0.dim() > 0 ? y0.size(0) : 1});
    if (y0.numel() == 0) torch::stable::zero_(sums);
    (y0.scalar_type() == ScalarType::Double ? run_error<double> : run_error<float>)(y0, y1, k, weights, rtol, atol, sums);
    return sums;
  }
};

}  // namespace
}  // namespace flowkern
