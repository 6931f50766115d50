// Launches: what the CUDA runtime refuses, and what it runs.
#include <map>

#include "cuda/cuda_runtime.h"

namespace emulation {
namespace {

constexpr std::size_t kSharedByDefault = 49152;
std::map<const void*, std::size_t> allowed;

std::size_t count(const dim3& d) { return std::size_t(d.x) * d.y * d.z; }

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, void* kernel, void (*call)(void*, void*), void* arguments, std::size_t bytes) {
  const auto found = allowed.find(kernel);
  const std::size_t most = found == allowed.end() ? kSharedByDefault : found->second, threads = count(config.blockDim);
  if (count(config.gridDim) == 0 || threads == 0 || threads > 1024 || config.dynamicSmemBytes > most) return cudaErrorInvalidConfiguration;
  run({config.gridDim, config.blockDim, config.dynamicSmemBytes, kernel, call, arguments, bytes});
  return cudaSuccess;
}

cudaError_t allow_shared(const void* kernel, std::size_t bytes) {
  if (bytes > kMostShared) return cudaErrorInvalidConfiguration;
  allowed[kernel] = bytes;
  return cudaSuccess;
}

}  // namespace emulation
