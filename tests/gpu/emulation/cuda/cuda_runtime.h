// Stands in for CUDA's header: kernels that are compiled as C++ run on the CPU, see scheduler.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>

#include "../memory.h"
#include "../scheduler.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
// One thread runs all blocks, one after the other, so a block's memory is the thread's. Arrays of
// unknown size, `extern __shared__ …[]`, are given their place by build.py.
#define __shared__ thread_local

constexpr int warpSize = emulation::kWarp;

// --- launches ------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error ? "invalid configuration argument" : "no error";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = emulation::device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return *value = attribute == cudaDevAttrMultiProcessorCount ? 1 : int(emulation::kMostShared), cudaSuccess;
}
template <class K> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, K, int, std::size_t) {
  return *blocks = 1, cudaSuccess;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {
cudaError_t launch(const cudaLaunchConfig_t& config, const Call& call);
cudaError_t allow_shared(const void* kernel, std::size_t bytes);
}  // namespace emulation

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  using Values = std::tuple<P...>;
  Values values(arguments...);
  const auto once = [](void* kernel, void* values) {
    std::apply(reinterpret_cast<void (*)(P...)>(kernel), *static_cast<Values*>(values));
  };
  return emulation::launch(*config, {reinterpret_cast<void*>(kernel), once, &values, sizeof values});
}

// Arrays of a kernel's own are thread_local, and not counted.
struct cudaFuncAttributes { std::size_t sharedSizeBytes; };
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) { return *attributes = {}, cudaSuccess; }
template <class K> cudaError_t cudaFuncSetAttribute(K* kernel, cudaFuncAttribute, int bytes) {
  return emulation::allow_shared(reinterpret_cast<const void*>(kernel), std::size_t(bytes));
}

#include "cuda_synchronisation.h"
