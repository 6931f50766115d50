// Entry points as those of tests/emulation/kernels.cpp, to the CPU loops: four threads work on a call,
// and take a few rows at a time. FLOWKERN_ISA names the instruction set.
#include <thread>

#include "../emulation/problems.h"

namespace {

constexpr int kThreads = 4;
constexpr std::int64_t kRows = 7;  // no multiple of the lanes or of what fits into a segment

template <class F> void in_threads(std::int64_t rows, const F& loop) {
  const auto work = [&](int first) {
    for (std::int64_t row = first * kRows; row < rows; row += kThreads * kRows)
      loop(row, row + kRows < rows ? row + kRows : rows);
  };
  std::thread threads[kThreads];
  for (int i = 0; i < kThreads; ++i) threads[i] = std::thread(work, i);
  for (std::thread& thread : threads) thread.join();
}

namespace loops = flowkern::FLOWKERN_ISA;

template <class S> void run_spline(const Call& c) {
  in_threads(c.sizes[0], [&, p = spline<S>(c)](auto begin, auto end) {
    c.grad_y.data ? loops::spline_backward(p, begin, end) : loops::spline_forward(p, begin, end);
  });
}
template <class S> void run_affine(const Call& c) {
  in_threads(c.sizes[0], [&, p = affine<S>(c)](auto begin, auto end) {
    c.grad_y.data ? loops::affine_backward(p, begin, end) : loops::affine_forward(p, begin, end);
  });
}
template <class S> void run_path(const PathCall& c) {
  const PathProblem<S> p = path<S>(c);
  const auto blocks = [](std::int64_t count) { return (count + flowkern::kPathBlock - 1) / flowkern::kPathBlock; };
  if (!p.given_t) in_threads(blocks(p.rows), [&](auto begin, auto end) { loops::path_times(p, begin, end); });
  in_threads(blocks(p.rows * p.features), [&](auto begin, auto end) {
    c.grad_x.data ? loops::path_backward(p, begin, end) : loops::path_forward(p, begin, end);
  });
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
const char* probability_path(const PathCall* c, bool wide) {
  wide ? run_path<double>(*c) : run_path<float>(*c);
  return nullptr;
}
}
