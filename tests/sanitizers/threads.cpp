// Entry points as those of tests/emulation/kernels.cpp, to the CPU loops: four threads work on a call,
// and take a few rows at a time. FLOWKERN_CPU chooses the instruction set.
#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>

#include "../emulation/problems.h"

namespace {

constexpr std::int64_t kRows = 7;  // no multiple of the lanes or of what fits into a segment

template <class F> void in_threads(std::int64_t rows, const F& loop) {
  std::atomic<std::int64_t> next = 0;
  const auto work = [&] {
    for (std::int64_t row; (row = next.fetch_add(kRows, std::memory_order_relaxed)) < rows;) loop(row, row + kRows < rows ? row + kRows : rows);
  };
  std::thread threads[4];
  for (std::thread& thread : threads) thread = std::thread(work);
  for (std::thread& thread : threads) thread.join();
}

template <class P> using Loop = void (*)(const P&, std::int64_t, std::int64_t);

template <class P> Loop<P> chosen(Loop<P> portable, Loop<P> avx2, Loop<P> avx512) {
  const std::string isa = std::getenv("FLOWKERN_CPU");
  return isa == "avx512" ? avx512 : isa == "avx2" ? avx2 : portable;
}
#define BY_ISA(P, loop) chosen<P>(flowkern::portable::loop, flowkern::avx2::loop, flowkern::avx512::loop)

template <class S> void run_spline(const Call& c) {
  using P = SplineProblem<S>;
  const auto loop = c.grad_y.data ? BY_ISA(P, spline_backward) : BY_ISA(P, spline_forward);
  in_threads(c.sizes[0], [p = spline<S>(c), loop](auto begin, auto end) { loop(p, begin, end); });
}
template <class S> void run_affine(const Call& c) {
  using P = AffineProblem<S>;
  const auto loop = c.grad_y.data ? BY_ISA(P, affine_backward) : BY_ISA(P, affine_forward);
  in_threads(c.sizes[0], [p = affine<S>(c), loop](auto begin, auto end) { loop(p, begin, end); });
}

}  // namespace

extern "C" {
const char* rational_quadratic_spline(const Call* c, bool wide) {
  wide ? run_spline<double>(*c) : run_spline<float>(*c);
  return nullptr;
}
const char* affine_coupling(const Call* c, bool wide) {
  wide ? run_affine<double>(*c) : run_affine<float>(*c);
  return nullptr;
}
}
