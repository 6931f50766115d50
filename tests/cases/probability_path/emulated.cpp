// The probability path in the emulation: from what emulated.py passes to the problem that its kernels take.
#include "probability_path/cuda.h"
#include "../../gpu/emulation/call.h"

namespace {

// Of the probability path; each direction has some of the tensors.
struct PathCall {
  std::int64_t sizes[2];
  Tensor x0, x1, t, noise, seed, x_t, u_t, drawn, grad_x, grad_u, grad_x0, grad_x1, grad_t;
  std::int64_t kind;
  double sigma;
};

template <class S> flowkern::PathProblem<S> path(const PathCall& c) {
  flowkern::PathProblem<S> p{};
  p.rows = c.sizes[0], p.features = c.sizes[1], p.kind = int(c.kind), p.sigma = c.sigma;
  p.seed = c.seed.at<std::int64_t>(), p.draws_noise = !c.noise.data && (c.sigma != 0 || c.kind == 1);
  p.x0 = c.x0.at<S>(), p.x1 = c.x1.at<S>(), p.noise = c.noise.at<S>(), p.given_t = c.t.at<S>();
  p.t = c.drawn.at<S>(), p.x_t = c.x_t.at<S>(), p.u_t = c.u_t.at<S>();
  p.grad_x = c.grad_x.at<S>(), p.grad_u = c.grad_u.at<S>();
  p.grad_x0 = c.grad_x0.at<S>(), p.grad_x1 = c.grad_x1.at<S>(), p.grad_t = c.grad_t.at<S>();
  return p;
}

template <class S> void run_path(const PathCall& c) {
  if (c.grad_x.data) flowkern::cuda::path_backward(path<S>(c), nullptr);
  else flowkern::cuda::path_forward(path<S>(c), nullptr);
}

void watch_all(const PathCall& c) {
  watch({
      {"t", c.t, Use::kInput},
      {"noise", c.noise, Use::kInput},
      {"seed", c.seed, Use::kInput},
      {"x0", c.x0, Use::kInput},
      {"x1", c.x1, Use::kInput},
      {"grad_x", c.grad_x, Use::kInput},
      {"grad_u", c.grad_u, Use::kInput},
      {"x_t", c.x_t, Use::kOutput},
      {"u_t", c.u_t, Use::kOutput},
      {"drawn", c.drawn, Use::kOutput},
      {"grad_x0", c.grad_x0, Use::kOutput},
      {"grad_x1", c.grad_x1, Use::kOutput},
      {"grad_t", c.grad_t, Use::kOutput},
  });
}

}  // namespace

extern "C" const char* probability_path(const PathCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_path<double>(*c) : run_path<float>(*c); });
}
