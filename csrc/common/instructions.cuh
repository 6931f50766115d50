// Instructions of the GPU that CUDA C++ has no name for, each with a twin in plain C++, which the emulation runs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "platform.h"

FLOWKERN_BEGIN

// Sixteen bytes at once, to main memory.
__device__ __forceinline__ void store_16(void* to, uint4 value) {
#if defined(__NVCC__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
#else
  *static_cast<uint4*>(to) = value;
#endif
}

// A copy from main to shared memory that passes the registers by: it is there after wait_for_copies, and what
// other threads copied after a barrier behind that. Both ends are so many bytes beyond the pointers.
template <int bytes, int beyond = 0>
__device__ __forceinline__ void copy_async(void* shared, const void* from) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
#if defined(__NVCC__)
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (bytes == 16) asm volatile("cp.async.cg.shared.global [%0+%2], [%1+%2], 16;" ::"r"(to), "l"(from), "n"(beyond) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0+%3], [%1+%3], %2;" ::"r"(to), "l"(from), "n"(bytes), "n"(beyond) : "memory");
#else
  auto* const to = static_cast<unsigned char*>(shared) + beyond;
  const auto* const at = static_cast<const unsigned char*>(from) + beyond;
  if constexpr (bytes == 16) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(at);
  else if constexpr (bytes == 8) *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(at);
  else *reinterpret_cast<float*>(to) = *reinterpret_cast<const float*>(at);
#endif
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void end_copies() {
#if defined(__NVCC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until no more than the last `groups` of this thread's groups are under way.
template <int groups> __device__ __forceinline__ void wait_for_copies() {
#if defined(__NVCC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

FLOWKERN_END
