// Checks, outputs and registration of the spline on the CPU; the loops are in …_simd.cpp.
#include "rational_quadratic_spline_cpu.h"

#include "../common/cpu.h"

namespace flowkern {
namespace {

// Schema order; see flowkern/ops/rational_quadratic_spline/native.py.
struct Arguments {
  bool inverse;
  std::int64_t tails;
  double left, right, bottom, top, min_width, min_height, min_slope, softclip, scale;
};

template <class S>
SplineProblem<S> problem(const Tensor& x, const Tensor& params, const std::optional<Tensor>& index,
                         const std::optional<Tensor>& bound, const Arguments& a, Tensor& y) {
  SplineProblem<S> p{};
  p.rows = x.size(0), p.width = x.size(1), p.features = params.size(1), p.parameters = params.size(2);
  p.x = static_cast<const S*>(x.const_data_ptr());
  p.x_row = x.stride(0), p.x_feature = x.stride(1);
  p.params = static_cast<const S*>(params.const_data_ptr());
  p.params_row = params.stride(0), p.params_feature = params.stride(1), p.params_one = params.stride(2);
  p.index = index_pointer(index, p.features, p.width);
  p.bounds = bound ? static_cast<const S*>(bound->const_data_ptr()) : nullptr;
  p.inverse = a.inverse, p.tails = int(a.tails);
  p.left = a.left, p.right = a.right, p.bottom = a.bottom, p.top = a.top;
  p.min_width = a.min_width, p.min_height = a.min_height, p.min_slope = a.min_slope;
  p.softclip = a.softclip, p.scale = a.scale;
  p.y = static_cast<S*>(y.mutable_data_ptr());
  return p;
}

void check(const Tensor& x, const Tensor& params, const std::optional<Tensor>& bound, std::int64_t tails) {
  check_coupling(x, params);
  FLOWKERN_CHECK(tails >= 0 && tails <= 2, "tails: expected 0, 1 or 2, got ", tails);
  const std::int64_t thrice = params.size(2) + 1 - tails;
  FLOWKERN_CHECK(thrice >= 3 && thrice % 3 == 0, "params: ", params.size(2), " parameters do not fit these tails");
  FLOWKERN_CHECK(thrice <= 3 * 256, "params: at most 256 bins, got ", thrice / 3);
  FLOWKERN_CHECK(!bound || (bound->scalar_type() == x.scalar_type() && bound->is_contiguous() && bound->numel() == params.size(1)),
                 "bound: expected a contiguous vector of ", params.size(1), " entries of x's dtype");
}

// Rows that make a task worth a thread's while.
std::int64_t grain(std::int64_t features) { return features < 1024 ? 1024 / features : 1; }

template <class S, class F> void in_parallel(const SplineProblem<S>& p, const F& rows) {
  if (p.rows > 0 && p.features > 0) torch::stable::parallel_for(0, p.rows, grain(p.features), rows);
}

template <class S> void forward_rows(SplineProblem<S> p, Tensor& logabsdet) {
  p.logabsdet = static_cast<S*>(logabsdet.mutable_data_ptr());
  in_parallel(p, [&](std::int64_t begin, std::int64_t end) { FLOWKERN_BY_ISA(spline_forward, p, begin, end); });
}

template <class S> void backward_rows(SplineProblem<S> p, const Tensor& grad_y, const Tensor& grad_logabsdet, Tensor& grad_params) {
  p.grad_y = static_cast<const S*>(grad_y.const_data_ptr());
  p.grad_y_row = grad_y.stride(0), p.grad_y_feature = grad_y.stride(1);
  p.grad_logabsdet = static_cast<const S*>(grad_logabsdet.const_data_ptr());
  p.grad_logabsdet_row = grad_logabsdet.stride(0);
  p.grad_params = static_cast<S*>(grad_params.mutable_data_ptr());
  p.grad_params_row = grad_params.stride(0), p.grad_params_feature = grad_params.stride(1);
  p.grad_params_one = grad_params.stride(2);
  in_parallel(p, [&](std::int64_t begin, std::int64_t end) { FLOWKERN_BY_ISA(spline_backward, p, begin, end); });
}

std::tuple<Tensor, Tensor> spline(
    Tensor x, Tensor params, std::optional<Tensor> index, std::optional<Tensor> bound, bool inverse,
    std::int64_t tails, double left, double right, double bottom, double top, double min_width,
    double min_height, double min_slope, double softclip, double scale) {
  check(x, params, bound, tails);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor logabsdet = torch::stable::new_empty(x, {x.size(0)});
  if (params.size(1) == 0) {  // nothing is transformed
    torch::stable::copy_(y, x);
    torch::stable::zero_(logabsdet);
    return {y, logabsdet};
  }
  const Arguments a{inverse, tails, left, right, bottom, top, min_width, min_height, min_slope, softclip, scale};
  if (x.scalar_type() == ScalarType::Double) forward_rows(problem<double>(x, params, index, bound, a, y), logabsdet);
  else forward_rows(problem<float>(x, params, index, bound, a, y), logabsdet);
  return {y, logabsdet};
}

std::tuple<Tensor, Tensor> spline_backward(
    Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor params, std::optional<Tensor> index,
    std::optional<Tensor> bound, bool inverse, std::int64_t tails, double left, double right,
    double bottom, double top, double min_width, double min_height, double min_slope,
    double softclip, double scale) {
  check(x, params, bound, tails);
  FLOWKERN_CHECK(grad_y.scalar_type() == x.scalar_type() && grad_logabsdet.scalar_type() == x.scalar_type(),
                 "grad_y, grad_logabsdet: expected the dtype of x");
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_params = empty_as(params);
  if (params.size(1) == 0) {
    torch::stable::copy_(grad_x, grad_y);
    return {grad_x, grad_params};
  }
  const Arguments a{inverse, tails, left, right, bottom, top, min_width, min_height, min_slope, softclip, scale};
  if (x.scalar_type() == ScalarType::Double)
    backward_rows(problem<double>(x, params, index, bound, a, grad_x), grad_y, grad_logabsdet, grad_params);
  else
    backward_rows(problem<float>(x, params, index, bound, a, grad_x), grad_y, grad_logabsdet, grad_params);
  return {grad_x, grad_params};
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("rational_quadratic_spline", TORCH_BOX(&spline));
  m.impl("rational_quadratic_spline_backward", TORCH_BOX(&spline_backward));
}

}  // namespace
}  // namespace flowkern
