// On the CPU: checks, outputs, threads, and registration; the loops are in simd.cpp.
#include "../common/checks.h"
#include "../common/cpu.h"
#include "cpu.h"

namespace flowkern {
namespace {

template <class S> const S* pointer(const Tensor& t) { return static_cast<const S*>(t.const_data_ptr()); }
template <class S> S* pointer_out(Tensor& t) { return static_cast<S*>(t.mutable_data_ptr()); }

void check(const char* name, const Tensor& tensor, const Tensor& x) {
  FLOWKERN_CHECK(tensor.dim() == 2 && tensor.size(0) == x.size(0) && tensor.size(1) == x.size(1), name, ": expected shape (N, D)");
  FLOWKERN_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.is_contiguous(), name, ": expected contiguous, of x's dtype");
  check_device(name, tensor, x);
}

template <class S> void run_forward(const Tensor& x, const Tensor& u, Tensor& y, Tensor& l) {
  ScaleProblem<S> p{x.size(1), pointer<S>(x), pointer<S>(u)};
  p.y = pointer_out<S>(y), p.logabsdet = pointer_out<S>(l);
  in_parallel(x.size(0), x.size(1), 16384, [&](auto begin, auto end) { FLOWKERN_BY_ISA(tanh_scale_forward, p, begin, end); });
}

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor u) {
  check("x", x, x), check("u", u, x);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)}), l = torch::stable::new_empty(x, {x.size(0)});
  const auto run = x.scalar_type() == ScalarType::Double ? run_forward<double> : run_forward<float>;
  run(x, u, y, l);
  return {y, l};
}

template <class S> void run_backward(const Tensor& g_y, const Tensor& g_l, const Tensor& x, const Tensor& u, Tensor& g_x, Tensor& g_u) {
  ScaleProblem<S> p{x.size(1), pointer<S>(x), pointer<S>(u), pointer<S>(g_y), pointer<S>(g_l)};
  p.grad_x = pointer_out<S>(g_x), p.grad_u = pointer_out<S>(g_u);
  in_parallel(x.size(0), x.size(1), 16384, [&](auto begin, auto end) { FLOWKERN_BY_ISA(tanh_scale_backward, p, begin, end); });
}

std::tuple<Tensor, Tensor> backward(Tensor g_y, Tensor g_l, Tensor x, Tensor u) {
  check("x", x, x), check("u", u, x), check("grad_y", g_y, x);
  FLOWKERN_CHECK(g_l.dim() == 1 && g_l.size(0) == x.size(0) && g_l.is_contiguous(), "grad_l: expected contiguous (N,)");
  Tensor g_x = torch::stable::new_empty(x, {x.size(0), x.size(1)}), g_u = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  const auto run = x.scalar_type() == ScalarType::Double ? run_backward<double> : run_backward<float>;
  run(g_y, g_l, x, u, g_x, g_u);
  return {g_x, g_u};
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("tanh_scale", TORCH_BOX(&forward));
  m.impl("tanh_scale_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace flowkern
