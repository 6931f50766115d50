// Runge-Kutta stages in the emulation: from what emulated.py passes to the problem that its kernels take.
#include "runge_kutta_stage/cuda.h"
#include "../../gpu/emulation/call.h"

namespace {

// Of a Runge-Kutta stage, or with y1 of a step's error.
struct StageCall {
  std::int64_t sizes[2], stages;
  Tensor y, y1, k[flowkern::kMostStages], weights, out;
  double rtol, atol;
};

template <class S> flowkern::Combination<S> combination(const StageCall& c) {
  flowkern::Combination<S> result{c.sizes[0], c.sizes[1], int(c.stages)};
  for (int j = 0; j < c.stages; ++j) result.k[j] = c.k[j].at<S>();
  result.weights = c.weights.at<S>();
  result.weights_row = c.weights.stride[0], result.weights_one = c.weights.stride[1];
  return result;
}

template <class S> flowkern::StageProblem<S> stage(const StageCall& c) {
  return {combination<S>(c), c.y.at<S>(), c.out.at<S>()};
}

template <class S> flowkern::ErrorProblem<S> stage_error(const StageCall& c) {
  return {combination<S>(c), c.y.at<S>(), c.y1.at<S>(), S(c.rtol), S(c.atol), c.out.at<S>()};
}

template <class S> void run_stage(const StageCall& c) {
  if (c.y1.data) flowkern::cuda::runge_kutta_error(stage_error<S>(c), nullptr);
  else flowkern::cuda::runge_kutta_stage(stage<S>(c), nullptr);
}

void watch_all(const StageCall& c) {
  watch({
      {"y", c.y, Use::kInput},
      {"y1", c.y1, Use::kInput},
      {"weights", c.weights, Use::kInput},
      {"out", c.out, Use::kOutput},
  });
  for (int j = 0; j < c.stages; ++j) emulation::watch(c.k[j].data, std::size_t(c.k[j].bytes), "k", Use::kInput);
}

}  // namespace

extern "C" const char* runge_kutta_stage(const StageCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_stage<double>(*c) : run_stage<float>(*c); });
}
