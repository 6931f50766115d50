// The torch side of the probability path, the same on every device: checks, outputs, and the problem for
// the loops or kernels. A Device has
//   explicit Device(x)                     for the duration of a call
//   forward(problem), backward(problem)    runs the loops or kernels
#pragma once

#include "../common/checks.h"
#include "cpu.h"

namespace flowkern {
namespace {

template <class Device> struct PathOp {
  // Schema order; see flowkern/ops/_probability_path/native.py.
  struct Arguments {
    const Tensor &x0, &x1;
    const std::optional<Tensor>&t, &noise;
    const Tensor& seed;
    std::int64_t kind;
    double sigma;
  };

  static void check_like(const char* name, const Tensor& tensor, const Tensor& x, bool row_wise = false) {
    const bool fits = tensor.dim() == (row_wise ? 1 : 2) && tensor.size(0) == x.size(0) && (row_wise || tensor.size(1) == x.size(1));
    FLOWKERN_CHECK(fits, name, ": expected shape (", x.size(0), row_wise ? ",)" : ", D) as x0 has");
    FLOWKERN_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.is_contiguous(), name, ": expected contiguous, of the dtype of x0");
    check_device(name, tensor, x);
  }

  static void check(const Arguments& a) {
    FLOWKERN_CHECK(a.x0.dim() == 2 && a.x0.size(1) > 0, "x0: expected shape (N, D) with a feature");
    FLOWKERN_CHECK(a.x0.scalar_type() == ScalarType::Float || a.x0.scalar_type() == ScalarType::Double, "x0: expected float32 or float64");
    check_like("x0", a.x0, a.x0);
    check_like("x1", a.x1, a.x0);
    if (a.t) check_like("t", *a.t, a.x0, true);
    if (a.noise) check_like("noise", *a.noise, a.x0);
    FLOWKERN_CHECK(a.seed.scalar_type() == ScalarType::Long && a.seed.dim() == 0, "seed: expected an int64 tensor of no dimension");
    check_device("seed", a.seed, a.x0);
    check_kind("path", a.kind, kPaths);
  }

  template <class S> static const S* pointer(const Tensor& t) { return static_cast<const S*>(t.const_data_ptr()); }
  template <class S> static const S* pointer(const std::optional<Tensor>& t) { return t ? pointer<S>(*t) : nullptr; }
  template <class S> static S* pointer_out(Tensor& t) { return static_cast<S*>(t.mutable_data_ptr()); }

  template <class S> static PathProblem<S> problem(const Arguments& a) {
    PathProblem<S> p{};
    p.rows = a.x0.size(0), p.features = a.x0.size(1);
    p.kind = int(a.kind), p.sigma = a.sigma, p.seed = pointer<std::int64_t>(a.seed);
    p.draws_noise = !a.noise && (a.sigma != 0 || a.kind == kTarget);
    p.x0 = pointer<S>(a.x0), p.x1 = pointer<S>(a.x1), p.noise = pointer<S>(a.noise), p.given_t = pointer<S>(a.t);
    return p;
  }

  template <class S> static void run(const Arguments& a, Tensor& x_t, Tensor& u_t, Tensor& t) {
    PathProblem<S> p = problem<S>(a);
    p.x_t = pointer_out<S>(x_t), p.u_t = pointer_out<S>(u_t), p.t = pointer_out<S>(t);
    Device(a.x0).forward(p);
  }

  template <class S>
  static void run_backward(const Arguments& a, const Tensor& grad_x, const Tensor& grad_u, Tensor& grad_x0, Tensor& grad_x1, Tensor& grad_t) {
    PathProblem<S> p = problem<S>(a);
    p.grad_x = pointer<S>(grad_x), p.grad_u = pointer<S>(grad_u);
    p.grad_x0 = pointer_out<S>(grad_x0), p.grad_x1 = pointer_out<S>(grad_x1);
    if (grad_t.dim() == 2) p.grad_t = pointer_out<S>(grad_t);
    Device(a.x0).backward(p);
  }

  static std::tuple<Tensor, Tensor, Tensor> forward(Tensor x0, Tensor x1, std::optional<Tensor> t, std::optional<Tensor> noise,
                                                    Tensor seed, std::int64_t kind, double sigma) {
    const Arguments a{x0, x1, t, noise, seed, kind, sigma};
    check(a);
    Tensor x_t = torch::stable::new_empty(x0, {x0.size(0), x0.size(1)});
    Tensor u_t = torch::stable::new_empty(x0, {x0.size(0), x0.size(1)});
    Tensor drawn = torch::stable::new_empty(x0, {t ? 0 : x0.size(0)});
    const auto go = x0.scalar_type() == ScalarType::Double ? run<double> : run<float>;
    go(a, x_t, u_t, drawn);
    return {x_t, u_t, drawn};
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_x, Tensor grad_u, bool of_t, Tensor x0, Tensor x1, Tensor t,
                                                     std::optional<Tensor> noise, Tensor seed, std::int64_t kind, double sigma) {
    const std::optional<Tensor> given = t;
    const Arguments a{x0, x1, given, noise, seed, kind, sigma};
    check(a);
    check_like("grad_x", grad_x, x0);
    check_like("grad_u", grad_u, x0);
    Tensor grad_x0 = torch::stable::new_empty(x0, {x0.size(0), x0.size(1)});
    Tensor grad_x1 = torch::stable::new_empty(x0, {x0.size(0), x0.size(1)});
    Tensor grad_t = of_t ? torch::stable::new_empty(x0, {x0.size(0), x0.size(1)}) : torch::stable::new_empty(x0, {0});
    const auto go = x0.scalar_type() == ScalarType::Double ? run_backward<double> : run_backward<float>;
    go(a, grad_x, grad_u, grad_x0, grad_x1, grad_t);
    return {grad_x0, grad_x1, grad_t};
  }
};

}  // namespace
}  // namespace flowkern
