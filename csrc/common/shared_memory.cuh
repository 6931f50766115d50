// How much shared memory a block may have: asked for on the host, before a launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "platform.h"

FLOWKERN_BEGIN

// Of the 48 KiB that any block may have, what a kernel's own arrays always leave.
constexpr std::size_t kSharedByDefault = 44 * 1024;

inline void check_cuda(const char* name, const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that no later, innocent call reports it
  throw std::runtime_error(std::string("flowkern: the CUDA kernel ") + name + what + cudaGetErrorString(error));
}

inline int current_device(const char* name) {
  int device = 0;
  check_cuda(name, " has no device: ", cudaGetDevice(&device));
  return device;
}

// Bytes of shared memory that a block may have on the device.
inline int most_shared(const char* name, int device) {
  int bytes = 0;
  check_cuda(name, ": the device does not tell its shared memory: ",
             cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// Lets a kernel have all the shared memory of a block on the current device, once for each of both. The maximum is the
// kernel's, not the launch's: if each launch set its own, another thread's smaller one could come in between.
inline void allow_shared(const char* name, const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  const int device = current_device(name);
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device})) return;
  cudaFuncAttributes own{};
  check_cuda(name, " was not found: ", cudaFuncGetAttributes(&own, kernel));
  const int most = most_shared(name, device) - int(own.sharedSizeBytes);
  check_cuda(name, " may not have more shared memory: ",
             cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  allowed.insert({kernel, device});
}

FLOWKERN_END
