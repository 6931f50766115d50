// Checks, outputs and registration of the affine coupling on the CPU; the loops are in …_simd.cpp.
#include "affine_coupling_cpu.h"

#include "../common/cpu.h"

namespace flowkern {
namespace {

// Schema order; see flowkern/ops/affine_coupling/native.py.
struct Arguments {
  bool inverse, scale_first;
  std::int64_t kind;
  double a, b, prefactor, shift_prefactor;
};

// The columns that are transformed: all, or evenly spaced ones, or those listed (step 0).
struct Columns {
  const std::int64_t* index;
  std::int64_t first, step;
};

Columns columns_of(const std::optional<Tensor>& index, std::int64_t features, std::int64_t width) {
  const std::int64_t* i = index_pointer(index, features, width);
  if (!i) return {nullptr, 0, 1};
  const std::int64_t step = features > 1 ? i[1] - i[0] : 1;
  for (std::int64_t t = 1; t < features; ++t)
    if (step <= 0 || i[t] - i[t - 1] != step) return {i, 0, 0};
  return {i, i[0], step};
}

template <class S> Elements<S> choose(Elements<S> e, const Columns& columns) {
  if (columns.step == 0) return {e.base, e.row, e.feature, columns.index};
  return {e.base + columns.first * e.feature, e.row, columns.step * e.feature, nullptr};
}

template <class S> Elements<const S> elements(const Tensor& t) {
  return {static_cast<const S*>(t.const_data_ptr()), t.stride(0), t.dim() > 1 ? t.stride(1) : 0, nullptr};
}
template <class S> Elements<S> elements_out(Tensor& t) {
  return {static_cast<S*>(t.mutable_data_ptr()), t.stride(0), t.stride(1), nullptr};
}

// Those elements of (N, T, P) whose last coordinate is `which`.
template <class S> Elements<S> part(Elements<S> e, const Tensor& params, bool which) {
  e.base += which ? params.stride(2) : 0;
  return e;
}

// Outputs are written past the caches where a call reads and writes more than these hold; rows of
// which a part is copied are not, for their cache lines are written twice.
constexpr std::int64_t kCacheBytes = 32 << 20;

bool streams(const Tensor& x, const Tensor& params, const Columns& columns, std::int64_t element) {
  return !columns.index && (2 * x.numel() + params.numel()) * element >= kCacheBytes;
}

// Features that are not transformed are copied from `in`: x, or the cotangent of y.
template <class S>
AffineProblem<S> problem(const Tensor& x, const Tensor& params, const Columns& columns, const Arguments& a,
                         const Tensor& in, Tensor& y) {
  AffineProblem<S> p{};
  p.rows = x.size(0), p.width = x.size(1), p.features = params.size(1);
  p.x = choose(elements<S>(x), columns), p.y = choose(elements_out<S>(y), columns);
  p.shift = part(elements<S>(params), params, a.kind != 0 && a.scale_first);
  p.raw = part(elements<S>(params), params, a.kind != 0 && !a.scale_first);
  if (columns.index) p.columns_in = elements<S>(in), p.columns_out = elements_out<S>(y);
  p.streams = streams(x, params, columns, sizeof(S));
  p.inverse = a.inverse, p.kind = int(a.kind);
  p.a = a.a, p.b = a.b, p.prefactor = a.prefactor, p.shift_prefactor = a.shift_prefactor;
  return p;
}

void check(const Tensor& x, const Tensor& params, std::int64_t kind) {
  check_coupling(x, params);
  FLOWKERN_CHECK(kind >= 0 && kind <= 7, "kind: expected 0 to 7, got ", kind);
  const std::int64_t wanted = kind == 0 ? 1 : 2;
  FLOWKERN_CHECK(params.size(2) == wanted, "params: expected ", wanted, " parameters per feature, got ", params.size(2));
}

// Rows that make a task worth a thread's while.
std::int64_t grain(std::int64_t features) { return features < 16384 ? 16384 / features : 1; }

template <class S, class F> void in_parallel(const AffineProblem<S>& p, const F& rows) {
  if (p.rows > 0) torch::stable::parallel_for(0, p.rows, grain(p.features), rows);
}

template <class S>
void forward(const Tensor& x, const Tensor& params, const Columns& columns, const Arguments& a, Tensor& y, Tensor& logabsdet) {
  AffineProblem<S> p = problem<S>(x, params, columns, a, x, y);
  p.logabsdet = static_cast<S*>(logabsdet.mutable_data_ptr());
  in_parallel(p, [&](std::int64_t begin, std::int64_t end) { FLOWKERN_BY_ISA(affine_forward, p, begin, end); });
}

template <class S>
void backward(const Tensor& grad_y, const Tensor& grad_logabsdet, const Tensor& x, const Tensor& params,
              const Columns& columns, const Arguments& a, Tensor& grad_x, Tensor& grad_params) {
  AffineProblem<S> p = problem<S>(x, params, columns, a, grad_y, grad_x);
  p.grad_y = choose(elements<S>(grad_y), columns);
  p.grad_logabsdet = elements<S>(grad_logabsdet);
  p.grad_shift = part(elements_out<S>(grad_params), grad_params, a.kind != 0 && a.scale_first);
  p.grad_raw = part(elements_out<S>(grad_params), grad_params, a.kind != 0 && !a.scale_first);
  in_parallel(p, [&](std::int64_t begin, std::int64_t end) { FLOWKERN_BY_ISA(affine_backward, p, begin, end); });
}

std::tuple<Tensor, Tensor> affine_coupling(
    Tensor x, Tensor params, std::optional<Tensor> index, bool inverse, bool scale_first,
    std::int64_t kind, double a, double b, double prefactor, double shift_prefactor) {
  check(x, params, kind);
  const Columns columns = columns_of(index, params.size(1), x.size(1));
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor logabsdet = torch::stable::new_empty(x, {x.size(0)});
  if (params.size(1) == 0) {  // nothing is transformed
    torch::stable::copy_(y, x);
    torch::stable::zero_(logabsdet);
    return {y, logabsdet};
  }
  const Arguments arguments{inverse, scale_first, kind, a, b, prefactor, shift_prefactor};
  const auto run = x.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  run(x, params, columns, arguments, y, logabsdet);
  return {y, logabsdet};
}

std::tuple<Tensor, Tensor> affine_coupling_backward(
    Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor params, std::optional<Tensor> index,
    bool inverse, bool scale_first, std::int64_t kind, double a, double b, double prefactor,
    double shift_prefactor) {
  check(x, params, kind);
  FLOWKERN_CHECK(grad_y.scalar_type() == x.scalar_type() && grad_logabsdet.scalar_type() == x.scalar_type(),
                 "grad_y, grad_logabsdet: expected the dtype of x");
  const Columns columns = columns_of(index, params.size(1), x.size(1));
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_params = empty_as(params);
  if (params.size(1) == 0) {
    torch::stable::copy_(grad_x, grad_y);
    return {grad_x, grad_params};
  }
  const Arguments arguments{inverse, scale_first, kind, a, b, prefactor, shift_prefactor};
  const auto run = x.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  run(grad_y, grad_logabsdet, x, params, columns, arguments, grad_x, grad_params);
  return {grad_x, grad_params};
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("affine_coupling", TORCH_BOX(&affine_coupling));
  m.impl("affine_coupling_backward", TORCH_BOX(&affine_coupling_backward));
}

}  // namespace
}  // namespace flowkern
