// The spline in the emulation: from what emulated.py passes to the problem that its kernels take.
#include "rational_quadratic_spline/cuda.h"
#include "../coupling.h"

namespace {

template <class S> flowkern::SplineProblem<S> spline(const Call& c) {
  flowkern::SplineProblem<S> p{};
  p.rows = c.sizes[0], p.width = c.sizes[1], p.features = c.sizes[2], p.parameters = c.sizes[3];
  p.x = c.x.at<S>(), p.x_row = c.x.stride[0], p.x_feature = c.x.stride[1];
  p.params = c.params.at<S>();
  p.params_row = c.params.stride[0], p.params_feature = c.params.stride[1], p.params_one = c.params.stride[2];
  p.index = c.index.at<std::int64_t>(), p.bounds = c.bounds.at<S>();
  p.inverse = c.integers[0], p.tails = int(c.integers[1]), p.knots = int(c.integers[2]);
  const double* n = c.numbers;
  p.left = n[0], p.right = n[1], p.bottom = n[2], p.top = n[3];
  p.min_width = n[4], p.min_height = n[5], p.min_slope = n[6], p.softclip = n[7], p.scale = n[8];
  p.y = c.y.at<S>(), p.logabsdet = c.logabsdet.at<S>();
  p.grad_y = c.grad_y.at<S>(), p.grad_y_row = c.grad_y.stride[0], p.grad_y_feature = c.grad_y.stride[1];
  p.grad_logabsdet = c.grad_logabsdet.at<S>(), p.grad_logabsdet_row = c.grad_logabsdet.stride[0];
  p.grad_params = c.grad_params.at<S>(), p.grad_params_row = c.grad_params.stride[0];
  p.grad_params_feature = c.grad_params.stride[1], p.grad_params_one = c.grad_params.stride[2];
  return p;
}

template <class S> void run_spline(const Call& c) {
  if (c.grad_y.data) flowkern::cuda::spline_backward(spline<S>(c), nullptr);
  else flowkern::cuda::spline_forward(spline<S>(c), nullptr);
}

}  // namespace

extern "C" const char* rational_quadratic_spline(const Call* c, bool wide) {
  return reported(*c, [&] { wide ? run_spline<double>(*c) : run_spline<float>(*c); });
}
