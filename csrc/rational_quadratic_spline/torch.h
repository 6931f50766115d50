// The torch side of the spline, the same on every device: checks, outputs, and the problem for the
// loops or kernels. A Device has
//   explicit Device(x)                               for the duration of a call
//   index(index, x, params)                    the index as a pointer, checked
//   forward(problem), backward(problem)              runs the loops or kernels
#pragma once

#include "../common/checks.h"
#include "cpu.h"

namespace flowkern {
namespace {

template <class Device> struct SplineOp {
  // Schema order; see flowkern/ops/_rational_quadratic_spline/native.py.
  struct Arguments {
    bool inverse;
    std::int64_t tails;
    double left, right, bottom, top;
    std::int64_t knots;
    double min_width, min_height, min_slope, softclip, scale;
  };

  static void check(const Tensor& x, const Tensor& params, const std::optional<Tensor>& bound,
                    std::int64_t tails, std::int64_t knots) {
    check_coupling(x, params);
    check_kind("tails", tails, kTails);
    check_kind("knots", knots, kKnotMaps);
    const std::int64_t thrice = params.size(2) - portable::more_slopes(int(tails));
    FLOWKERN_CHECK(thrice >= 3 && thrice % 3 == 0, "params: ", params.size(2),
                   " parameters do not fit these tails");
    FLOWKERN_CHECK(thrice <= 3 * kMostBins, "params: at most ", kMostBins, " bins, got ", thrice / 3);
    if (!bound) return;
    check_device("bound", *bound, x);
    const bool fits = bound->is_contiguous() && bound->numel() == params.size(1);
    FLOWKERN_CHECK(fits && bound->scalar_type() == x.scalar_type(),
                   "bound: expected a contiguous vector of ", params.size(1), " entries of x's dtype");
  }

  template <class S>
  static SplineProblem<S> problem(const Device& device, const Tensor& x, const Tensor& params,
                                  const std::optional<Tensor>& index, const std::optional<Tensor>& bound,
                                  const Arguments& a, Tensor& y) {
    SplineProblem<S> p{};
    p.rows = x.size(0), p.width = x.size(1), p.features = params.size(1), p.parameters = params.size(2);
    p.x = static_cast<const S*>(x.const_data_ptr());
    p.x_row = x.stride(0), p.x_feature = x.stride(1);
    p.params = static_cast<const S*>(params.const_data_ptr());
    p.params_row = params.stride(0), p.params_feature = params.stride(1), p.params_one = params.stride(2);
    p.index = device.index(index, x, params);
    p.bounds = bound ? static_cast<const S*>(bound->const_data_ptr()) : nullptr;
    p.inverse = a.inverse, p.tails = int(a.tails), p.knots = int(a.knots);
    p.left = S(a.left), p.right = S(a.right), p.bottom = S(a.bottom), p.top = S(a.top);
    p.min_width = S(a.min_width), p.min_height = S(a.min_height), p.min_slope = S(a.min_slope);
    p.softclip = S(a.softclip), p.scale = S(a.scale);
    p.y = static_cast<S*>(y.mutable_data_ptr());
    return p;
  }

  template <class S> static void run(const Device& device, SplineProblem<S> p, Tensor& logabsdet) {
    p.logabsdet = static_cast<S*>(logabsdet.mutable_data_ptr());
    device.forward(p);
  }

  template <class S>
  static void run_backward(const Device& device, SplineProblem<S> p, const Tensor& grad_y,
                           const Tensor& grad_logabsdet, Tensor& grad_params) {
    p.grad_y = static_cast<const S*>(grad_y.const_data_ptr());
    p.grad_y_row = grad_y.stride(0), p.grad_y_feature = grad_y.stride(1);
    p.grad_logabsdet = static_cast<const S*>(grad_logabsdet.const_data_ptr());
    p.grad_logabsdet_row = grad_logabsdet.stride(0);
    p.grad_params = static_cast<S*>(grad_params.mutable_data_ptr());
    p.grad_params_row = grad_params.stride(0), p.grad_params_feature = grad_params.stride(1);
    p.grad_params_one = grad_params.stride(2);
    device.backward(p);
  }

  static std::tuple<Tensor, Tensor> forward(
      Tensor x, Tensor params, std::optional<Tensor> index, std::optional<Tensor> bound, bool inverse,
      std::int64_t tails, double left, double right, double bottom, double top, std::int64_t knots,
      double min_width, double min_height, double min_slope, double softclip, double scale) {
    check(x, params, bound, tails, knots);
    const Device device(x);
    Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensor logabsdet = torch::stable::new_empty(x, {x.size(0)});
    if (params.size(1) == 0) {  // nothing is transformed
      torch::stable::copy_(y, x);
      torch::stable::zero_(logabsdet);
      return {y, logabsdet};
    }
    const Arguments a{inverse, tails, left, right, bottom, top, knots, min_width, min_height, min_slope,
                      softclip, scale};
    if (x.scalar_type() == ScalarType::Double)
      run(device, problem<double>(device, x, params, index, bound, a, y), logabsdet);
    else
      run(device, problem<float>(device, x, params, index, bound, a, y), logabsdet);
    return {y, logabsdet};
  }

  static std::tuple<Tensor, Tensor> backward(
      Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor params, std::optional<Tensor> index,
      std::optional<Tensor> bound, bool inverse, std::int64_t tails, double left, double right,
      double bottom, double top, std::int64_t knots, double min_width, double min_height, double min_slope,
      double softclip, double scale) {
    check(x, params, bound, tails, knots);
    check_cotangents(grad_y, grad_logabsdet, x);
    const Device device(x);
    Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensor grad_params = empty_as(params);
    if (params.size(1) == 0) {
      torch::stable::copy_(grad_x, grad_y);
      return {grad_x, grad_params};
    }
    const Arguments a{inverse, tails, left, right, bottom, top, knots, min_width, min_height, min_slope,
                      softclip, scale};
    if (x.scalar_type() == ScalarType::Double)
      run_backward(device, problem<double>(device, x, params, index, bound, a, grad_x), grad_y, grad_logabsdet,
                   grad_params);
    else
      run_backward(device, problem<float>(device, x, params, index, bound, a, grad_x), grad_y, grad_logabsdet,
                   grad_params);
    return {grad_x, grad_params};
  }
};

}  // namespace
}  // namespace flowkern
