// The loops over rows; compiled once per instruction set, see platform.h.
#include "cpu.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

// The first `count` lanes from memory, the others 0; and the same to memory.
template <class S> FLOWKERN_HD Vec<S> some(const S* from, int count) {
  alignas(64) S values[Lanes<Vec<S>>::count] = {};
  __builtin_memcpy(values, from, count * sizeof(S));
  return load(values);
}
template <class S> FLOWKERN_HD void put(S* to, Vec<S> value, int count) {
  alignas(64) S values[Lanes<Vec<S>>::count];
  store(values, value);
  __builtin_memcpy(to, values, count * sizeof(S));
}

// body(first element, how many) for each vector of a row.
template <class S, class F> FLOWKERN_HD void each_vector(std::int64_t features, const F& body) {
  constexpr int lanes = Lanes<Vec<S>>::count;
  for (std::int64_t d = 0; d < features; d += lanes) body(d, features - d < lanes ? int(features - d) : lanes);
}

template <class S> void forward(const ScaleProblem<S>& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t n = begin; n < end; ++n) {
    const std::int64_t row = n * p.features;
    S total = 0, terms[Lanes<Vec<S>>::count];
    each_vector<S>(p.features, [&](std::int64_t d, int count) {
      const auto out = tanh_scale(some(p.x + row + d, count), some(p.u + row + d, count));
      put(p.y + row + d, out.y, count);
      put(terms, out.log_scale, count);
      for (int i = 0; i < count; ++i) total += terms[i];
    });
    p.logabsdet[n] = total;
  }
}

template <class S> void backward(const ScaleProblem<S>& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t n = begin; n < end; ++n)
    each_vector<S>(p.features, [&](std::int64_t d, int count) {
      const std::int64_t i = n * p.features + d;
      const auto g = tanh_scale_vjp(some(p.x + i, count), some(p.u + i, count), some(p.grad_y + i, count), Vec<S>(p.grad_l[n]));
      put(p.grad_x + i, g.x, count), put(p.grad_u + i, g.u, count);
    });
}

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                                         \
  void tanh_scale_forward(const ScaleProblem<S>& p, std::int64_t begin, std::int64_t end) { forward(p, begin, end); } \
  void tanh_scale_backward(const ScaleProblem<S>& p, std::int64_t begin, std::int64_t end) { backward(p, begin, end); }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
