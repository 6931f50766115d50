// Stands in for the CUDA runtime, linked to the ops' own host code: prints what is launched instead
// of launching it, one line "kernel threads dynamic-shared-memory" for each kernel of OP and typical sizes.
#include <cstdint>
#include <cstdio>
#include <map>

#include "../../../csrc/affine_coupling/cuda.h"
#include "../../../csrc/masked_autoregressive/cuda.h"
#include "../../../csrc/neural_ode/cuda.h"
#include "../../../csrc/probability_path/cuda.h"
#include "../../../csrc/rational_quadratic_spline/cuda.h"
#include "../../../csrc/runge_kutta_stage/cuda.h"

namespace {

struct Dim3 { unsigned x, y, z; };
struct Config {  // cudaLaunchConfig_t
  Dim3 grid, block;
  std::size_t shared;
};

// Names by the address of the host's stub of a kernel.
std::map<const void*, const char*>& names() {
  static std::map<const void*, const char*> names;
  return names;
}

}  // namespace

extern "C" {
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names()[stub] = name;
}
int cudaLaunchKernelExC(const Config* config, const void* stub, void**) {
  std::printf("%s %u %zu\n", names()[stub], config->block.x, config->shared);
  return 0;
}
int cudaFuncSetAttribute(const void*, int, int) { return 0; }
int cudaGetDevice(int* device) { return *device = 0; }
// Of shared memory, the only one asked for: what the smallest of the architectures has for a block.
int cudaDeviceGetAttribute(int* value, int, int) {
  *value = 163 * 1024;
  return 0;
}
int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return ""; }
// Of the <<<…>>> way to launch, which compiled code refers to and does not take.
int __cudaGetKernel(void**, const void*) { return 1; }
int __cudaLaunchKernel(const void*, Dim3, Dim3, void**, std::size_t, void*) { return 1; }
int __cudaPopCallConfiguration(Dim3*, Dim3*, std::size_t*, void*) { return 1; }
}

namespace {

constexpr std::int64_t kRows = 4096, kFeatures = 32;

template <class S> void affine_coupling() {
  for (int kind = 0; kind < 8; ++kind)
    for (bool inverse : {false, true}) {
      flowkern::AffineProblem<S> p{};
      p.rows = kRows, p.width = p.features = kFeatures, p.kind = kind, p.inverse = inverse;
      flowkern::cuda::affine_forward(p, nullptr);
      flowkern::cuda::affine_backward(p, nullptr);
    }
}

template <class S> void rational_quadratic_spline() {
  for (int bins : {4, 8, 10, 16, 32})
    for (double softclip : {0.0, 1.0})
      for (bool inverse : {false, true}) {
        flowkern::SplineProblem<S> p{};
        p.rows = kRows, p.width = p.features = kFeatures, p.parameters = 3 * bins - 1;
        p.softclip = softclip, p.inverse = inverse;
        flowkern::cuda::spline_forward(p, nullptr);
        flowkern::cuda::spline_backward(p, nullptr);
      }
}

template <class S> void probability_path() {
  for (int kind = 0; kind < 4; ++kind)
    for (bool given : {false, true}) {
      const S some{};
      flowkern::PathProblem<S> p{};
      p.rows = kRows, p.features = kFeatures, p.kind = kind, p.draws_noise = !given;
      if (given) p.given_t = p.noise = &some;
      flowkern::cuda::path_forward(p, nullptr);
      flowkern::cuda::path_backward(p, nullptr);
    }
}

template <class S> void runge_kutta_stage() {
  for (int stages = 1; stages <= flowkern::kMostStages; ++stages) {
    flowkern::StageProblem<S> step{};
    flowkern::ErrorProblem<S> error{};
    for (auto* c : {&step.combination, &error.combination}) c->rows = kRows, c->width = kFeatures, c->stages = stages;
    flowkern::cuda::runge_kutta_stage(step, nullptr);
    flowkern::cuda::runge_kutta_error(error, nullptr);
  }
}

template <class S> void neural_ode() {
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

// Two hidden layers of 128; with bins, a spline of so many.
template <class S> void masked_autoregressive() {
  for (int bins : {0, 8})
    for (double softclip : {0.0, 1.0})
      for (bool inverse : {false, true})
        for (bool backward : {false, true}) {
          const S some{};
          flowkern::MaskedTransform<S> t{};
          t.rows = kRows, t.features = t.levels = kFeatures, t.parameters = bins ? 3 * bins - 1 : 2;
          t.element = bins ? 8 : 1, t.inverse = inverse, t.constants[7] = softclip;
          if (backward) t.grad_out.base = &some;
          std::vector<flowkern::MaskedLayer<S>> layers(3);
          for (auto& layer : layers) layer.units = 128, layer.skip = -1;
          layers.back().units = t.features * t.parameters;
          std::vector<S> scratch(flowkern::cuda::masked_scratch(t, layers));
          flowkern::cuda::masked_autoregressive(t, layers, scratch.data(), nullptr);
        }
}

}  // namespace

int main() { OP<float>(), OP<double>(); }
