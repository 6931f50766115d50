// Launches: what the CUDA runtime refuses, and what it runs.
#include <map>

#include "cuda/cuda_runtime.h"

namespace emulation {
namespace {

constexpr std::size_t kSharedByDefault = 49152;
std::map<const void*, std::size_t> allowed;

std::size_t count(const dim3& d) { return std::size_t(d.x) * d.y * d.z; }

bool fits(const cudaLaunchConfig_t& config, const void* kernel) {
  const auto found = allowed.find(kernel);
  const std::size_t most = found == allowed.end() ? kSharedByDefault : found->second;
  const std::size_t threads = count(config.blockDim);
  return count(config.gridDim) > 0 && threads > 0 && threads <= 1024 && config.dynamicSmemBytes <= most;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const Call& call) {
  if (!fits(config, call.kernel)) return cudaErrorInvalidConfiguration;
  run({config.gridDim, config.blockDim, config.dynamicSmemBytes, call});
  return cudaSuccess;
}

cudaError_t allow_shared(const void* kernel, std::size_t bytes) {
  if (bytes > kMostShared) return cudaErrorInvalidConfiguration;
  allowed[kernel] = bytes;
  return cudaSuccess;
}

}  // namespace emulation
