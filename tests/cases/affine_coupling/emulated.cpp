// The affine coupling in the emulation: from what emulated.py passes to the problem that its kernels take.
#include "affine_coupling/cuda.h"
#include "common/kinds.h"
#include "../coupling.h"

namespace {

template <class S> flowkern::AffineProblem<S> affine(const Call& c) {
  const auto* index = c.index.at<std::int64_t>();
  const bool scale_first = c.integers[1], additive = c.integers[2] == flowkern::kAdditive;
  const int shift = scale_first && !additive, raw = 1 - shift;
  flowkern::AffineProblem<S> p{};
  p.rows = c.sizes[0], p.width = c.sizes[1], p.features = c.sizes[2];
  p.x = c.x.elements<const S>(index), p.y = c.y.elements<S>(index);
  p.shift = c.params.elements<const S>(nullptr, shift), p.raw = c.params.elements<const S>(nullptr, raw);
  if (index) {
    p.columns_in = (c.grad_y.data ? c.grad_y : c.x).elements<const S>(nullptr);
    p.columns_out = c.y.elements<S>(nullptr);
  }
  p.inverse = c.integers[0], p.kind = int(c.integers[2]);
  p.a = c.numbers[0], p.b = c.numbers[1], p.prefactor = c.numbers[2], p.shift_prefactor = c.numbers[3];
  p.logabsdet = c.logabsdet.at<S>();
  p.grad_y = c.grad_y.elements<const S>(index);
  p.grad_logabsdet = c.grad_logabsdet.elements<const S>(nullptr);
  p.grad_shift = c.grad_params.elements<S>(nullptr, shift);
  p.grad_raw = c.grad_params.elements<S>(nullptr, raw);
  return p;
}

template <class S> void run_affine(const Call& c) {
  if (c.grad_y.data) flowkern::cuda::affine_backward(affine<S>(c), nullptr);
  else flowkern::cuda::affine_forward(affine<S>(c), nullptr);
}

}  // namespace

extern "C" const char* affine_coupling(const Call* c, bool wide) {
  return reported(*c, [&] { wide ? run_affine<double>(*c) : run_affine<float>(*c); });
}
