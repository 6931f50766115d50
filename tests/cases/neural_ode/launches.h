// What launches all of the op's CUDA kernels, at typical sizes (tests/gpu/compiled).
#include "../../../csrc/neural_ode/cuda.h"

namespace {

constexpr std::int64_t kRows = 4096;

template <class S> void launches() {
  for (bool backward : {false, true}) {
    flowkern::cuda::OdeSolve<S> p{};
    p.rows = kRows, p.features = 8, p.layers = 3, p.stages = 4, p.intervals = 1, p.steps = 16, p.every = 1;
    p.closed = true, p.backward = backward;
    const int units[] = {8, 64, 64, 8};
    for (int l = 0; l < 3; ++l) p.layer[l].inputs = units[l], p.layer[l].units = units[l + 1];
    flowkern::cuda::ode_plan(p);
    flowkern::cuda::ode_solve(p, nullptr);
  }
}

}  // namespace
