// The torch side of the affine coupling, the same on every device: checks, outputs, and the problem
// for the loops or kernels. A Device has
//   explicit Device(x)                               for the duration of a call
//   columns(index, x, params)                  the columns that are transformed
//   forward(problem), backward(problem)              runs the loops or kernels
#pragma once

#include "../common/checks.h"
#include "cpu.h"

namespace flowkern {
namespace {

// All columns or evenly spaced ones (first, step), or those listed (step 0).
struct Columns {
  const std::int64_t* index;
  std::int64_t first, step;
};

template <class Device> struct AffineOp {
  // Schema order; see flowkern/ops/_affine_coupling/native.py.
  struct Arguments {
    bool inverse, scale_first;
    std::int64_t kind;
    double a, b, prefactor, shift_prefactor;
  };

  template <class S> static Elements<S> choose(Elements<S> e, const Columns& columns) {
    if (columns.step == 0) return {e.base, e.row, e.feature, columns.index};
    return {e.base + columns.first * e.feature, e.row, columns.step * e.feature, nullptr};
  }

  template <class S> static Elements<const S> elements(const Tensor& t) {
    return {static_cast<const S*>(t.const_data_ptr()), t.stride(0), t.dim() > 1 ? t.stride(1) : 0, nullptr};
  }
  template <class S> static Elements<S> elements_out(Tensor& t) {
    return {static_cast<S*>(t.mutable_data_ptr()), t.stride(0), t.stride(1), nullptr};
  }

  // Those elements of (N, T, P) whose last coordinate is `which`.
  template <class S> static Elements<S> part(Elements<S> e, const Tensor& params, bool which) {
    e.base += which ? params.stride(2) : 0;
    return e;
  }

  // Features that are not transformed are copied from `in`: x, or the cotangent of y.
  template <class S>
  static AffineProblem<S> problem(const Tensor& x, const Tensor& params, const Columns& columns, const Arguments& a,
                                  const Tensor& in, Tensor& y) {
    AffineProblem<S> p{};
    p.rows = x.size(0), p.width = x.size(1), p.features = params.size(1);
    p.x = choose(elements<S>(x), columns), p.y = choose(elements_out<S>(y), columns);
    p.shift = part(elements<S>(params), params, a.kind != kAdditive && a.scale_first);
    p.raw = part(elements<S>(params), params, a.kind != kAdditive && !a.scale_first);
    if (columns.index) p.columns_in = elements<S>(in), p.columns_out = elements_out<S>(y);
    p.inverse = a.inverse, p.kind = int(a.kind);
    p.a = S(a.a), p.b = S(a.b), p.prefactor = S(a.prefactor), p.shift_prefactor = S(a.shift_prefactor);
    return p;
  }

  static void check(const Tensor& x, const Tensor& params, std::int64_t kind) {
    check_coupling(x, params);
    check_kind("kind", kind, kScaleMaps);
    const std::int64_t wanted = kind == kAdditive ? 1 : 2;
    FLOWKERN_CHECK(params.size(2) == wanted, "params: expected ", wanted, " parameters per feature, got ", params.size(2));
  }

  template <class S>
  static void run(const Device& device, const Tensor& x, const Tensor& params, const Columns& columns, const Arguments& a,
                  Tensor& y, Tensor& logabsdet) {
    AffineProblem<S> p = problem<S>(x, params, columns, a, x, y);
    p.logabsdet = static_cast<S*>(logabsdet.mutable_data_ptr());
    device.forward(p);
  }

  template <class S>
  static void run_backward(const Device& device, const Tensor& grad_y, const Tensor& grad_logabsdet, const Tensor& x,
                           const Tensor& params, const Columns& columns, const Arguments& a, Tensor& grad_x, Tensor& grad_params) {
    AffineProblem<S> p = problem<S>(x, params, columns, a, grad_y, grad_x);
    p.grad_y = choose(elements<S>(grad_y), columns);
    p.grad_logabsdet = elements<S>(grad_logabsdet);
    p.grad_shift = part(elements_out<S>(grad_params), grad_params, a.kind != kAdditive && a.scale_first);
    p.grad_raw = part(elements_out<S>(grad_params), grad_params, a.kind != kAdditive && !a.scale_first);
    device.backward(p);
  }

  static std::tuple<Tensor, Tensor> forward(
      Tensor x, Tensor params, std::optional<Tensor> index, bool inverse, bool scale_first,
      std::int64_t kind, double a, double b, double prefactor, double shift_prefactor) {
    check(x, params, kind);
    const Device device(x);
    const Columns columns = device.columns(index, x, params);
    Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensor logabsdet = torch::stable::new_empty(x, {x.size(0)});
    if (params.size(1) == 0) {  // nothing is transformed
      torch::stable::copy_(y, x);
      torch::stable::zero_(logabsdet);
      return {y, logabsdet};
    }
    const Arguments arguments{inverse, scale_first, kind, a, b, prefactor, shift_prefactor};
    const auto go = x.scalar_type() == ScalarType::Double ? run<double> : run<float>;
    go(device, x, params, columns, arguments, y, logabsdet);
    return {y, logabsdet};
  }

  static std::tuple<Tensor, Tensor> backward(
      Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor params, std::optional<Tensor> index,
      bool inverse, bool scale_first, std::int64_t kind, double a, double b, double prefactor,
      double shift_prefactor) {
    check(x, params, kind);
    check_cotangents(grad_y, grad_logabsdet, x);
    const Device device(x);
    const Columns columns = device.columns(index, x, params);
    Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensor grad_params = empty_as(params);
    if (params.size(1) == 0) {
      torch::stable::copy_(grad_x, grad_y);
      return {grad_x, grad_params};
    }
    const Arguments arguments{inverse, scale_first, kind, a, b, prefactor, shift_prefactor};
    const auto go = x.scalar_type() == ScalarType::Double ? run_backward<double> : run_backward<float>;
    go(device, grad_y, grad_logabsdet, x, params, columns, arguments, grad_x, grad_params);
    return {grad_x, grad_params};
  }
};

}  // namespace
}  // namespace flowkern
